"""Is the ensemble better than its members? Scores with intervals, correlations, gains, and the test of the
difference."""

from collections.abc import Callable, Sequence

import numpy as np

from .bootstrap import bootstrap_samples, percentile_interval
from .ensemble_gaps import has_gaps
from .metrics import METRICS, evaluate_predictions, paired_bootstrap, plcc, srocc

SIGNIFICANCE = 0.05
DECIDING_RESAMPLES = 100
"""With fewer the p-value is too coarse to call anything significant or not."""


def score_columns(
    columns: Sequence[np.ndarray], labels: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> list[dict]:
    """For each column of predictions (float64 [rows]) the content of `evaluate_predictions`: metrics and `ci95`.

    Complete columns are scored on the same resamples, a column with NaN on the rows where it has a value; undefined
    numbers are None.
    """
    has_value = [~np.isnan(column) for column in columns]
    complete = [at for at, rows in enumerate(has_value) if rows.all()]
    results = [
        evaluate_predictions(column[rows], labels[rows], resamples=0 if at in complete else resamples, seed=seed)
        for at, (column, rows) in enumerate(zip(columns, has_value, strict=True))
    ]
    if resamples and complete:
        samples = bootstrap_samples(np.stack([columns[at] for at in complete]), labels, resamples=resamples, seed=seed)
        for at, result in enumerate(results[at] for at in complete):
            intervals = {name: percentile_interval(samples[name][at], 0.95) for name in METRICS}
            result["ci95"] = {name: [_or_none(bound) for bound in interval] for name, interval in intervals.items()}
    return results


def member_correlations(used: np.ndarray, *, ranks: bool = True) -> dict:
    """Pairwise correlations between members: {"plcc": [[...]], "srocc": [[...]] or None, "rows": number used}.

    Each a symmetric list of lists; None where a member is constant. Without `ranks` SROCC is left out. `used`: float64
    [members, rows]; with NaN in it every pair is compared on the rows both have.
    """
    if has_gaps(used):
        return {
            "plcc": _pairwise(used, plcc),
            "srocc": _pairwise(used, srocc) if ranks else None,
            "rows": used.shape[1],
        }
    rank_correlations = None
    if ranks:
        from scipy.stats import rankdata

        rank_correlations = _correlations(np.stack([rankdata(member) for member in used]))
    return {"plcc": _correlations(used), "srocc": rank_correlations, "rows": used.shape[1]}


def leave_one_out(
    scores_without: Callable[[int], np.ndarray | None], members: int, labels: np.ndarray, ensemble: np.ndarray
) -> list[float | None]:
    """Gain of each member: final score of the ensemble, float64 [rows], minus that of the ensemble without it.

    `scores_without(member)` gives the predictions of the ensemble of the others, float64 [rows], or None where there is
    none; the gain is None then. Rows where it is NaN, as no other member has a value, count on neither side.
    """
    gains = []
    for member in range(members):
        scores = scores_without(member) if members > 1 else None
        if scores is None:
            gains.append(None)
            continue
        rows = ~np.isnan(scores)
        whole, without = (
            evaluate_predictions(some[rows], labels[rows], resamples=0)["final_score"] for some in (ensemble, scores)
        )
        gains.append(None if whole is None or without is None else whole - without)
    return gains


def gain_over_best(
    ensemble: np.ndarray,
    members: np.ndarray,
    names: Sequence[str],
    scores: Sequence[dict],
    labels: np.ndarray,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict | None:
    """The ensemble against the member with the highest final score: difference, interval, p-value, on the rows where that
    member has a value.

    The best member is picked with knowledge of the labels, which favours it: the comparison is on the careful side.
    `significant` is p < 0.05, and None with fewer than `DECIDING_RESAMPLES`: the smallest possible p is
    2 / (1 + resamples). None where no member has a score or no resamples are wanted.
    """
    known = [at for at, score in enumerate(scores) if score["final_score"] is not None]
    if not known or not resamples:
        return None
    best = max(known, key=lambda at: scores[at]["final_score"])
    rows = ~np.isnan(members[best])
    difference = paired_bootstrap(ensemble[rows], members[best][rows], labels[rows], resamples=resamples, seed=seed)
    low, high = _or_none(difference.low), _or_none(difference.high)
    return {
        "best_member": names[best],
        "metric": difference.metric,
        "difference": _or_none(difference.difference),
        "ci95": [low, high],
        "p_value": _or_none(difference.p_value),
        "significant": bool(difference.p_value < SIGNIFICANCE) if resamples >= DECIDING_RESAMPLES else None,
        "resamples": difference.resamples,
    }


def _correlations(rows: np.ndarray) -> list[list[float | None]]:
    centred = rows - rows.mean(axis=1, keepdims=True)
    lengths = np.sqrt(np.einsum("mr,mr->m", centred, centred))
    constant = np.ptp(rows, axis=1) == 0
    matrix = np.clip(centred @ centred.T / np.outer(*[np.where(constant, 1.0, lengths)] * 2), -1.0, 1.0)
    np.fill_diagonal(matrix, 1.0)
    return [
        [None if constant[i] or constant[j] else float(matrix[i, j]) for j in range(len(rows))]
        for i in range(len(rows))
    ]


def _pairwise(used: np.ndarray, correlation: Callable) -> list[list[float | None]]:
    matrix: list[list[float | None]] = [[None] * len(used) for _ in used]
    for i, one in enumerate(used):
        for j, other in enumerate(used[: i + 1]):
            both = ~(np.isnan(one) | np.isnan(other))
            matrix[i][j] = matrix[j][i] = _or_none(correlation(one[both], other[both]))
    return matrix


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
