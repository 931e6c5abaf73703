"""The verbs that read prediction files and tables: ensemble, labels, evaluate, report."""

import sys
from pathlib import Path

import typer

from ..errors import ConfigError


def ensemble(
    predictions: list[Path] = typer.Argument(
        ..., metavar="FILE...", help="Prediction files (Id,ECR) of the same clips."
    ),
    output: str = typer.Option("ensemble.csv", help="The combined predictions; `-` for standard output."),
    method: str = typer.Option(
        None, help="mean (default), median, rank, logit, weighted, greedy or stack; the last three fit to --labels."
    ),
    weights: str = typer.Option(None, help="For weighted: one number per file, in their order, such as 0.3,0.7."),
    labels: Path = typer.Option(None, help="Table with the true values: scores everything, and fits the weights."),
    target: str = typer.Option(None, help="Column with the predictions, also in the output. Default: ECR."),
    label_column: str = typer.Option(None, help="Column of --labels. Default: as --target."),
    missing: str = typer.Option(
        "error",
        help="An id that a file lacks: error, drop it, or mean of the others, on the scale the method works on.",
    ),
    with_std: bool = typer.Option(False, "--with-std", help="Add the standard deviation of the members as a column."),
    save: Path = typer.Option(None, help="Write the recipe (method, members, weights) here, for --apply."),
    apply: Path = typer.Option(
        None, help="Use a saved recipe on new files of the same names; with --labels it is scored on rows new to it."
    ),
    oof: Path = typer.Option(
        None,
        help="Write the cross-validated (out-of-fold) scores of a fit here; `lmm-ecr evaluate` on this file, with "
        "--fit-calibration, gives an honest calibration for the recipe.",
    ),
    calibrate: Path = typer.Option(None, help="Calibration file to apply to the result, made by `lmm-ecr evaluate`."),
    interval: float = typer.Option(None, help="With --calibrate: add ECR_lo and ECR_hi of this coverage, e.g. 0.9."),
    json: Path = typer.Option(None, help="Write the whole summary here."),
    report: Path = typer.Option(None, help="Write an HTML report here; needs --labels."),
    video_dir: Path = typer.Option(
        None, help="For --report: directory of the clips, for pictures of the worst errors."
    ),
    resamples: int = typer.Option(
        1000, help="Bootstrap resamples for the intervals; 0 for none, at least 100 to call a gain significant."
    ),
    force: bool = typer.Option(False, "--force", help="Replace an existing output."),
) -> None:
    """Combine prediction files into one; with --labels show by how much it is better, and whether that is luck."""
    from ..ensemble import ensemble as combine_files
    from ..ensemble import write_ensemble
    from ..ensemble_options import EnsembleOptions, check_outputs, parse_weights, read_calibration, target_column
    from ..ensemble_summary import print_summary
    from ..progress import progress_bar

    options = EnsembleOptions(
        method,
        parse_weights(weights),
        labels,
        target,
        label_column,
        missing,
        apply,
        resamples=resamples,
        keep_members=with_std,
    )
    check_outputs(predictions, options, output, force, calibrate, json=json, save=save, report=report, oof=oof)
    calibration = read_calibration(calibrate, interval, target_column(options))
    if video_dir is not None and report is None:
        raise ConfigError("--video-dir is for the pictures of --report FILE.html, which is not given")
    if report is not None:
        from ..report import check_report

        check_report(video_dir)
    with progress_bar("Fitting and scoring", "steps", delay=3) as progress:
        result = combine_files(predictions, options, progress)
    if report is not None:
        from ..ensemble_report import check_scored, write_ensemble_report

        check_scored(result)
    write_ensemble(
        result,
        output,
        with_std=with_std,
        json_path=json,
        save=save,
        oof=oof,
        calibration=calibration,
        interval=interval,
    )
    if report is not None:
        write_ensemble_report(result, options, report, video_dir=video_dir)
    print_summary(result.summary, output, sys.stderr if output == "-" else sys.stdout)
    if oof is not None:
        typer.echo(f"out-of-fold scores written to {oof}", err=output == "-")
    if calibration is not None:
        typer.echo(f"what is written is calibrated by {calibrate}; scores above are before that", err=output == "-")


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
    alpha: float = typer.Option(None, help="With --beta: the line of NAWP as fitted before, instead of fitting it."),
    beta: float = typer.Option(None, help="See --alpha; both are in the file of --json."),
    json: Path = typer.Option(None, help="Write the counts and the line of NAWP (alpha, beta) here."),
    force: bool = typer.Option(False, "--force", help="Replace an existing output."),
) -> None:
    """Labels from watch logs: AWT, ECR with its 95 % interval, NAWP and the rank-normalised ECR of every video."""
    from ..labels import compute_labels, describe, write_labels
    from ..outputs import check_output, check_side_output
    from ..watch_logs import LogFormat

    check_output(output, inputs=logs, force=force)
    check_side_output(json, "--json", (".json",), inputs=[*logs, output], force=force)
    if (alpha is None) != (beta is None):
        raise ConfigError("--alpha and --beta belong together; give both or none")
    log_format = LogFormat(id_column, watch_column, duration_column, on_error)
    result = compute_labels(
        logs,
        min_views=min_views,
        ecr_seconds=ecr_seconds,
        chunk_rows=chunk_rows,
        log_format=log_format,
        line=None if alpha is None else (alpha, beta),
    )
    write_labels(result, output, json)
    typer.echo(describe(result, output), err=output == "-")


