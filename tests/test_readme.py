"""README: its commands, files and flags exist."""

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from lmm_ecr.arguments import parse_arguments
from lmm_ecr.cli import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands(start: str) -> list[list[str]]:
    """Commands in code blocks and inline code that begin with `start`, split into words."""
    text = README.replace("\\\n", " ")
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)) + "\n".join(re.findall(r"`([^`\n]+)`", text))
    lines = [part.strip() for line in blocks.splitlines() for part in line.split("&&")]
    return [shlex.split(line) for line in lines if line.startswith(start)]


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_verbs_and_flags_exist():
    verbs = get_command(app).commands
    found = commands("lmm-ecr ")
    assert {words[1] for words in found} >= {"predict", "evaluate", "ensemble", "prepare", "merge"}
    for words in found:
        assert words[1] in verbs, words
        known = {option for parameter in verbs[words[1]].params for option in parameter.opts}
        for word in words[2:]:
            if word.startswith("--"):
                assert word in known, f"lmm-ecr {words[1]} {word}"


@pytest.mark.parametrize("words", commands("accelerate launch recipes/"), ids=lambda words: " ".join(words[2:5]))
def test_recipe_commands_parse(words):
    assert (ROOT / words[2]).is_file()
    arguments = words[3:]
    if "--help" in arguments:
        return
    if "--config" in arguments:
        position = arguments.index("--config") + 1
        arguments[position] = str(ROOT / arguments[position])
    parse_arguments([*arguments, "--bf16", "false"], embedded={})


def test_the_two_commands_of_the_start():
    assert "pip install -c constraints.txt -e . && accelerate launch recipes/qwen_sft.py" in README
    assert 'pip install -c constraints.txt -e ".[dev]" && pytest' in README


def test_no_placeholder_is_left():
    assert "@@" not in README
