"""An ensemble with labels: weights fitted where the method asks for it, and everything scored on rows it has not seen."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .ensemble_evidence import gain_over_best, leave_one_out, score_columns
from .ensemble_fit import cross_validate, fit
from .ensemble_folds import FOLDS, fold_of, hash_order, id_hashes
from .ensemble_members import Members
from .ensemble_methods import Combination, combine, without_member
from .ensemble_options import EnsembleOptions
from .ensemble_recipe import SavedRecipe, packed_hashes
from .ensemble_result import EnsembleResult, new_summary
from .errors import DataError
from .predictions import Predictions, match_ids, read_labels

LEAST_LABELLED = 20
"""Fitting weights to fewer labelled rows than this is refused."""


def score_with_labels(
    members: Members,
    combination: Combination | None,
    options: EnsembleOptions,
    target: str,
    recipe: SavedRecipe | None,
    progress: Callable[[int, int], None],
) -> EnsembleResult:
    """The result for the labels of `options`; a combination of None is fitted to them.

    A fit is scored by cross-validation. A recipe is scored on the labelled rows it was not fitted to: on the others
    its score would be too good. `progress` as for `ensemble.ensemble`.

    Raises:
        DataError: see `read_labels`; labels that match no row, or are too few or all equal for a fit.
    """
    table = read_labels(options.labels, options.label_column or target, columns=())
    match = match_ids(Predictions("the members", members.ids, members.values[0], target), table)
    if not len(match):
        raise DataError(
            f"{options.labels}: none of its {len(table)} ids is among the {len(members.ids)} of the predictions "
            f"(for example {table.ids[0].as_py()!r} and {members.ids[0].as_py()!r}); are they of one data set?"
        )
    hashes = id_hashes(table.ids.take(match.label_rows).to_pylist())
    seen = np.zeros(len(hashes), dtype=bool) if recipe is None else recipe.has_seen(hashes)
    order = hash_order(hashes)
    order = order[~seen[order]]
    hashes, rows, labels = hashes[order], match.prediction_rows[order], match.labels[order]
    counts = {
        "file": os.fspath(options.labels),
        "column": table.target,
        "rows": len(order),
        "rows_of_the_fit": int(np.count_nonzero(seen)),
        "rows_without_label": match.unlabelled,
        "labels_without_row": match.unpredicted,
    }
    if not len(order):
        summary = new_summary(members, combination, options, target, recipe)
        summary["labels"] = counts
        return EnsembleResult(members, combination, combine(members.values, combination), summary, fit=recipe.fit)
    folds = fold_of(hashes)
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
    summary = new_summary(members, combination, options, target, recipe)
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
    summary["labels"], record = counts, None if recipe is None else recipe.fit
    if fitted:
        by_fold = {
            str(fold): score_columns([evaluated[folds == fold]], labels[folds == fold], resamples=0)[0]["final_score"]
            for fold in np.unique(folds)
        }
        summary["fit"] = {
            "labels": Path(options.labels).name,
            "rows": len(rows),
            "folds": FOLDS,
            "cv_final_score": scored[-1]["final_score"],
            "cv_final_score_ci95": scored[-1]["ci95"]["final_score"],
            "cv_final_score_by_fold": by_fold,
        }
        record = summary["fit"] | {"id_hashes": packed_hashes(hashes)}
    scores = combine(members.values, combination)
    return EnsembleResult(members, combination, scores, summary, rows, labels, evaluated, record)


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
