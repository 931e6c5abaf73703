"""PLCC and RMSE after the logistic mapping customary in video quality assessment.

A quality model may be right up to a monotone bend of its scale, so the field fits a sigmoid from predictions to labels
and reports PLCC and RMSE after it. The least-squares surface has several minima; published numbers are those reached
from a customary starting point, and so are these. Other starting points are used only where that one fails.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

MAX_FIT_ROWS = 20_000  # a larger table is fitted on so many rows, evenly spaced in the order of the predictions
MAX_EVALUATIONS = 2_000  # of the function, from the customary start; the crawl after that moves the fourth digit
STOPPED = f"stopped after {MAX_EVALUATIONS} evaluations, before full convergence"  # a note of LogisticFit
MAX_STEPS = 200  # for each of the other starts


@dataclass(frozen=True)
class LogisticFit:
    """plcc, rmse: after the mapping, rmse in the unit of the labels; NaN where undefined. parameters: b1, b2, ... for
    predictions and labels times `scale`. converged: the customary start led to the minimum. note: what happened, in
    words, where it did not (empty otherwise)."""

    plcc: float
    rmse: float
    parameters: tuple[float, ...]
    converged: bool
    note: str


def logistic4(x: np.ndarray, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
    """b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)): VQEG final report (2000), monotone."""
    from scipy.special import expit

    return b2 + (b1 - b2) * expit((x - b3) / max(abs(b4), 1e-12))


def logistic5(x: np.ndarray, b1: float, b2: float, b3: float, b4: float, b5: float) -> np.ndarray:
    """b1 (1/2 - 1 / (1 + exp(b2 (x - b3)))) + b4 x + b5: Sheikh, Sabir and Bovik (2006); need not be monotone."""
    from scipy.special import expit

    return b1 * (0.5 - expit(-b2 * (x - b3))) + b4 * x + b5


def fit_logistic(
    predictions: np.ndarray, labels: np.ndarray, *, parameters: int = 5, scale: float = 100.0
) -> LogisticFit:
    """Fit `logistic4` or `logistic5` from predictions to labels (float64 [n], finite) by least squares.

    scale: both are multiplied by it first, because the customary starting point of the 5-parameter form, (10, 0,
    mean prediction, 0.1, 0.1), is meant for labels up to 100; use 1 for data that are already in percent. The number of
    function evaluations is bounded, so the fit always ends. Where the customary start leads to a fit worse than a
    straight line, several others are tried within bounds, and if none does better the straight line
    stands in; `note` says so. Fewer rows than parameters: a straight line. A constant vector: NaN.
    """
    if parameters not in (4, 5):
        raise ValueError(f"parameters is {parameters}; the field uses 4 or 5")
    x, y = np.asarray(predictions, np.float64) * scale, np.asarray(labels, np.float64) * scale
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    if len(x) < 2 or x[0] == x[-1] or y.min() == y.max():
        return LogisticFit(float("nan"), float("nan"), (), False, "undefined: constant values or fewer than two rows")
    slope, offset = np.polyfit(x, y, 1)
    if len(x) <= parameters:
        return _result(x, y, slope * x + offset, (slope, offset), scale, "straight line: not enough rows for the fit")
    some = np.unique(np.linspace(0, len(x) - 1, min(len(x), MAX_FIT_ROWS)).astype(int))
    fit_x, fit_y = x[some], y[some]
    # The 4-parameter form does not contain the line, so it may lose to it by a little without having failed.
    acceptable = np.sum((slope * fit_x + offset - fit_y) ** 2) * (1.000001 if parameters == 5 else 1.05)
    function = logistic5 if parameters == 5 else logistic4
    best, converged = _customary_fit(function, fit_x, fit_y)
    if np.isfinite(best).all() and _error(function, best, fit_x, fit_y) <= acceptable:
        return _result(x, y, function(x, *best), best, scale, "" if converged else STOPPED)
    best = _bounded_fit(function, fit_x, fit_y)
    if _error(function, best, fit_x, fit_y) <= acceptable:
        note = "the customary starting point failed; the best of several others is given"
        return _result(x, y, function(x, *best), best, scale, note)
    note = "straight line: no starting point of the logistic fit did better"
    return _result(x, y, slope * x + offset, (slope, offset), scale, note)


def _customary_fit(function: Callable, x: np.ndarray, y: np.ndarray) -> tuple[tuple[float, ...], bool]:
    """Parameters and whether the search (Levenberg-Marquardt, as in the reference) converged."""
    from scipy.optimize import leastsq

    if function is logistic5:
        start = [10.0, 0.0, x.mean(), 0.1, 0.1]
    else:
        start = [y.max(), y.min(), x.mean(), x.std() / 4]
    found, _, _, _, status = leastsq(lambda b: function(x, *b) - y, start, maxfev=MAX_EVALUATIONS, full_output=True)
    return tuple(float(b) for b in found), status in (1, 2, 3, 4)


def _bounded_fit(function: Callable, x: np.ndarray, y: np.ndarray) -> tuple[float, ...]:
    """Best of several starts: found in standardised units (where bounds mean something), returned in those of x, y."""
    from scipy.optimize import least_squares

    mean_x, std_x, mean_y, std_y = x.mean(), x.std(), y.mean(), y.std()
    u, v = (x - mean_x) / std_x, (y - mean_y) / std_y
    sign = 1.0 if u @ v >= 0 else -1.0
    if function is logistic5:
        starts = [(2.0 * sign, steep, middle, 0.1, 0.0) for steep in (0.5, 2.0) for middle in (-1.0, 0.0, 1.0)]
        limits = np.array([100.0, 50.0, 5.0, 50.0, 50.0])
        bounds = (-limits, limits)
    else:
        starts = [(2 * sign, -2 * sign, middle, width) for width in (0.3, 1.0) for middle in (-1.0, 0.0, 1.0)]
        limits = np.array([100.0, 100.0, 5.0, 50.0])
        bounds = (np.append(-limits[:3], 0.02), limits)
    fits = [least_squares(lambda b: function(u, *b) - v, s, bounds=bounds, max_nfev=MAX_STEPS) for s in starts]
    b = min(fits, key=lambda fit: fit.cost).x
    if function is logistic5:
        line = b[3] * std_y / std_x
        back = (b[0] * std_y, b[1] / std_x, b[2] * std_x + mean_x, line, b[4] * std_y + mean_y - line * mean_x)
    else:
        back = (b[0] * std_y + mean_y, b[1] * std_y + mean_y, b[2] * std_x + mean_x, b[3] * std_x)
    return tuple(float(value) for value in back)


def _error(function: Callable, parameters: Sequence[float], x: np.ndarray, y: np.ndarray) -> float:
    return float(np.sum((function(x, *parameters) - y) ** 2))


def _result(
    x: np.ndarray, y: np.ndarray, mapped: np.ndarray, parameters: Sequence[float], scale: float, note: str
) -> LogisticFit:
    from .metrics import plcc, rmse

    correlation = plcc(mapped, y)
    if np.isnan(correlation):  # uncorrelated vectors: the best mapping is a constant, which explains nothing
        correlation = 0.0
    return LogisticFit(correlation, rmse(mapped, y) / scale, tuple(float(b) for b in parameters), not note, note)
