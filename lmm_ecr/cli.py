"""The `lmm-ecr` command: one thin function per verb; heavy imports happen inside, so that `--help` is quick."""

import sys
from pathlib import Path

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


@app.command()
def labels(
    logs: list[Path] = typer.Argument(..., metavar="LOG...", help="Watch logs, one row per view: CSV or Parquet."),
    output: str = typer.Option("labels.csv", help="The table of labels; `-` for standard output."),
    min_views: int = typer.Option(2000, help="Leave out videos with fewer views."),
    ecr_seconds: float = typer.Option(5.0, help="ECR is the share of views longer than this many seconds."),
    chunk_rows: int = typer.Option(262_144, help="Rows held in memory at once; does not change the result."),
    id_column: str = typer.Option("Id", help="Column of the logs with the video id."),
    watch_column: str = typer.Option("watch_seconds", help="Column with the seconds watched."),
    duration_column: str = typer.Option("duration", help="Column with the duration of the video in seconds."),
    on_error: str = typer.Option("stop", help="A row that cannot be used: stop with its place, or skip and count it."),
    json: Path = typer.Option(None, help="Write the counts and the line of NAWP (alpha, beta) here."),
    force: bool = typer.Option(False, "--force", help="Replace an existing output."),
) -> None:
    """Labels from watch logs: AWT, ECR with its 95 % interval, NAWP and the rank-normalised ECR of every video."""
    from .labels import compute_labels, describe, write_labels
    from .outputs import check_output
    from .watch_logs import LogFormat

    check_output(output, inputs=logs, force=force)
    log_format = LogFormat(id_column, watch_column, duration_column, on_error)
    result = compute_labels(
        logs, min_views=min_views, ecr_seconds=ecr_seconds, chunk_rows=chunk_rows, log_format=log_format
    )
    write_labels(result, output, json)
    typer.echo(describe(result, output), err=output == "-")


def main() -> None:
    """Run the command line; an error meant for the user is printed without a stack trace and exits with status 2."""
    try:
        app()
    except LmmEcrError as error:
        print(f"lmm-ecr: error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
