"""The argument parser of the recipes, and values of a file as words for it."""

import argparse
import difflib
import json
from typing import Any

from transformers import HfArgumentParser

from .errors import ConfigError

# YAML reads the words no, off, yes and on as booleans, where these flags take words.
_YAML_BOOLEANS: dict[str, dict[bool, str | None]] = {
    "eval_strategy": {False: "no"},
    "save_strategy": {False: "no"},
    "logging_strategy": {False: "no"},
    "resume_from_checkpoint": {False: None, True: "auto"},
}


class ArgumentParser(HfArgumentParser):
    """An argument parser whose mistakes are ConfigErrors without three screens of usage."""

    def error(self, message: str):
        raise ConfigError(f"{message} (see --help)")


def _flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    return {option[2:]: action for action in parser._actions for option in action.option_strings if option[:2] == "--"}


def as_words(values: dict[str, Any], parser: argparse.ArgumentParser, where: str, types: dict[str, tuple]) -> list[str]:
    """{"name": value} as command-line words. An empty value (None) becomes the default of `parser` where the argument may be
    None; elsewhere it keeps the default. types: name -> the types it admits. Raises ConfigError, saying `where`."""
    known = _flags(parser)
    words: list[str] = []
    for name, value in values.items():
        if name not in known or name in ("config", "help"):
            raise ConfigError(unknown_argument(f"--{name}", parser, where))
        action = known[name]
        if isinstance(value, bool):
            value = _YAML_BOOLEANS.get(name, {}).get(value, value)
        if value is None:
            if type(None) in types.get(action.dest, ()):
                parser.set_defaults(**{action.dest: None})
            continue
        if isinstance(value, dict) and dict not in types.get(action.dest, ()):
            raise ConfigError(f"{where}: {name!r} takes one value, not a group of them: the file has one flat level")
        if isinstance(value, list) and action.nargs != "*":
            raise ConfigError(f"{where}: {name!r} takes one value, not a list")
        if isinstance(value, list):
            words += [f"--{name}", *map(str, value)]
        elif isinstance(value, dict):
            words += [f"--{name}", json.dumps(value)]
        else:
            words.append(f"--{name}={value}")
    return words


def unknown_argument(word: str, parser: argparse.ArgumentParser, where: str) -> str:
    if not word.startswith("--"):
        return f"{where}: {word!r} belongs to no argument"
    name = word[2:].split("=")[0]
    close = difflib.get_close_matches(name.replace("-", "_"), _flags(parser), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "; see --help for all of them"
    return f"{where}: unknown argument {name!r}{hint}"
