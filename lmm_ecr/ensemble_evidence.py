"""Is the ensemble better than its members? Scores with intervals, correlations, gains, and the test of the
difference."""

from collections.abc import Callable, Sequence

import numpy as np

from .bootstrap import bootstrap_samples, percentile_interval
from .metrics import METRICS, evaluate_predictions, paired_bootstrap

CORRELATION_ROWS = 100_000
"""Correlations between members and their spreads use at most about this many rows, evenly spaced over the table."""


def score_columns(
    columns: Sequence[np.ndarray], labels: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> list[dict]:
    """For each column of predictions (float64 [rows]) the content of `evaluate_predictions`: metrics and `ci95`.

    All columns are scored on the same resamples; undefined numbers are None.
    """
    results = [evaluate_predictions(column, labels, resamples=0) for column in columns]
    if resamples:
        samples = bootstrap_samples(np.stack(columns), labels, resamples=resamples, seed=seed)
        for at, result in enumerate(results):
            intervals = {name: percentile_interval(samples[name][at], 0.95) for name in METRICS}
            result["ci95"] = {name: [_or_none(bound) for bound in interval] for name, interval in intervals.items()}
    return results


def evenly_spaced(values: np.ndarray) -> np.ndarray:
    """At most about `CORRELATION_ROWS` of the rows, the last axis of `values`; a copy where some are left out."""
    step = max(1, -(-values.shape[-1] // CORRELATION_ROWS))
    return values if step == 1 else values[..., ::step].copy()


def member_correlations(used: np.ndarray, *, ranks: bool = True) -> dict:
    """Pairwise correlations between members: {"plcc": [[...]], "srocc": [[...]] or None, "rows": number used}.

    Each a symmetric list of lists; None where a member is constant. Without `ranks` SROCC is left out. `used`: float64
    [members, rows].
    """
    rank_correlations = None
    if ranks:
        from scipy.stats import rankdata

        rank_correlations = _correlations(np.stack([rankdata(member) for member in used]))
    return {"plcc": _correlations(used), "srocc": rank_correlations, "rows": used.shape[1]}


def leave_one_out(
    scores_without: Callable[[int], np.ndarray | None], members: int, labels: np.ndarray, final_score: float | None
) -> list[float | None]:
    """Gain of each member: final score of the ensemble minus that of the ensemble without it.

    `scores_without(member)` gives the predictions of the ensemble of the others, float64 [rows], or None where there is
    none; the gain is None then.
    """
    gains = []
    for member in range(members):
        scores = scores_without(member) if members > 1 and final_score is not None else None
        without = None if scores is None else evaluate_predictions(scores, labels, resamples=0)["final_score"]
        gains.append(None if without is None else final_score - without)
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
    """The ensemble against the member with the highest final score on these very rows: difference, interval, p-value.

    The best member is picked with knowledge of the labels, which favours it: the comparison is on the careful side.
    None where no member has a score or no resamples are wanted.
    """
    known = [at for at, score in enumerate(scores) if score["final_score"] is not None]
    if not known or not resamples:
        return None
    best = max(known, key=lambda at: scores[at]["final_score"])
    difference = paired_bootstrap(ensemble, members[best], labels, resamples=resamples, seed=seed)
    low, high = _or_none(difference.low), _or_none(difference.high)
    return {
        "best_member": names[best],
        "metric": difference.metric,
        "difference": _or_none(difference.difference),
        "ci95": [low, high],
        "p_value": _or_none(difference.p_value),
        "significant": bool(low is not None and (low > 0 or high < 0)),
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


def _or_none(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