def evaluate(
    predictions: list[Path] = typer.Argument(..., metavar="PRED...", help="Prediction tables: CSV or Parquet."),
    labels: Path = typer.Option(..., help="Table with the measured values; its other columns can be segments."),
    target: str = typer.Option("ECR", help="Column to evaluate, in both tables."),
    label_column: str = typer.Option(None, help="Column of --labels. Default: as --target."),
    segment: list[str] = typer.Option([], help="Break down by this column, has_title or has_description; repeatable."),
    json: Path = typer.Option(None, help="Write every number here (as metrics.json's eval); `-` for standard output."),
    plot: Path = typer.Option(None, help="Write a scatter plot here (png, svg or pdf)."),
    fit_calibration: str = typer.Option(None, help="Fit a calibration: isotonic, logistic, identity (intervals only)."),
    calibration_file: Path = typer.Option(None, help="Where the calibration goes, for `predict --calibrate`."),
    confidence: float = typer.Option(0.95, help="Confidence of the bootstrap intervals."),
    resamples: int = typer.Option(1000, help="Bootstrap resamples; 0 for no intervals."),
    seed: int = typer.Option(0, help="Seed of the resamples and of the calibration split."),
    bins: int = typer.Option(10, help="Bins of the reliability curve."),
    allow_missing: bool = typer.Option(False, "--allow-missing", help="Leave out labels without a prediction."),
    allow_out_of_range: bool = typer.Option(False, "--allow-out-of-range", help="Accept values outside [0, 1]."),
    force: bool = typer.Option(False, "--force", help="Replace a file of another kind, or write under another suffix."),
) -> None:
    """Score prediction files against labels: SROCC, PLCC, KRCC, RMSE and final score with bootstrap intervals."""
    from ..evaluate import evaluate_files
    from ..evaluation_outputs import check_outputs, write_outputs
    from ..evaluation_tables import print_evaluation
    from ..progress import progress_bar

    check_outputs([*predictions, labels], json, plot, fit_calibration, calibration_file, force)
    to_stderr = str(json) == "-"
    with progress_bar("Evaluating", "steps", delay=3) as progress:
        result = evaluate_files(
            predictions,
            labels,
            target=target,
            label_column=label_column,
            segments=segment,
            confidence=confidence,
            resamples=resamples,
            seed=seed,
            bins=bins,
            allow_missing=allow_missing,
            allow_out_of_range=allow_out_of_range,
            progress=progress,
        )
    print_evaluation(result, to_stderr=to_stderr)
    for line in write_outputs(result, json, plot, fit_calibration, calibration_file):
        typer.echo(line, err=to_stderr)


def report(
    predictions: list[Path] = typer.Argument(..., metavar="PRED...", help="Prediction tables: CSV or Parquet."),
    labels: Path = typer.Option(..., help="Table with the measured values and, for the reader, Title and Description."),
    output: Path = typer.Option("report.html", help="The HTML file; it holds everything and loads nothing."),
    video_dir: Path = typer.Option(None, help="Directory of the clips, for pictures of the largest errors."),
    target: str = typer.Option("ECR", help="Column to evaluate, in both tables."),
    label_column: str = typer.Option(None, help="Column of --labels. Default: as --target."),
    segment: list[str] = typer.Option([], help="Break errors down by this column too; repeatable."),
    worst: int = typer.Option(12, help="How many of the largest errors to list."),
    title: str = typer.Option("Engagement predictions", help="Heading of the report."),
    resamples: int = typer.Option(1000, help="Bootstrap resamples; 0 for no intervals."),
    seed: int = typer.Option(0, help="Seed of the resamples."),
    allow_missing: bool = typer.Option(False, "--allow-missing", help="Leave out labels without a prediction."),
    allow_out_of_range: bool = typer.Option(False, "--allow-out-of-range", help="Accept values outside [0, 1]."),
    force: bool = typer.Option(False, "--force", help="Replace a file of another kind, or write under another suffix."),
) -> None:
    """One HTML file about prediction files: metrics, plots, segments, largest errors, correlations."""
    from ..evaluate import evaluate_files
    from ..outputs import check_side_output
    from ..progress import progress_bar
    from ..report import check_report, write_report

    check_side_output(output, "--output", (".html", ".htm"), inputs=[*predictions, labels], force=force)
    check_report(video_dir, worst)
    with progress_bar("Evaluating", "steps", delay=3) as progress:
        result = evaluate_files(
            predictions,
            labels,
            target=target,
            label_column=label_column,
            segments=segment,
            resamples=resamples,
            seed=seed,
            allow_missing=allow_missing,
            allow_out_of_range=allow_out_of_range,
            progress=progress,
        )
    write_report(result, output, video_dir=video_dir, worst=worst, title=title)
    typer.echo(f"report: {output}")
