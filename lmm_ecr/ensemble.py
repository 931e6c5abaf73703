"""`lmm-ecr ensemble`: from prediction files of the same clips to one better file, with the evidence that it is better.

Rows are matched by id and come out in the order of the first file given. Rules and fits are in `ensemble_methods`.
Fitted methods (`weighted` with labels, `greedy`, `stack`) are scored by cross-validation over 5 folds that depend on
the ids alone, never on the rows they were fitted on; the weights written to the output and the recipe are fitted to
all of them.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .calibration import Calibration
from .ensemble_evidence import evenly_spaced, gain_over_best, leave_one_out, member_correlations, score_columns
from .ensemble_fit import cross_validate, fit
from .ensemble_folds import FOLDS, fold_of, hash_order, id_hashes
from .ensemble_members import Members, read_members, stream_members
from .ensemble_methods import FITTED, Combination, RunningMean, combine, spread, without_member
from .ensemble_options import EnsembleOptions
from .ensemble_recipe import load_recipe, reorder, save_recipe, scale_json
from .errors import ConfigError, DataError
from .files import write_json
from .predictions import Predictions, match_ids, read_labels, write_predictions

LEAST_LABELLED = 20
"""Fitting weights to fewer labelled rows than this is refused."""


@dataclass
class EnsembleResult:
    """scores: float64 [rows], in [0, 1], in the order of members.ids. summary: what `--json` writes. labelled_rows:
    int64 [labelled] rows of `scores` with a label, in an order fixed by the ids; labels and evaluated: float64
    [labelled], the label and the ensemble's score there (cross-validated for fitted methods); None without labels."""

    members: Members
    combination: Combination
    scores: np.ndarray
    summary: dict
    labelled_rows: np.ndarray | None = None
    labels: np.ndarray | None = None
    evaluated: np.ndarray | None = None


