"""The evaluation as text tables: coloured in a terminal, plain when piped, readable at 80 columns."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bootstrap import resampling_notes
from .evaluate import Evaluation, example_ids
from .logistic import STOPPED

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NAMES = {"srocc": "SROCC", "plcc": "PLCC", "krcc": "KRCC", "rmse": "RMSE", "final_score": "final"}


def print_evaluation(evaluation: Evaluation, console: "Console | None" = None, *, to_stderr: bool = False) -> None:
    """Print metrics, the comparison of several files, segments and notes, by default on standard output."""
    from rich.console import Console

    console = console or Console(file=sys.stderr if to_stderr else sys.stdout, highlight=False)
    percent = f"{100 * evaluation.confidence:g} %"
    console.print(
        f"{len(evaluation.labels):,} rows, labels from {evaluation.label_table.path}", markup=False, soft_wrap=True
    )
    if len(evaluation.files) == 1:
        _print_one(evaluation, console, percent)
    else:
        _print_several(evaluation, console, percent)
    for column in evaluation.files[0].segments:
        for file in evaluation.files:
            title = f"by {column}" + (f": {file.name}" if len(evaluation.files) > 1 else "")
            table = _table(console, ["segment", "n", "SROCC", "PLCC", "RMSE", "bias", "final"], title)
            for part in file.segments[column]:
                numbers = [_number(part[key]) for key in ("srocc", "plcc", "rmse")]
                final = _with_interval(part["final_score"], part["ci95"]["final_score"])
                _add(table, part["name"], f"{part['n']:,}", *numbers, f"{part['bias']:+.4f}", final)
            console.print(table)
    console.print()
    for line in notes(evaluation):
        console.print(f"note: {line}", markup=False, soft_wrap=True)


def notes(evaluation: Evaluation) -> list[str]:
    """What a reader of the numbers must know, one sentence each."""
    n, lines = len(evaluation.labels), []
    for file in evaluation.files:
        match = file.match
        for count, examples, what in (
            (match.unlabelled, match.unlabelled_examples, f"of its ids have no label in {evaluation.label_table.path}"),
            (match.unpredicted, match.unpredicted_examples, "labels have no prediction"),
        ):
            if count:
                lines.append(f"{file.table.path}: {count:,} {what} (left out; {example_ids(examples, count)})")
        lines += [
            f"{file.name}: {count}-parameter logistic mapping: {fit.note}"
            for count, fit in file.logistic.items()
            if fit.note not in ("", STOPPED)  # stopping early moves no digit that is shown
        ]
    if len(evaluation.files) > 1 and any(len(file.match) != n for file in evaluation.files):
        lines.append(f"all files are evaluated on the {n:,} rows that every one of them predicts")
    return lines + resampling_notes(n) if evaluation.resamples else lines


def _print_one(evaluation: Evaluation, console: "Console", percent: str) -> None:
    file = evaluation.files[0]
    table = _table(console, ["metric", "value", f"{percent} interval"], file.name)
    for key, name in NAMES.items():
        low, high = file.metrics["ci95"][key]
        bounds = "" if low is None else f"{low:.4f} to {high:.4f}"
        _add(table, name, _number(file.metrics[key], 4), bounds, bold=key == "final_score")
    for count, fit in file.logistic.items():
        _add(table, f"PLCC after {count}-parameter logistic", _number(fit.plcc, 4), "")
    _add(table, "calibration error", _number(file.reliability.error, 4), "")
    _add(table, "bias (prediction - label)", f"{file.reliability.bias:+.4f}", "")
    console.print(table)


def _print_several(evaluation: Evaluation, console: "Console", percent: str) -> None:
    table = _table(console, ["file", *NAMES.values()], f"metrics with {percent} intervals")
    for file in evaluation.files:
        cells = [_with_interval(file.metrics[key], file.metrics["ci95"][key]) for key in NAMES]
        _add(table, file.name, *cells, bold=file is evaluation.best)
    console.print(table)
    table = _table(console, ["file", "PLCC log. 4", "log. 5", "calib. error", "bias", "final vs best", "p"], "more")
    for file in evaluation.files:
        fits = [_number(file.logistic[count].plcc) for count in (4, 5)]
        difference = file.against_best
        if difference is not None:
            against = [_with_interval(difference.difference, (difference.low, difference.high), "+")]
            against.append(_number(difference.p_value))
        else:
            against = ["best" if file is evaluation.best else "", ""]
        curve = file.reliability
        _add(
            table, file.name, *fits, _number(curve.error), f"{curve.bias:+.3f}", *against, bold=file is evaluation.best
        )
    console.print(table)


def _table(console: "Console", columns: Sequence[str], title: str) -> "Table":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console.print()
    # Text, not str: names are data and must not be read as markup.
    table = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        title=Text(title),
        title_justify="left",
        title_style="bold" if console.is_terminal else "",
        pad_edge=False,
    )
    for place, name in enumerate(columns):
        table.add_column(name, justify="left" if place == 0 else "right", overflow="fold", no_wrap=place > 0)
    return table


def _add(table: "Table", *cells: str, bold: bool = False) -> None:
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells), style="bold" if bold else None)


def _number(value: float | None, digits: int = 3, sign: str = "") -> str:
    return "n/a" if value is None or value != value else f"{value:{sign}.{digits}f}"


def _with_interval(value: float | None, bounds: Sequence[float | None], sign: str = "") -> str:
    """The value, and below it its interval."""
    low, high = bounds
    text = _number(value, sign=sign)
    if low is None or low != low:
        return text
    return f"{text}\n{_short(low, sign)}{'..' if sign or low < 0 else '-'}{_short(high, sign)}"


def _short(value: float, sign: str) -> str:
    """Three digits without the zero before the point, so that five intervals fit beside each other."""
    return f"{value:{sign}.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:{sign}.2f}"
