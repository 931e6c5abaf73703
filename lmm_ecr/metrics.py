"""How well predictions order and match the labels: SROCC, PLCC, KRCC, RMSE and the challenge's final score.

All functions take two vectors of the same length (anything numpy can turn into float64 [n]) and compute in float64.

- A NaN or infinite number is a DataError: it must be noticed, never averaged over.
- Fewer than 2 rows, or a constant vector: a correlation is undefined and the result is NaN, without a warning. (Scores
  that are all equal order nothing; calling that 0 would hide a collapsed model.) RMSE needs one row.
- Ties: SROCC gives equal values the mean of their ranks; KRCC is tau-b, which corrects for ties on both sides.
- Rows are summed in a canonical order, so that permuting them changes no bit of the result.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .bootstrap import EXACT_ROWS, KRCC_EXACT_ROWS, bootstrap_samples, percentile_interval
from .errors import DataError
from .logistic import LogisticFit, fit_logistic

__all__ = [
    "EXACT_ROWS",
    "KRCC_EXACT_ROWS",
    "METRICS",
    "LogisticFit",
    "PairedDifference",
    "bootstrap_intervals",
    "evaluate_predictions",
    "final_score",
    "krcc",
    "paired_bootstrap",
    "plcc",
    "plcc_logistic",
    "rmse",
    "srocc",
]

METRICS = ("srocc", "plcc", "krcc", "rmse", "final_score")


def srocc(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Spearman's rank correlation: Pearson's correlation of the mid-ranks. In [-1, 1] or NaN."""
    from scipy.stats import rankdata

    x, y = _pair(predictions, labels)
    return _pearson(rankdata(x), rankdata(y)) if len(x) else float("nan")


