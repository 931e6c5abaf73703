"""Evaluate prediction files against labels: what `lmm-ecr evaluate` does and `lmm-ecr report` builds on."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import pyarrow as pa

from .calibration import Calibration, Reliability, check_method, reliability
from .errors import ConfigError, DataError
from .files import write_json
from .logistic import LogisticFit
from .metrics import PairedDifference, evaluate_predictions, paired_bootstrap, plcc_logistic
from .outputs import check_output
from .plots import Panel, plot_kind, save_figure, scatter_figure
from .predictions import Match, Predictions, match_ids, read_labels, read_predictions
from .segments import split_segments


@dataclass
class FileEvaluation:
    """One prediction file on the rows all files share: `values`, float64 [n] in the order of `Evaluation.labels`."""

    name: str  # the file name, longer where two files share it
    table: Predictions
    match: Match
    values: np.ndarray
    metrics: dict  # as evaluate_predictions returns it
    logistic: dict[int, LogisticFit]  # by number of parameters
    reliability: Reliability
    segments: dict[str, list[dict]] = field(default_factory=dict)  # column -> [{"name", "bias", "n", "srocc", ...}]
    against_best: PairedDifference | None = None  # final score of this file minus that of the best one


@dataclass
class Evaluation:
    """Several prediction files on the same n rows. ids: [n]; labels: float64 [n]; rows: int64 [n] in `label_table`."""

    label_table: Predictions
    ids: pa.Array
    labels: np.ndarray
    rows: np.ndarray
    files: list[FileEvaluation]
    best: FileEvaluation | None  # highest final score; None for a single file or if no score is defined
    confidence: float
    resamples: int
    seed: int


def evaluate_files(
    paths: Sequence[str | os.PathLike],
    labels_path: str | os.PathLike,
    *,
    target: str = "ECR",
    segments: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    bins: int = 10,
    allow_missing: bool = False,
    allow_out_of_range: bool = False,
) -> Evaluation:
    """Read, match by id and evaluate; all files are evaluated on the same rows, those that every file predicts.

    Predictions without a label are left out and counted. A label without a prediction is a DataError naming the file
    and some of the ids, unless `allow_missing`. `segments` are columns of the label table (see `lmm_ecr.segments`).
    """
    _check_settings(confidence, resamples, bins)
    label_table = read_labels(labels_path, target, allow_out_of_range=allow_out_of_range)
    tables: list[Predictions] = []
    for path in paths:
        like = tables[0] if tables else label_table
        tables.append(read_predictions(path, target, allow_out_of_range=allow_out_of_range, columns=(), like=like))
    return evaluate_tables(
        tables,
        _names([table.path for table in tables]),
        label_table,
        segments=segments,
        confidence=confidence,
        resamples=resamples,
        seed=seed,
        bins=bins,
        allow_missing=allow_missing,
    )


def evaluate_tables(
    tables: Sequence[Predictions],
    names: Sequence[str],
    label_table: Predictions,
    *,
    segments: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    bins: int = 10,
    allow_missing: bool = False,
) -> Evaluation:
    """`evaluate_files` for predictions in memory, shown under `names`."""
    _check_settings(confidence, resamples, bins)
    matches = [_match(table, label_table, allow_missing) for table in tables]
    shared = np.ones(len(label_table), dtype=bool)
    for match in matches:
        present = np.zeros(len(label_table), dtype=bool)
        present[match.label_rows] = True
        shared &= present
    rows = np.flatnonzero(shared)
    if not len(rows):
        raise DataError(f"no id of {label_table.path} is predicted by all of the {len(tables)} prediction files")
    labels = label_table.values[rows]
    options = {"confidence": confidence, "resamples": resamples, "seed": seed}
    files = []
    for name, table, match in zip(names, tables, matches, strict=True):
        values = match.predictions[shared[match.label_rows]]
        files.append(
            FileEvaluation(
                name,
                table,
                match,
                values,
                evaluate_predictions(values, labels, **options),
                {count: plcc_logistic(values, labels, count) for count in (4, 5)},
                reliability(values, labels, bins),
            )
        )
    scored = [file for file in files if file.metrics["final_score"] is not None]
    best = max(scored, key=lambda file: file.metrics["final_score"]) if len(files) > 1 and scored else None
    if best is not None and resamples:
        for file in files:
            if file is not best:
                file.against_best = paired_bootstrap(file.values, best.values, labels, **options)
    evaluation = Evaluation(
        label_table, label_table.ids.take(pa.array(rows)), labels, rows, files, best, confidence, resamples, seed
    )
    add_segments(evaluation, segments)
    return evaluation


def add_segments(evaluation: Evaluation, columns: Sequence[str], files: Sequence[FileEvaluation] | None = None) -> None:
    """Break all files, or `files`, down by columns of the label table (in place; a column that is there stays)."""
    options = {"confidence": evaluation.confidence, "resamples": evaluation.resamples, "seed": evaluation.seed}
    for column in columns:
        parts = split_segments(evaluation.label_table, column, evaluation.rows)
        for file in evaluation.files if files is None else files:
            if column in file.segments:
                continue
            pairs = [(part.name, file.values[part.rows], evaluation.labels[part.rows]) for part in parts]
            file.segments[column] = [
                {
                    "name": name,
                    "bias": float(np.mean(values - labels)),
                    **evaluate_predictions(values, labels, **options),
                }
                for name, values, labels in pairs
            ]


def to_json(evaluation: Evaluation) -> dict:
    """One file: the inside of `metrics.json`'s "eval" with more keys; several: {"files": {name: the same}, ...}.

    Numbers that are not defined are None.
    """
    contents = {file.name: _file_json(evaluation, file) for file in evaluation.files}
    if len(contents) == 1:
        return next(iter(contents.values()))
    return {"best": evaluation.best.name if evaluation.best else None, "files": contents}


def check_outputs(
    inputs: Sequence[str | os.PathLike],
    json: str | os.PathLike | None,
    plot: str | os.PathLike | None,
    calibration_method: str | None,
    calibration_file: str | os.PathLike | None,
) -> None:
    """Complain before the work, not after: options that contradict each other, an output that is also an input."""
    if (calibration_method is None) != (calibration_file is None):
        raise ConfigError("--fit-calibration METHOD and --calibration-file FILE belong together; give both or none")
    if calibration_method is not None:
        check_method(calibration_method)
        if len(inputs) != 2:
            raise ConfigError(f"a calibration belongs to one prediction file; {len(inputs) - 1} were given")
    if plot is not None:
        plot_kind(plot)
    outputs = [path for path in (json, plot, calibration_file) if path is not None]
    for place, output in enumerate(outputs):
        check_output(output, inputs=[*inputs, *outputs[:place]], force=True)


def write_outputs(
    evaluation: Evaluation,
    json: str | os.PathLike | None,
    plot: str | os.PathLike | None,
    calibration_method: str | None,
    calibration_file: str | os.PathLike | None,
) -> list[str]:
    """Write the files that are asked for (None: not this one); one line about each."""
    lines = []
    if json is not None:
        write_json(json, to_json(evaluation))
        lines.append(f"metrics: {json}")
    if plot is not None:
        panels = [Panel(file.values, evaluation.labels, file.name, file.metrics) for file in evaluation.files]
        save_figure(scatter_figure(panels), plot)
        lines.append(f"plot: {plot}")
    if calibration_method is not None:
        calibration = Calibration.fit(
            evaluation.files[0].values,
            evaluation.labels,
            calibration_method,
            target=evaluation.label_table.target,
            seed=evaluation.seed,
        )
        calibration.save(calibration_file)
        lines.append(
            f"calibration: {calibration_file} ({calibration_method} map from {calibration.fitted_rows:,} rows, "
            f"intervals from {calibration.conformal_rows:,} others: 80 % within +-{calibration.half_width(0.8):.3f})"
        )
    return lines


def _check_settings(confidence: float, resamples: int, bins: int) -> None:
    if not 0 < confidence < 1:
        raise ConfigError(f"the confidence is {confidence}, not between 0 and 1 (0.95 for 95 %)")
    if resamples < 0 or bins < 1:
        raise ConfigError(f"{resamples} resamples and {bins} bins: both must be positive")


def _match(table: Predictions, labels: Predictions, allow_missing: bool) -> Match:
    match = match_ids(table, labels)
    if not len(match):
        raise DataError(
            f"{table.path} and {labels.path} share no id: the first has {example_ids(match.unlabelled_examples)}, "
            f"the second {example_ids(match.unpredicted_examples)}"
        )
    if match.unpredicted and not allow_missing:
        raise DataError(
            f"{table.path}: no prediction for {match.unpredicted:,} of the {len(labels):,} ids of {labels.path} "
            f"({example_ids(match.unpredicted_examples, match.unpredicted)}); "
            "predict them, or leave those rows out with --allow-missing"
        )
    return match


def example_ids(ids: list[str], count: int = 0) -> str:
    """Ids for a message, with dots if there are `count` of them and not all are listed."""
    return ", ".join(map(repr, ids)) + (", ..." if count > len(ids) else "")


def _names(paths: Sequence[str]) -> list[str]:
    """File names without suffix; with as many parent directories as it takes to tell them apart."""
    absolute = [os.path.abspath(path).split(os.sep) for path in paths]
    if len(set(map(tuple, absolute))) < len(paths):
        raise ConfigError(f"a prediction file is given twice: {', '.join(paths)}")
    for depth in range(1, max(map(len, absolute)) + 1):
        names = ["/".join(parts[-depth:]) for parts in absolute]
        stems = [name.removesuffix(".gz").rsplit(".", 1)[0] for name in names]
        if len(set(stems)) == len(stems):
            return stems
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths have different names at full depth")


def _file_json(evaluation: Evaluation, file: FileEvaluation) -> dict:
    curve = file.reliability
    content = {
        **file.metrics,
        "confidence": evaluation.confidence,
        "resamples": evaluation.resamples,
        "predictions": file.table.path,
        "labels": evaluation.label_table.path,
        "unlabelled_ids": file.match.unlabelled,
        "unpredicted_ids": file.match.unpredicted,
        "logistic": {str(count): asdict(fit) for count, fit in file.logistic.items()},
        "reliability": {
            "error": curve.error,
            "bias": curve.bias,
            "counts": curve.counts.tolist(),
            "mean_prediction": curve.mean_prediction.tolist(),
            "mean_label": curve.mean_label.tolist(),
            "standard_error": curve.standard_error.tolist(),
        },
    }
    if file.segments:
        content["segments"] = file.segments
    if file.against_best is not None:
        content["against_best"] = asdict(file.against_best)
    return _without_nan(content)


def _without_nan(value):
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
