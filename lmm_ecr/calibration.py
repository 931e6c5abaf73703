"""Are the scores right as numbers? Reliability curve, recalibration, and intervals with a promised coverage.

A calibration file (JSON, written by `lmm-ecr evaluate --fit-calibration ... --calibration-file FILE`) holds a monotone
map from scores to calibrated scores and the sorted absolute residuals of rows the map was not fitted on:

    {"format": "lmm_ecr.calibration", "version": 1, "target": "ECR", "method": "isotonic" | "logistic" | "identity",
     "fitted_rows": 1200,
     "map": {"x": [...], "y": [...]} (isotonic) | {"slope": a, "intercept": b} (logistic) | {},
     "conformal": {"rows": 1200, "ranks": [1, 2, ...], "residuals": [...]}}
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import ConfigError, DataError
from .files import read_json, write_json

FORMAT, VERSION = "lmm_ecr.calibration", 1
METHODS = ("isotonic", "logistic", "identity")
STORED_RESIDUALS = 2000  # order statistics kept of a larger calibration split; intervals are then rounded outwards
MIN_ROWS = 20  # below, a fitted map says more about chance than about the model
EDGE = 0.01  # the logistic map sees scores drawn this far in from 0 and 1: a score of exactly 0 must not outweigh all


@dataclass(frozen=True)
class Calibration:
    """A monotone map of scores into [0, 1], and residuals for split-conformal intervals.

    method "isotonic": centred isotonic regression (Oron and Flournoy 2017): the pooled blocks of isotonic regression,
    joined by straight lines through their centres, so that order is kept between blocks; constant beyond the outer
    centres. "logistic": expit(slope * logit(s) + intercept), s = 0.01 + 0.98 * score, slope >= 0, fitted as a
    fractional logit (Papke and Wooldridge 1996). "identity": scores as they are, clipped to [0, 1].
    """

    method: str
    target: str
    fitted_rows: int
    parameters: dict[str, list[float] | float]
    conformal_rows: int
    ranks: np.ndarray  # int64 [K], from 1, ascending, the last is conformal_rows
    residuals: np.ndarray  # float64 [K]: the ranks-th smallest absolute residuals

    @classmethod
    def fit(
        cls,
        values: Sequence[float],
        labels: Sequence[float],
        method: str = "isotonic",
        *,
        target: str = "ECR",
        conformal_share: float = 0.5,
        seed: int = 0,
    ) -> "Calibration":
        """Fit on float64 [n] scores and labels in [0, 1] (order of the rows does not matter).

        The rows are split at random (by `seed`): `conformal_share` of them give the residuals, the others the map.
        Residuals of rows the map has seen would be too small and the intervals too narrow. "identity" fits no map,
        so all rows give residuals. Raises DataError for labels outside [0, 1], numbers that are not finite, and fewer
        than `MIN_ROWS` rows on either side of the split.
        """
        check_method(method)
        if not 0 < conformal_share < 1:
            raise ConfigError(f"conformal_share is {conformal_share}, not between 0 and 1")
        x, y = _checked(values, "score"), _checked(labels, "label")
        if x.shape != y.shape:
            raise ValueError(f"{len(x)} scores and {len(y)} labels")
        if len(y) and not (y.min() >= 0 and y.max() <= 1):
            raise DataError(f"labels reach from {y.min()} to {y.max()}; calibration needs labels in [0, 1]")
        order = np.lexsort((y, x))
        x, y = x[order], y[order]
        if method == "identity":
            fit_rows, held_out = np.array([], dtype=np.int64), np.arange(len(x))
        else:
            shuffled = np.random.default_rng(seed).permutation(len(x))
            count = round(len(x) * conformal_share)
            held_out, fit_rows = np.sort(shuffled[:count]), np.sort(shuffled[count:])
        if len(held_out) < MIN_ROWS or (method != "identity" and len(fit_rows) < MIN_ROWS):
            raise DataError(
                f"{len(x)} rows with labels are too few to calibrate: {len(fit_rows)} for the map and {len(held_out)} "
                f"for the intervals, at least {MIN_ROWS} of each are needed"
            )
        fitters = {"isotonic": _fit_isotonic, "logistic": _fit_logistic, "identity": lambda x, y: {}}
        parameters = fitters[method](x[fit_rows], y[fit_rows])
        residuals = np.sort(np.abs(y[held_out] - _apply(method, parameters, x[held_out])))
        n = len(residuals)
        ranks = np.unique(np.linspace(1, n, min(n, STORED_RESIDUALS)).round().astype(np.int64))
        return cls(method, target, len(fit_rows), parameters, n, ranks, residuals[ranks - 1])

    def apply(self, values: Sequence[float]) -> np.ndarray:
        """Calibrated scores, float64 [n] in [0, 1]; never in another order than `values` (ties may appear).

        Raises DataError for numbers that are not finite.
        """
        return _apply(self.method, self.parameters, _checked(values, "score"))

    def half_width(self, level: float) -> float:
        """Half the width of the interval with coverage `level`, before clipping to [0, 1].

        The ceil((n + 1) level)-th smallest of the n absolute residuals (Vovk et al. 2005; Lei et al. 2018), or the next
        larger one that is stored. Raises ConfigError for a level outside (0, 1), or one so high that n residuals
        cannot promise it.
        """
        if not 0 < level < 1:
            raise ConfigError(f"the level of an interval is {level}, not between 0 and 1 (0.9 for 90 %)")
        # 1e-9: (n + 1) * level may come out a hair above a whole number that it equals
        rank = max(1, math.ceil((self.conformal_rows + 1) * level - 1e-9))
        if rank > self.conformal_rows:
            raise ConfigError(
                f"an interval with coverage {level} needs at least {math.ceil(level / (1 - level) - 1e-9)} held-out "
                f"calibration rows, this calibration has {self.conformal_rows}"
            )
        return float(self.residuals[np.searchsorted(self.ranks, rank)])

    def interval(self, values: Sequence[float], level: float) -> tuple[np.ndarray, np.ndarray]:
        """(low, high), each float64 [n] in [0, 1], around the calibrated scores of uncalibrated `values`.

        For clips drawn like the calibration rows, the label lies inside with probability >= `level` on average over
        clips and calibration tables (not for every kind of clip by itself).
        """
        half = self.half_width(level)
        centre = self.apply(values)
        return np.clip(centre - half, 0, 1), np.clip(centre + half, 0, 1)

    def save(self, path: str | os.PathLike) -> None:
        """Write the file described at the top of this module, whole or not at all."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "target": self.target,
            "method": self.method,
            "fitted_rows": self.fitted_rows,
            "map": self.parameters,
            "conformal": {
                "rows": self.conformal_rows,
                "ranks": self.ranks.tolist(),
                "residuals": self.residuals.tolist(),
            },
        }
        write_json(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Calibration":
        """Read a calibration file. Raises ConfigError, naming the file, if it is not one or was altered wrongly."""
        try:
            content = read_json(path)
            if content["format"] != FORMAT or content["version"] != VERSION:
                raise ConfigError(
                    f"{path}: format {content['format']!r} version {content['version']!r}, "
                    f"this program reads {FORMAT!r} version {VERSION}"
                )
            conformal = content["conformal"]
            loaded = cls(
                str(content["method"]),
                str(content["target"]),
                int(content["fitted_rows"]),
                dict(content["map"]),
                int(conformal["rows"]),
                np.asarray(conformal["ranks"], np.int64),
                np.asarray(conformal["residuals"], np.float64),
            )
            loaded._check(path)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        except (DataError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: not a calibration file: {type(error).__name__}: {error}") from error
        return loaded

    def _check(self, path: str | os.PathLike) -> None:
        check_method(self.method)
        if self.method == "isotonic":
            x, y = (np.asarray(self.parameters[key], np.float64) for key in "xy")
            good = len(x) == len(y) > 0 and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()
            good = good and y[0] >= 0 and y[-1] <= 1 and np.isfinite(x).all()
        elif self.method == "logistic":
            good = 0 <= self.parameters["slope"] < math.inf and math.isfinite(self.parameters["intercept"])
        else:
            good = True
        ranks, residuals = self.ranks, self.residuals
        good = (
            good and len(ranks) == len(residuals) > 0 and (np.diff(ranks) > 0).all() and (np.diff(residuals) >= 0).all()
        )
        if not (
            good and ranks[0] == 1 and ranks[-1] == self.conformal_rows and 0 <= residuals[0] <= residuals[-1] <= 1
        ):
            raise ConfigError(f"{path}: the map or the residuals are not monotone or out of range; fit it again")


@dataclass(frozen=True)
class Reliability:
    """Mean score against mean label in bins of equal count. Arrays have one entry per bin, scores ascending.

    error: mean absolute gap of the bins, weighted by count (expected calibration error). bias: mean score minus mean
    label.
    """

    counts: np.ndarray  # int64
    mean_prediction: np.ndarray  # float64
    mean_label: np.ndarray  # float64
    standard_error: np.ndarray  # float64, of mean_label; NaN in a bin of one row
    error: float
    bias: float


def reliability(values: Sequence[float], labels: Sequence[float], bins: int = 10) -> Reliability:
    """Reliability curve of float64 [n] scores and labels. Equal scores share a bin, so bins may be fewer than asked."""
    x, y = _checked(values, "score"), _checked(labels, "label")
    if not len(x):
        empty = np.array([])
        return Reliability(empty.astype(np.int64), empty, empty, empty, float("nan"), float("nan"))
    order = np.lexsort((y, x))
    x, y = x[order], y[order]
    edges = x[np.linspace(0, len(x), bins + 1).astype(int)[1:-1]]
    starts = np.unique(np.concatenate(([0], np.searchsorted(x, edges, side="left"))))
    counts = np.diff(np.append(starts, len(x)))
    mean_x, mean_y = np.add.reduceat(x, starts) / counts, np.add.reduceat(y, starts) / counts
    squares = np.add.reduceat((y - np.repeat(mean_y, counts)) ** 2, starts)
    with np.errstate(invalid="ignore", divide="ignore"):
        standard_error = np.sqrt(squares / (counts - 1) / counts)
    error = float(np.sum(counts * np.abs(mean_x - mean_y)) / len(x))
    return Reliability(counts, mean_x, mean_y, standard_error, error, float(x.mean() - y.mean()))


def _fit_isotonic(x: np.ndarray, y: np.ndarray) -> dict[str, list[float]]:
    from scipy.optimize import isotonic_regression

    distinct, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(place, weights=y) / counts
    blocks = isotonic_regression(means, weights=counts).blocks
    weight = np.add.reduceat(counts.astype(np.float64), blocks[:-1])
    centres = np.add.reduceat(distinct * counts, blocks[:-1]) / weight
    heights = np.add.reduceat(means * counts, blocks[:-1]) / weight
    heights = np.clip(np.maximum.accumulate(heights), 0, 1)
    keep = np.append(True, np.diff(centres) > 0)  # centres of neighbouring floats may round to the same number
    return {"x": centres[keep].tolist(), "y": heights[keep].tolist()}


def _fit_logistic(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    from scipy.optimize import minimize

    z = _logit(x)

    def loss(b: np.ndarray) -> tuple[float, np.ndarray]:
        t = b[0] * z + b[1]
        gap = _expit(t) - y
        return float(np.mean(np.logaddexp(0, t) - y * t)), np.array([np.mean(gap * z), np.mean(gap)])

    fit = minimize(loss, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=[(0.0, 100.0), (-100.0, 100.0)])
    return {"slope": float(fit.x[0]), "intercept": float(fit.x[1])}


def _apply(method: str, parameters: dict, x: np.ndarray) -> np.ndarray:
    if method == "isotonic":
        return np.interp(x, parameters["x"], parameters["y"])
    if method == "logistic":
        return _expit(parameters["slope"] * _logit(x) + parameters["intercept"])
    return np.clip(x, 0.0, 1.0)


def _logit(x: np.ndarray) -> np.ndarray:
    x = EDGE + (1 - 2 * EDGE) * np.clip(x, 0, 1)
    return np.log(x) - np.log1p(-x)


def _expit(t: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * t))


def check_method(method: str) -> None:
    """Raise ConfigError for a name that is not in METHODS."""
    if method not in METHODS:
        raise ConfigError(f"calibration method {method!r}; choose one of {', '.join(METHODS)}")


def _checked(values: Sequence[float], what: str) -> np.ndarray:
    array = np.asarray(values, np.float64)
    if array.ndim != 1:
        raise ValueError(f"{what}s have shape {array.shape}, not one dimension")
    bad = np.flatnonzero(~np.isfinite(array))
    if len(bad):
        raise DataError(f"{what} {bad[0]} is {array[bad[0]]}; all must be finite numbers")
    return array
