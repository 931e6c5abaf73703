"""Metrics of an evaluation during training, and alarms when predictions are of no use."""

from collections.abc import Sequence

import numpy as np

from ..metrics import final_score, krcc, plcc, rmse, srocc

COLLAPSE_RATIO = 0.1  # prediction spread below this share of the label spread counts as collapsed
TIE_SHARE = 0.5  # more than this share of equal predictions costs rank correlation
WORST = {"srocc": -1.0, "plcc": -1.0, "krcc": -1.0, "final_score": -1.0}


def regression_metrics(
    predictions: np.ndarray, labels: np.ndarray, targets: Sequence[str]
) -> tuple[dict[str, float], list[str]]:
    """Metrics per target and alarms in words. predictions, labels: float64 [rows, targets], NaN labels are left out.

    The first target's metrics have plain names (srocc, ...), the others are prefixed with their target (NAWP_srocc). A
    correlation that is not defined (constant predictions) counts as -1, the worst value, so that such a model never
    becomes the best; the alarm says so.
    """
    metrics: dict[str, float] = {}
    alarms: list[str] = []
    for column, name in enumerate(targets):
        known = ~np.isnan(labels[:, column])
        p, y = predictions[known, column], labels[known, column]
        prefix = "" if column == 0 else f"{name}_"
        values = {**WORST, "rmse": float("nan")}
        alarm = prediction_alarm(p, y)
        if alarm:
            alarms.append(f"{name}: {alarm}")
        if len(p) and np.isfinite(p).all():
            values["rmse"] = rmse(p, y)
            values.update(_defined({"srocc": srocc(p, y), "plcc": plcc(p, y), "krcc": krcc(p, y)}))
            if values["srocc"] > -1 or values["plcc"] > -1:
                values["final_score"] = final_score(values["srocc"], values["plcc"])
        metrics.update({prefix + key: value for key, value in values.items()})
    return metrics, alarms


def _defined(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if np.isfinite(value)}


def prediction_alarm(predictions: np.ndarray, labels: np.ndarray) -> str | None:
    """Why these predictions [rows] are of no use as a ranking, or None: NaN, constant, collapsed, or many ties; or why
    the labels [rows] cannot tell."""
    if len(predictions) == 0:
        return "no labelled clip was evaluated"
    broken = np.count_nonzero(~np.isfinite(predictions))
    if broken:
        return f"{broken} of {len(predictions)} predictions are NaN or infinite"
    if len(predictions) < 3:
        return None
    spread, label_spread = np.std(predictions), np.std(labels)
    if np.ptp(labels) == 0:
        return f"all labels equal {labels[0]:.4f}; correlations are undefined and count as -1"
    if np.ptp(predictions) == 0:
        return f"all predictions equal {predictions[0]:.4f}; correlations are undefined and count as -1"
    if spread < COLLAPSE_RATIO * label_spread:
        return f"predictions have collapsed: their spread {spread:.2g} is far below the labels' {label_spread:.2g}"
    ties = 1 - len(np.unique(predictions)) / len(predictions)
    if ties > TIE_SHARE:
        return f"{ties:.0%} of the predictions are ties; was the head run in low precision?"
    return None


def in_row_order(predictions: np.ndarray, rows: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Gathered predictions [gathered, targets] and (row index, readable) [gathered, 2] as (predictions, readable) by row.

    A row that several processes scored (padding of the last batch) counts once.
    """
    values = np.full((num_rows, predictions.shape[1]), np.nan)
    values[rows[:, 0]] = predictions
    readable = np.zeros(num_rows, dtype=bool)
    readable[rows[:, 0]] = rows[:, 1].astype(bool)
    missing = np.setdiff1d(np.arange(num_rows), rows[:, 0])
    if len(missing):
        raise AssertionError(f"{len(missing)} of {num_rows} rows were not evaluated")
    return values, readable