def plcc(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Pearson's linear correlation of the raw values (no mapping is fitted first). In [-1, 1] or NaN."""
    return _pearson(*_pair(predictions, labels))


def plcc_logistic(
    predictions: Sequence[float], labels: Sequence[float], parameters: int = 5, *, scale: float = 100.0
) -> LogisticFit:
    """PLCC and RMSE after the 4- or 5-parameter logistic mapping (see `lmm_ecr.logistic.fit_logistic`).

    `scale` = 100 is for values in [0, 1]; give 1 for values that are in percent.
    """
    return fit_logistic(*_pair(predictions, labels), parameters=parameters, scale=scale)


def krcc(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Kendall's tau-b: (C - D) / sqrt((P - Tx)(P - Ty)), P = n(n-1)/2 pairs, C concordant, D discordant, Tx and Ty tied
    in one vector. In [-1, 1] or NaN. O(n log n)."""
    from scipy.stats import kendalltau

    x, y = _pair(predictions, labels)
    if _constant(x) or _constant(y):
        return float("nan")
    return float(kendalltau(x, y, variant="b").statistic)


def rmse(predictions: Sequence[float], labels: Sequence[float]) -> float:
    """Root of the mean squared difference, in the unit of the labels. NaN only for zero rows."""
    x, y = _pair(predictions, labels)
    return float(np.sqrt(np.mean((x - y) ** 2))) if len(x) else float("nan")


def final_score(srocc: float, plcc: float) -> float:
    """Score of the VQualA 2025 engagement challenge: 0.6 SROCC + 0.4 PLCC."""
    return 0.6 * srocc + 0.4 * plcc


def bootstrap_intervals(
    predictions: Sequence[float],
    labels: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    metrics: Sequence[str] = METRICS,
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals (Efron 1979) of the chosen metrics: name -> (low, high).

    Rows are resampled as pairs. Resamples in which a metric is undefined (a constant resample of a tiny table) are left
    out; where they are more than 10 %, and for fewer than two rows, the interval is (NaN, NaN). Above `EXACT_ROWS` rows
    (for KRCC above `KRCC_EXACT_ROWS`) the interval comes from smaller resamples, scaled (see `lmm_ecr.bootstrap`), so
    that the time is bounded. Depends on the seed and the set of rows only.
    """
    _check_confidence(confidence)
    x, y = _pair(predictions, labels)
    if len(x) < 2:
        return dict.fromkeys(metrics, (float("nan"), float("nan")))
    samples = bootstrap_samples(x, y, resamples=resamples, seed=seed, krcc="krcc" in metrics)
    return {name: percentile_interval(samples[name][0], confidence) for name in metrics}


@dataclass(frozen=True)
class PairedDifference:
    """metric(a) - metric(b) on the same rows, with its interval. `p_value` is two-sided (see `paired_bootstrap`)."""

    metric: str
    difference: float
    low: float
    high: float
    p_value: float
    confidence: float
    resamples: int


def paired_bootstrap(
    predictions_a: Sequence[float],
    predictions_b: Sequence[float],
    labels: Sequence[float],
    *,
    metric: str = "final_score",
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> PairedDifference:
    """Is a better than b? Both are scored on the same resamples, so that what they share cancels.

    p = 2 min(1 + #(d* <= 0), 1 + #(d* >= 0)) / (1 + resamples), at most 1; the smallest possible value is
    2 / (1 + resamples). Identical predictions give difference 0 and p = 1; an undefined difference gives NaN.
    """
    _check_confidence(confidence)
    if metric not in METRICS:
        raise ValueError(f"metric is {metric!r}, not one of {', '.join(METRICS)}")
    a, y = _checked(predictions_a, labels)
    b, _ = _checked(predictions_b, labels)
    difference = _point(a, y)[metric] - _point(b, y)[metric] if len(y) else float("nan")
    if not np.isfinite(difference):
        nan = float("nan")
        return PairedDifference(metric, nan, nan, nan, nan, confidence, resamples)
    samples = bootstrap_samples(np.stack([a, b]), y, resamples=resamples, seed=seed, krcc=metric == "krcc")[metric]
    differences = samples[0] - samples[1]
    low, high = percentile_interval(differences, confidence)
    defined = differences[np.isfinite(differences)]
    below, above = np.count_nonzero(defined <= 0), np.count_nonzero(defined >= 0)
    p_value = min(1.0, 2.0 * (1 + min(below, above)) / (1 + len(defined)))
    return PairedDifference(metric, difference, low, high, float(p_value), confidence, resamples)


def evaluate_predictions(
    predictions: Sequence[float],
    labels: Sequence[float],
    *,
    confidence: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """The content of `metrics.json["eval"]`: n, the five metrics, and their bootstrap intervals under `ci95`.

    `ci95` maps each metric to [low, high] (the key keeps its name if `confidence` is not 0.95). An undefined number is
    None, because JSON has no NaN. `resamples=0` leaves the intervals undefined (quick evaluation during training).
    """
    x, y = _pair(predictions, labels)
    values = _point(x, y)
    if resamples:
        intervals: Mapping = bootstrap_intervals(x, y, confidence=confidence, resamples=resamples, seed=seed)
    else:
        intervals = dict.fromkeys(METRICS, (float("nan"), float("nan")))
    return {
        "n": len(x),
        **{name: _json_number(value) for name, value in values.items()},
        "ci95": {name: [_json_number(bound) for bound in intervals[name]] for name in METRICS},
    }


def _point(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    rank, linear = srocc(x, y), plcc(x, y)
    return {
        "srocc": rank,
        "plcc": linear,
        "krcc": krcc(x, y),
        "rmse": rmse(x, y),
        "final_score": final_score(rank, linear),
    }


def _pair(predictions: Sequence[float], labels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [n], checked and in canonical order (by label, then prediction)."""
    x, y = _checked(predictions, labels)
    order = np.lexsort((x, y))
    return x[order], y[order]


def _checked(predictions: Sequence[float], labels: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(predictions, np.float64), np.asarray(labels, np.float64)
    if x.ndim != 1 or x.shape != y.shape:
        raise ValueError(f"predictions {x.shape} and labels {y.shape} must be vectors of the same length")
    for name, values in (("prediction", x), ("label", y)):
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            first = f"the first is {values[bad[0]]} at position {bad[0]}"
            raise DataError(f"{len(bad)} of {len(values)} {name}s are not finite; {first}")
    return x, y


def _constant(values: np.ndarray) -> bool:
    return len(values) < 2 or values.min() == values.max()


def _pearson(x: np.ndarray, y: np.ndarray) -> float:
    if _constant(x) or _constant(y):
        return float("nan")
    # Dividing by the largest deviation first keeps squares of tiny or huge values from under- or overflowing.
    x, y = x - x.mean(), y - y.mean()
    x, y = x / np.abs(x).max(), y / np.abs(y).max()
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0))


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}, not between 0 and 1 (0.95 for 95 %)")


def _json_number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
