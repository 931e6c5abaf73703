"""One self-contained HTML file about an evaluation: opens from disk, loads nothing from the network.

Titles, descriptions, ids and file names are untrusted: the template escapes everything, and the page's own content
security policy forbids scripts and every address but `data:` images.
"""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from . import __version__
from .errors import ConfigError
from .evaluate import Evaluation, FileEvaluation, add_segments
from .evaluation_tables import NAMES, notes
from .files import atomic_write
from .metrics import plcc, srocc
from .plots import Panel, figure_bytes, reliability_figure, scatter_figure
from .predictions import Predictions
from .report_clips import read_thumbnails
from .segments import EMPTY_TEXT

PLOT_DPI = 110
TEXT_LENGTH = 280  # characters of a title or description that are shown


@dataclass(frozen=True)
class Recipe:
    """How the file in focus was made of the others, for the report of an ensemble: (name, weight or None, gain or None) of
    every member, and sentences."""

    members: list[tuple[str, float | None, float | None]]
    lines: list[str]


def useful_segments(labels: Predictions) -> list[str]:
    """What a report breaks down by besides the chosen columns: empty texts and duration if the table has them, label."""
    found = [name for name, column in EMPTY_TEXT.items() if column in labels.extra]
    found += [name for name in ("duration", "Duration") if name in labels.extra]
    return [*found, labels.target]


def check_report(video_dir: str | os.PathLike | None, worst: int = 0) -> None:
    """Complain before the work: ConfigError for a directory of clips that is none, or less than no errors to list."""
    if video_dir is not None and not Path(video_dir).is_dir():
        raise ConfigError(f"--video-dir {video_dir}: no such directory")
    if worst < 0:
        raise ConfigError(f"--worst is {worst}; give 0 (list no errors) or more")


def write_report(
    evaluation: Evaluation,
    output: str | os.PathLike,
    *,
    video_dir: str | os.PathLike | None = None,
    worst: int = 12,
    title: str = "Engagement predictions",
    focus: int | None = None,
    recipe: Recipe | None = None,
) -> None:
    """Write the HTML file, whole or not at all.

    The sections about one file (segments, worst errors) show the one at position `focus`, by default the best. Segments are
    those the evaluation was made with and `useful_segments`. `worst` errors are listed, with pictures if `video_dir` is
    given.
    """
    check_report(video_dir, worst)
    html = render_report(evaluation, video_dir=video_dir, worst=worst, title=title, focus=focus, recipe=recipe)
    with atomic_write(output) as stream:
        stream.write(html)


def render_report(
    evaluation: Evaluation,
    *,
    video_dir: str | os.PathLike | None = None,
    worst: int = 12,
    title: str = "Engagement predictions",
    focus: int | None = None,
    recipe: Recipe | None = None,
) -> str:
    """The text of the report (see `write_report`)."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lmm_ecr"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "signed": _signed}
    chosen = (evaluation.best or evaluation.files[0]) if focus is None else evaluation.files[focus]
    add_segments(evaluation, useful_segments(evaluation.label_table), [chosen])
    return environment.get_template("report.html").render(
        title=title,
        version=__version__,
        evaluation=evaluation,
        files=evaluation.files,
        focus=chosen,
        recipe=recipe,
        names=NAMES,
        percent=f"{100 * evaluation.confidence:g}",
        plots=[_plots(evaluation, file) for file in sorted(evaluation.files, key=lambda file: file is not chosen)],
        segments=_segments(chosen),
        worst=_worst(evaluation, chosen, worst, Path(video_dir) if video_dir is not None else None),
        correlations=_correlations(evaluation.files),
        notes=notes(evaluation),
    )


def _plots(evaluation: Evaluation, file: FileEvaluation) -> dict:
    scatter = scatter_figure([Panel(file.values, evaluation.labels)])
    curve = reliability_figure(file.reliability, file.values)
    return {"file": file, "scatter": _png(scatter), "reliability": _png(curve)}


def _png(figure) -> str:
    return "data:image/png;base64," + base64.b64encode(figure_bytes(figure, "png", PLOT_DPI)).decode("ascii")


def _segments(file: FileEvaluation) -> list[dict]:
    """Per column its parts, each with the ends of its bias bar in percent of the width (the middle is no bias)."""
    largest = max([abs(part["bias"]) for parts in file.segments.values() for part in parts], default=0.0) or 1.0
    tables = []
    for column, parts in file.segments.items():
        rows = []
        for part in parts:
            end = 50 + 50 * part["bias"] / largest
            rows.append({**part, "bar_left": min(50.0, end), "bar_width": abs(end - 50)})
        tables.append({"column": column, "parts": rows})
    return tables


def _worst(evaluation: Evaluation, file: FileEvaluation, count: int, video_dir: Path | None) -> list[dict]:
    """The rows with the largest errors of `file`, largest first; equal errors in the order of their ids."""
    residuals = file.values - evaluation.labels
    count = min(max(count, 0), len(residuals))
    if not count:
        return []
    # All rows that reach the count-th largest error, so that the choice among equals is by id, not by chance.
    threshold = np.partition(np.abs(residuals), -count)[-count]
    candidates = np.flatnonzero(np.abs(residuals) >= threshold)
    ids = evaluation.ids.take(pa.array(candidates)).to_pylist()
    order = sorted(range(len(candidates)), key=lambda k: (-abs(residuals[candidates[k]]), ids[k]))[:count]
    cards = []
    for k in order:
        row = candidates[k]
        cell = {name: _text(evaluation, name, row) for name in ("Title", "Description", "Video")}
        cards.append(
            {
                "id": ids[k],
                "title": _shortened(cell["Title"]),
                "description": _shortened(cell["Description"]),
                "label": float(evaluation.labels[row]),
                "residual": float(residuals[row]),
                "predictions": [(other.name, float(other.values[row])) for other in evaluation.files],
                "clip": None if video_dir is None else read_thumbnails(video_dir, ids[k], cell["Video"]),
            }
        )
    return cards


def _text(evaluation: Evaluation, column: str, row: int) -> str:
    values = evaluation.label_table.extra.get(column)
    return "" if values is None else str(values[evaluation.rows[row]].as_py() or "")


def _correlations(files: Sequence[FileEvaluation]) -> list[dict]:
    """Per file a row of SROCC and PLCC with every file; empty for a single file."""
    if len(files) < 2:
        return []
    return [
        {
            "name": file.name,
            "cells": [
                None if other is file else (srocc(file.values, other.values), plcc(file.values, other.values))
                for other in files
            ],
        }
        for file in files
    ]


def _shortened(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= TEXT_LENGTH else text[: TEXT_LENGTH - 1] + "…"


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None or value != value else f"{value:.{digits}f}"


def _signed(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None or value != value else f"{value:+.{digits}f}".replace("-", "\u2212")