def ensemble(
    paths: Sequence[str | os.PathLike],
    options: EnsembleOptions | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> EnsembleResult:
    """Combine the prediction files `paths`. Without labels no more is done than reading, combining and correlations.

    `progress(done, total)` is called after each step of what takes long: fit, cross-validation, scores, every member's
    gain.

    Raises:
        DataError: see `read_members` and `read_labels`; a recipe of other members; labels that match no row, are all
            equal (fitted methods) or too few (`LEAST_LABELLED`).
        ConfigError: as many weights as files are needed.
    """
    options = options or EnsembleOptions()
    combination, saved, target = None, None, options.target or "ECR"
    if options.apply is not None:
        combination, saved, saved_target = load_recipe(options.apply)
        target = options.target or saved_target
    if options.labels is not None and os.path.realpath(options.labels) in map(os.path.realpath, paths):
        raise DataError(f"{options.labels}: the labels are also one of the members; the score would be of the answers")
    plain = (combination.method if combination else options.method or "mean") == "mean" and options.weights is None
    if plain and not options.keep_members and options.labels is None and options.missing == "error":
        return _streamed_mean(paths, options, saved, target)
    members = read_members(paths, target, missing=options.missing)
    if options.apply is not None:
        combination = reorder(combination, saved, members.names, options.apply)
    elif options.weights is not None:
        if len(options.weights) != len(members):
            raise ConfigError(f"--weights has {len(options.weights)} numbers for {len(members)} files")
        weights = np.empty(len(members))
        weights[members.given] = np.asarray(options.weights, np.float64) / sum(options.weights)
        combination = Combination("weighted", weights)
    elif (options.method or "mean") not in FITTED:
        combination = Combination(options.method or "mean")
    if options.labels is None:
        scores = combine(members.values, combination)
        return EnsembleResult(
            members, combination, scores, _summary(members, combination, options, target, members.values)
        )
    return _with_labels(members, combination, options, target, progress)


def write_ensemble(
    result: EnsembleResult,
    output: str | os.PathLike,
    *,
    with_std: bool = False,
    json_path: str | os.PathLike | None = None,
    save: str | os.PathLike | None = None,
    calibration: Calibration | None = None,
    interval: float | None = None,
) -> None:
    """Write the predictions (`-` for standard output), and the summary and the recipe where asked for.

    calibration: is applied to the scores that are written; what the summary says is about the scores before it.
    interval: with a calibration, the coverage of two more columns, the ends of an interval.
    """
    target = result.summary["target"]
    columns = {target: result.scores}
    if calibration is not None:
        columns[target] = calibration.apply(result.scores)
        if interval is not None:
            columns[f"{target}_lo"], columns[f"{target}_hi"] = calibration.interval(result.scores, interval)
    if with_std:
        columns[f"{target}_std"] = spread(result.members.values)
    write_predictions(output, result.members.ids, columns)
    if json_path is not None:
        write_json(json_path, result.summary)
    if save is not None:
        save_recipe(save, result.combination, result.members.names, target, result.summary["fit"])


def _streamed_mean(
    paths: Sequence[str | os.PathLike], options: EnsembleOptions, saved: list[str] | None, target: str
) -> EnsembleResult:
    combination, mean, samples = Combination("mean"), RunningMean(), []

    def use(row: int, values: np.ndarray) -> None:
        mean.add(values)
        samples.append(evenly_spaced(values))

    members = stream_members(paths, target, use)
    if saved is not None:
        reorder(combination, saved, members.names, options.apply)
    summary = _summary(members, combination, options, target, np.stack(samples))
    return EnsembleResult(members, combination, mean.result(), summary)


def _with_labels(
    members: Members,
    combination: Combination | None,
    options: EnsembleOptions,
    target: str,
    progress: Callable[[int, int], None],
) -> EnsembleResult:
    table = read_labels(options.labels, options.label_column or target, columns=())
    match = match_ids(Predictions("the members", members.ids, members.values[0], target), table)
    if not len(match):
        raise DataError(
            f"{options.labels}: none of its {len(table)} ids is among the {len(members.ids)} of the predictions "
            f"(for example {table.ids[0].as_py()!r} and {members.ids[0].as_py()!r}); are they of one data set?"
        )
    hashes = id_hashes(table.ids.take(match.label_rows).to_pylist())
    order = hash_order(hashes)
    rows, labels, folds = match.prediction_rows[order], match.labels[order], fold_of(hashes[order])
    values = np.ascontiguousarray(members.values[:, rows])
    fitted = combination is None
    steps = 3 + len(members)
    progress(0, steps)
    if fitted:
        _enough_to_fit(options, labels, folds)
        combination = fit(options.method, values, labels)
        progress(1, steps)
        evaluated = cross_validate(options.method, values, labels, folds)

        def without(member: int) -> np.ndarray:
            others = np.delete(values, member, axis=0)
            some, scores = ~np.isnan(others).all(axis=0), np.full(len(labels), np.nan)
            if len(np.unique(folds[some])) > 1:
                scores[some] = cross_validate(options.method, others[:, some], labels[some], folds[some])
            return scores
    else:
        evaluated = combine(members.values, combination)[rows]

        def without(member: int) -> np.ndarray | None:
            smaller, others = without_member(combination, member), np.delete(members.values, member, axis=0)
            if smaller is None:
                return None
            some, scores = ~np.isnan(others).all(axis=0), np.full(others.shape[1], np.nan)
            scores[some] = combine(others[:, some], smaller)
            return scores[rows]

    progress(2, steps)
    scored = score_columns([*values, evaluated], labels, resamples=options.resamples, seed=options.seed)
    summary = _summary(members, combination, options, target, members.values)
    for entry, score in zip(summary["members"], scored, strict=False):
        entry.update(score)
    summary["ensemble"] = scored[-1]
    progress(3, steps)

    def without_and_count(member: int) -> np.ndarray | None:
        progress(3 + member, steps)
        return without(member)

    gains = leave_one_out(without_and_count, len(members), labels, evaluated)
    progress(steps, steps)
    for entry, gain in zip(summary["members"], gains, strict=True):
        entry["gain"] = gain
    summary["gain_over_best"] = gain_over_best(
        evaluated, values, members.names, scored[:-1], labels, resamples=options.resamples, seed=options.seed
    )
    summary["labels"] = {
        "file": os.fspath(options.labels),
        "column": table.target,
        "rows": len(match),
        "rows_without_label": match.unlabelled,
        "labels_without_row": match.unpredicted,
    }
    if fitted:
        by_fold = {
            str(fold): score_columns([evaluated[folds == fold]], labels[folds == fold], resamples=0)[0]["final_score"]
            for fold in np.unique(folds)
        }
        summary["fit"] = {
            "labels": Path(options.labels).name,
            "rows": len(match),
            "folds": FOLDS,
            "cv_final_score": scored[-1]["final_score"],
            "cv_final_score_ci95": scored[-1]["ci95"]["final_score"],
            "cv_final_score_by_fold": by_fold,
        }
    return EnsembleResult(members, combination, combine(members.values, combination), summary, rows, labels, evaluated)


def _enough_to_fit(options: EnsembleOptions, labels: np.ndarray, folds: np.ndarray) -> None:
    if len(labels) < LEAST_LABELLED or len(np.unique(folds)) < 2:
        raise DataError(
            f"{options.labels}: only {len(labels)} rows have a label; --method {options.method} fits weights to at least "
            f"{LEAST_LABELLED}; use --method mean"
        )
    if np.ptp(labels) == 0:
        raise DataError(
            f"{options.labels}: all labels are {labels[0]}; there is nothing to fit --method {options.method} to"
        )


def _summary(
    members: Members, combination: Combination, options: EnsembleOptions, target: str, values: np.ndarray
) -> dict:
    """`values`: float64 [members, rows] or some rows of it, for correlations and spreads."""
    weights, some = combination.weights, evenly_spaced(values)
    filled = sum(members.missing_ids.values()) if options.missing == "mean" else 0
    entries = [
        {
            "name": name,
            "file": path,
            "weight": None if weights is None else float(weights[at]),
            "mean": float(np.nanmean(some[at])),
            "std": float(np.nanstd(some[at])),
            "missing_ids": members.missing_ids.get(name, 0),
        }
        for at, (name, path) in enumerate(zip(members.names, members.paths, strict=True))
    ]
    return {
        "method": combination.method,
        "scale": scale_json(combination.scale),
        "target": target,
        "n": len(members.ids),
        "missing": {"rule": options.missing, "dropped_rows": members.dropped, "filled_values": filled},
        "members": entries,
        "ensemble": None,
        "correlations": member_correlations(some, ranks=options.labels is not None),
        "gain_over_best": None,
        "labels": None,
        "fit": None,
        "recipe": None if options.apply is None else os.fspath(options.apply),
    }
