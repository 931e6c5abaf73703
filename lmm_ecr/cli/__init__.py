"""The `lmm-ecr` command: one thin function per verb; heavy imports happen inside, so that `--help` is quick."""

from typing import NoReturn

import typer

from ..processes import run_and_exit
from . import models, tables

app = typer.Typer(
    name="lmm-ecr",
    help="Predict how engaging short videos are: prepare, predict, evaluate, ensemble.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for verb in (
    models.prepare,
    models.predict,
    tables.evaluate,
    tables.ensemble,
    tables.report,
    tables.labels,
    models.convert,
    models.merge,
    models.memory,
    models.bench,
):
    app.command()(verb)


def main() -> NoReturn:
    """Run the command line; an error meant for the user is printed without a stack trace and exits with status 2."""
    run_and_exit("lmm-ecr", app)
