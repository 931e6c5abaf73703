"""The command line: quick to start, every verb documented, errors without stack traces."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from lmm_ecr.cli import app

HEAVY = ("torch", "transformers", "pandas", "scipy", "av", "matplotlib", "pyarrow", "deepspeed", "datasets")


def run(*words):
    return subprocess.run([sys.executable, "-m", "lmm_ecr.cli", *words], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("statement", ["import lmm_ecr", "import lmm_ecr.cli"])
def test_importing_is_light(statement):
    code = f"import sys; {statement}; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_help_lists_every_verb():
    text = CliRunner().invoke(app, ["--help"]).output
    for verb in (
        "prepare",
        "predict",
        "evaluate",
        "ensemble",
        "report",
        "labels",
        "convert",
        "merge",
        "memory",
        "bench",
    ):
        assert f" {verb} " in text, verb


def test_every_option_is_explained():
    for command in app.registered_commands:
        name = command.name or command.callback.__name__.replace("_", "-")
        text = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200"}).output
        assert command.callback.__doc__, name
        assert "Usage" in text, name


def test_an_error_for_the_user_has_no_stack_trace(tmp_path):
    done = run("predict", "--model", str(tmp_path), "--data", "x.csv", "--output", str(tmp_path / "out.csv"))
    assert done.returncode == 2
    assert "preprocessing.json is missing" in done.stderr
    assert "Traceback" not in done.stderr
