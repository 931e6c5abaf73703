"""Damaged and incomplete model directories: errors of the libraries that read them become one that names the file."""

import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open

from ..errors import ConfigError, LmmEcrError
from ..files import read_json

JSON_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "adapter_config.json",
    "model.safetensors.index.json",
)

# Unlike a mistake in the program, which shows its stack trace.
WEIGHT_ERRORS = (OSError, ValueError, EOFError, SafetensorError, pickle.UnpicklingError)


@contextmanager
def reading_weights(source: str | Path) -> Iterator[None]:
    """Around the one call that loads weights from `source` (a directory or a hub name). Raises ConfigError."""
    try:
        yield
    except WEIGHT_ERRORS as error:
        raise ConfigError(explain(source, error)) from error


@contextmanager
def reading_processor(source: str | Path) -> Iterator[None]:
    """Around the one call that loads a configuration, tokenizer or processor from `source`. Raises ConfigError."""
    try:
        yield
    except LmmEcrError:
        raise
    except (
        Exception
    ) as error:  # transformers lets through what it trips over: AttributeError, TypeError, KeyError, ...;
        raise ConfigError(explain(source, error)) from error  # tokenizers raises plain Exception


def explain(source: str | Path, error: Exception) -> str:
    """Why the files of a model could not be read: the damaged one by name if it can be found, else the library's words."""
    damage = damaged_file(Path(source)) if Path(source).is_dir() else None
    if damage:
        return f"{damage}; copy or download it again"
    lines = str(error).strip().splitlines() or [""]
    return (
        f"{source}: the model's files cannot be read ({type(error).__name__}: {lines[0]}); is the directory complete?"
    )


def damaged_file(directory: Path) -> str | None:
    """The first file of a model directory that cannot be read, with the reason; None if all can."""
    for name in JSON_FILES:
        path = directory / name
        if not path.is_file():
            continue
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            return f"{path} is damaged or incomplete: no valid JSON ({error})"
        if not isinstance(values, dict):
            return f"{path} is damaged: it holds no JSON object"
    for path in sorted(directory.glob("*.jinja")):
        try:
            path.read_text(encoding="utf-8")
        except ValueError as error:
            return f"{path} is damaged: no UTF-8 text ({error})"
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            return f"{path} is damaged or incomplete ({error})"
    return None


def check_saved_config(directory: Path, names: tuple[str, ...]) -> None:
    """Refuse a config.json that lost what cannot be guessed: a default would change scores without a word.

    names: fields that must be there. Raises ConfigError naming those that are not, and targets without label transform.
    """
    path = directory / "config.json"
    values = read_json(path)
    absent = [name for name in names if name not in values]
    if absent:
        raise ConfigError(f"{path} has no {', '.join(map(repr, absent))}: it was cut or edited; copy it again")
    without = [name for name in values["targets"] if name not in values["label_transforms"]]
    if without:
        raise ConfigError(
            f"{path} has no label transform for {', '.join(without)}: it was cut or edited; copy it again"
        )
