"""The `lmm-ecr` command: one thin function per verb; heavy imports happen inside, so that `--help` is quick."""

import sys

import typer

from .errors import LmmEcrError

app = typer.Typer(
    name="lmm-ecr",
    help="Predict how engaging short videos are: prepare, predict, evaluate, ensemble.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """Keep `lmm-ecr VERB` as the form even while there is only one verb."""


def main() -> None:
    """Run the command line; an error meant for the user is printed without a stack trace and exits with status 2."""
    try:
        app()
    except LmmEcrError as error:
        print(f"lmm-ecr: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
