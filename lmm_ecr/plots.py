"""Pictures of an evaluation, drawn with matplotlib's objects (no pyplot, no global state, safe in any thread)."""

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .calibration import Reliability, reliability
from .errors import ConfigError
from .files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KINDS = ("png", "svg", "pdf")
POINTS = 3000  # more rows than this are drawn as a density, not as points
INK, MUTED, GRID, BLUE = "#1f2933", "#65717e", "#e4e8ec", "#2563ae"
_NAMES = {"final_score": "final", "srocc": "SROCC", "plcc": "PLCC", "krcc": "KRCC", "rmse": "RMSE"}


@dataclass(frozen=True)
class Panel:
    """One prediction file: float64 [n] predictions and labels, a title, and its `evaluate_predictions` dict or None."""

    predictions: np.ndarray
    labels: np.ndarray
    title: str = ""
    metrics: Mapping | None = None


def scatter_plot(
    predictions: Sequence[float],
    labels: Sequence[float],
    path: str | os.PathLike,
    title: str = "",
    metrics: Mapping | None = None,
) -> None:
    """Write label against prediction as an image; the suffix of `path` says which kind (png, svg, pdf).

    metrics: the dict of `evaluate_predictions`, printed beside the points. Predictions and labels are float64 [n].
    """
    save_figure(scatter_figure([Panel(np.asarray(predictions), np.asarray(labels), title, metrics)]), path)


def reliability_plot(
    predictions: Sequence[float], labels: Sequence[float], path: str | os.PathLike, title: str = "", bins: int = 10
) -> None:
    """Write the reliability curve (mean label of each bin with its 95 % interval) as an image."""
    save_figure(reliability_figure(reliability(predictions, labels, bins), np.asarray(predictions), title), path)


def scatter_figure(panels: Sequence[Panel]) -> "Figure":
    """Label against prediction, one square panel per file, up to three in a row, all with the same axes."""
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = _figure(5.2 * columns, 6.1 * rows)
    low, high = _limits([values for panel in panels for values in (panel.predictions, panel.labels)])
    for place, panel in enumerate(panels):
        axes = figure.add_subplot(rows, columns, place + 1)
        _style(axes, panel.title, title_pad=50 if panel.metrics is not None else 10)
        axes.plot([low, high], [low, high], color=INK, linewidth=1, dashes=(4, 3), zorder=3)
        if len(panel.predictions) > POINTS:
            cells = axes.hexbin(
                panel.predictions,
                panel.labels,
                gridsize=55,
                extent=(low, high, low, high),
                mincnt=1,
                bins="log",
                cmap="Blues",
                linewidths=0.1,
                zorder=2,
            )
            cells.set_clim(0.5, None)  # the palest blue would vanish on white
        else:
            size = float(np.clip(4000 / max(len(panel.predictions), 1), 7, 40))
            axes.scatter(panel.predictions, panel.labels, s=size, color=BLUE, alpha=0.45, linewidths=0, zorder=2)
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="prediction", ylabel="label", aspect="equal")
        if panel.metrics is not None:
            text = axes.text(0, 1.02, _metric_lines(panel.metrics), transform=axes.transAxes, va="bottom")
            text.set(fontsize=8, family="monospace", color=INK, linespacing=1.4)
    return figure


def reliability_figure(curve: Reliability, predictions: np.ndarray, title: str = "") -> "Figure":
    """Mean label against mean prediction per bin with 95 % intervals, and below it how the predictions are spread."""
    figure = _figure(5.2, 5.5)
    grid = figure.add_gridspec(2, 1, height_ratios=(5, 1), hspace=0.06)
    upper, lower = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    _style(upper, title)
    low, high = _limits([predictions, curve.mean_label])
    upper.plot([low, high], [low, high], color=MUTED, linewidth=1, dashes=(4, 3), zorder=1, label="perfect calibration")
    half = 1.96 * np.nan_to_num(curve.standard_error)
    upper.errorbar(
        curve.mean_prediction,
        curve.mean_label,
        yerr=half,
        color=BLUE,
        marker="o",
        markersize=5,
        linewidth=1.6,
        elinewidth=1.2,
        capsize=2.5,
        zorder=3,
        label="mean label of a bin, 95 % interval",
    )
    upper.set(xlim=(low, high), ylim=(low, high), ylabel="mean label")
    upper.tick_params(labelbottom=False)
    upper.legend(loc="upper left", fontsize=9, frameon=False)
    text = upper.text(
        0.97, 0.04, f"calibration error {curve.error:.4f}\nbias {curve.bias:+.4f}", ha="right", va="bottom"
    )
    text.set(transform=upper.transAxes, fontsize=9, family="monospace", color=INK)
    _style(lower)
    lower.hist(predictions, bins=40, range=(low, high), color=BLUE, alpha=0.75)
    lower.set(xlim=(low, high), xlabel="prediction", yticks=[])
    lower.spines["left"].set_visible(False)
    lower.grid(False)
    return figure


def plot_kind(path: str | os.PathLike) -> str:
    """The suffix of a plot's file name; ConfigError, naming the known ones, for a kind that is not written."""
    kind = os.path.splitext(os.fspath(path))[1].lower().removeprefix(".")
    if kind not in KINDS:
        raise ConfigError(f"{path}: a plot is written as {', '.join(KINDS)}; give a file name with such a suffix")
    return kind


def save_figure(figure: "Figure", path: str | os.PathLike) -> None:
    """Write a figure, whole or not at all, in the kind its suffix names (see `plot_kind`)."""
    content = figure_bytes(figure, plot_kind(path))
    with atomic_write(path, "wb") as stream:
        stream.write(content)


def figure_bytes(figure: "Figure", kind: str = "png", dpi: int = 150) -> bytes:
    """The figure as a file in memory. Equal figures give equal bytes (no date, no random ids)."""
    import matplotlib

    buffer = io.BytesIO()
    stamp = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]
    with matplotlib.rc_context({"svg.hashsalt": "lmm_ecr"}):
        figure.savefig(buffer, format=kind, dpi=dpi, metadata={stamp: None}, bbox_inches="tight", pad_inches=0.08)
    return buffer.getvalue()


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _style(axes: "Axes", title: str = "", title_pad: float = 10) -> None:
    axes.set_axisbelow(True)
    axes.grid(color=GRID, linewidth=0.8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    if title:
        # parse_math: a file name with dollar signs is a name, not a formula
        axes.set_title(_shortened(title, 48), fontsize=11, color=INK, loc="left", pad=title_pad, parse_math=False)


def _limits(vectors: Sequence[np.ndarray]) -> tuple[float, float]:
    """[0, 1] with a margin, wider only if some value lies outside."""
    filled = [vector for vector in vectors if len(vector)]
    low = min([0.0, *(float(np.min(vector)) for vector in filled)])
    high = max([1.0, *(float(np.max(vector)) for vector in filled)])
    margin = 0.02 * (high - low)
    return low - margin, high + margin


def _metric_lines(metrics: Mapping) -> str:
    """Three lines of two metrics each, with their intervals, in columns."""
    cells = []
    for name, label in _NAMES.items():
        value, bounds = metrics.get(name), metrics.get("ci95", {}).get(name, (None, None))
        cell = f"{label:<5} " + ("n/a" if value is None else f"{value:.3f}")
        cells.append(cell + ("" if None in bounds else f" [{bounds[0]:.3f}, {bounds[1]:.3f}]"))
    cells.append(f"n     {metrics['n']:,}")
    return "\n".join(f"{left:<28}{right}" for left, right in zip(cells[::2], cells[1::2], strict=True))


def _shortened(text: str, length: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
