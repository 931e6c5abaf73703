"""Evaluate prediction files against labels: what `lmm-ecr evaluate` does and `lmm-ecr report` builds on."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from .calibration import Reliability, reliability
from .errors import ConfigError, DataError
from .files import same_file
from .logistic import LogisticFit
from .metrics import PairedDifference, evaluate_predictions, paired_bootstrap, plcc_logistic
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
    label_column: str | None = None,
    segments: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    bins: int = 10,
    allow_missing: bool = False,
    allow_out_of_range: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Read, match by id and evaluate; all files are evaluated on the same rows, those that every file predicts.

    Predictions without a label are left out and counted. A label without a prediction is a DataError naming the file
    and some of the ids, unless `allow_missing`; so is a prediction file that is the label file itself. `target` is the
    column of the predictions and, unless `label_column` names another, of the labels. `segments` are columns of the
    label table (see `lmm_ecr.segments`).
    `progress(done, total)` is called after each piece of work: a file, a comparison, a breakdown of one file.
    """
    _check_settings(confidence, resamples, bins)
    if any(same_file(path, labels_path) for path in paths):
        raise DataError(f"{labels_path}: the labels are also one of the predictions; the score would be of the answers")
    label_table = read_labels(labels_path, label_column or target, allow_out_of_range=allow_out_of_range)
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
        progress=progress,
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
    progress: Callable[[int, int], None] | None = None,
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
    count, scale = len(tables), logistic_scale(labels)
    step = _Steps(progress, count * (1 + len(set(segments))) + (count - 1 if resamples else 0))
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
                {count: plcc_logistic(values, labels, count, scale=scale) for count in (4, 5)},
                reliability(values, labels, bins),
            )
        )
        step()
    scored = [file for file in files if file.metrics["final_score"] is not None]
    best = max(scored, key=lambda file: file.metrics["final_score"]) if len(files) > 1 and scored else None
    if best is not None and resamples:
        for file in files:
            if file is not best:
                file.against_best = paired_bootstrap(file.values, best.values, labels, **options)
                step()
    evaluation = Evaluation(
        label_table, label_table.ids.take(pa.array(rows)), labels, rows, files, best, confidence, resamples, seed
    )
    add_segments(evaluation, segments, step=step)
    step.finish()
    return evaluation


def logistic_scale(labels: np.ndarray) -> float:
    """What labels, float64 [n], are multiplied by to be percent, as the logistic mapping wants them: 100, or 1 for
    those that are so already (some label is above 1)."""
    return 100.0 if labels.max() <= 1 else 1.0


class _Steps:
    """Counts pieces of work for a progress bar."""

    def __init__(self, progress: Callable[[int, int], None] | None, total: int):
        self.progress, self.total, self.done = progress or (lambda done, total: None), total, 0
        self.progress(0, total)

    def __call__(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)

    def finish(self) -> None:
        self.progress(self.total, self.total)


def add_segments(
    evaluation: Evaluation,
    columns: Sequence[str],
    files: Sequence[FileEvaluation] | None = None,
    step: Callable[[], None] = lambda: None,
) -> None:
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
            step()


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
