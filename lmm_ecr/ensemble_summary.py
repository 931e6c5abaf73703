"""The summary of an ensemble as text: readable at 80 columns in a terminal, plain when written to a file or a pipe."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import IO

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from .bootstrap import resampling_notes

METRICS = {"srocc": "SROCC", "plcc": "PLCC", "krcc": "KRCC", "rmse": "RMSE", "final_score": "final"}
SHOWN_MEMBERS = 8  # a wider correlation table does not fit into 80 columns
NAME_WIDTH = 12  # of the members' names where they have to be folded
COLLAPSED = 0.1  # a member with a smaller share of the typical spread is pointed out


def print_summary(summary: dict, output: str, stream: IO[str]) -> None:
    """Write the summary (as `--json` has it) to `stream`; `output` is the file that was written, or `-`.

    Numbers are never cut off: outside a terminal tables are as wide as they are, in a narrow one intervals take two lines.
    Names are shown as they are, without markup or emoji codes.
    """
    console = _console(stream)
    if not console.is_terminal:
        console = _console(stream, width=max(80, console.width))
    members = summary["members"]
    console.print(_headline(summary))
    for line in [*_missing_lines(summary), *collapsed_members(summary), *identical_members(summary)]:
        console.print(line)
    if summary["ensemble"] is not None:
        _print_table(console, partial(_score_table, summary, console.is_terminal))
        console.print("\n".join(evidence(summary)))
    elif any(member["weight"] is not None for member in members):
        weights = ", ".join(f"{member['name']} {member['weight']:.3f}" for member in members)
        console.print(f"weights: {weights}")
    if len(members) > 1:
        _print_correlations(summary, console)
    if output != "-":
        console.print(f"written to {output}", soft_wrap=True)


def combined_name(base: str, members: Sequence[str]) -> str:
    """What the ensemble is called beside its members: a name that none of them has.

    >>> combined_name("ensemble", ["qwen", "ensemble"])
    'combined ensemble'
    """
    while base in members:
        base = f"combined {base}"
    return base


def _console(stream: IO[str], width: int | None = None) -> Console:
    settings = {} if stream.isatty() else {"no_color": True}
    return Console(file=stream, highlight=False, markup=False, emoji=False, soft_wrap=False, width=width, **settings)


def _print_table(console: Console, build: Callable[[bool, int | None], Table]) -> None:
    """Print the table that `build(split, name_width)` makes, in a width in which no number is cut off.

    split: intervals on two lines; name_width: at most so many columns for names, which are folded then.
    """
    if not console.is_terminal:
        table = build(False, None)
        _console(console.file, max(console.width, _width(console, table))).print(table)
        return
    split = _width(console, build(False, NAME_WIDTH)) > console.width
    least = _width(console, build(split, NAME_WIDTH))
    if least <= console.width:
        console.print(build(split, None))
    else:  # the terminal breaks the lines, which can be read; rich would leave digits out
        _console(console.file, least).print(build(split, NAME_WIDTH))


def _width(console: Console, table: Table) -> int:
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def _headline(summary: dict) -> str:
    count = len(summary["members"])
    text = f"{summary['method']} of {count} file{'s' * (count != 1)}, {summary['n']:,} rows, column {summary['target']}"
    return text + (f", recipe {summary['recipe']}" if summary["recipe"] else "")


def _missing_lines(summary: dict) -> list[str]:
    lines = []
    lacking = [f"{member['name']} {member['missing_ids']:,}" for member in summary["members"] if member["missing_ids"]]
    missing = summary["missing"]
    if lacking:
        what = (
            f"{missing['dropped_rows']:,} rows dropped"
            if missing["rule"] == "drop"
            else f"{missing['filled_values']:,} values are the mean of the other members"
        )
        lines.append(f"missing ids: {', '.join(lacking)}; {what}")
    labels = summary["labels"]
    if labels:
        text = f"labels: {labels['file']}, column {labels['column']}: {labels['rows']:,} rows scored"
        seen = labels["rows_of_the_fit"]
        if seen and labels["rows"]:
            text += f", {seen:,} more rows were used for the fit of the recipe and are not scored"
        elif seen:
            text += f"; all {seen:,} rows with a label were used for the fit of the recipe and tell nothing about it"
        if labels["rows_without_label"]:
            text += f", {labels['rows_without_label']:,} rows have no label"
        if labels["labels_without_row"]:
            text += f", {labels['labels_without_row']:,} labels have no prediction"
        lines.append(text)
        fewer = [member for member in summary["members"] if member.get("n", labels["rows"]) < labels["rows"]]
        if fewer:
            counts = ", ".join(f"{member['name']} {member['n']:,}" for member in fewer)
            lines.append(f"members with missing ids are scored on fewer rows: {counts}")
    fit = summary["recipe_fit"]
    if labels and fit:
        if not fit["rows_known"]:
            lines.append(
                "the recipe does not say which rows it was fitted to; if they are among these the score is too good"
            )
        if fit.get("cv_final_score") is not None:
            lines.append(f"cross-validated final score when it was fitted: {fit['cv_final_score']:.3f}")
    return lines


def _score_table(summary: dict, terminal: bool, split: bool, name_width: int | None) -> Table:
    weighted = any(member["weight"] is not None for member in summary["members"])
    if terminal:  # the box puts a space between columns
        table = Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("member", overflow="fold", min_width=NAME_WIDTH, max_width=name_width)
    for title in (*(["weight"] if weighted else []), "gain", *METRICS.values()):
        table.add_column(title, justify="right", no_wrap=True)
    for member in summary["members"]:
        cells = [_number(member["weight"])] if weighted else []
        table.add_row(member["name"], *cells, _signed(member["gain"]), *_scores(member, split))
    base = "ensemble, CV" if summary["fit"] else "ensemble"
    name = combined_name(base, [member["name"] for member in summary["members"]])
    table.add_row(name, *([""] if weighted else []), "", *_scores(summary["ensemble"], split), style="bold")
    return table


def evidence(summary: dict) -> list[str]:
    """Sentences about an ensemble with labels: what the numbers are, and whether it is better than its members."""
    lines = []
    best = summary["gain_over_best"]
    if best and best["difference"] is not None and best["ci95"][0] is not None:
        low, high = best["ci95"]
        verdict = {
            True: "significant",
            False: "not significant",
            None: f"{best['resamples']} resamples are too few to tell",
        }[best["significant"]]
        lines.append(
            f"ensemble against the best member, {best['best_member']}:\n"
            f"  {best['difference']:+.4f} ({low:+.4f} to {high:+.4f}), p = {best['p_value']:.3g}, {verdict}"
        )
    lines.append("gain: final score lost without the member; intervals: 95 %, bootstrap")
    if summary["fit"]:
        lines.append(
            f"CV: the ensemble is scored by {summary['fit']['folds']}-fold cross-validation, folds fixed by the ids"
        )
    if summary["scale"] is not None:
        if summary["method"] == "stack":
            lines.append("weights: change of the score per standard deviation of the member")
        else:
            lines.append("weights: shares, with all members at one spread; scores: on the labels' scale")
    return lines + resampling_notes(summary["labels"]["rows"])


def collapsed_members(summary: dict) -> list[str]:
    """A sentence about every member that is constant, or whose scores vary by less than `COLLAPSED` times the median of the
    members."""
    members, lines = summary["members"], []
    typical = float(np.median([member["std"] for member in members]))
    for member in members:
        if member["std"] == 0 and summary["n"] > 1:
            lines.append(
                f"{member['name']} gives every row the same score, {member['mean']:.6g};\n  has that model collapsed?"
            )
        elif member["std"] < COLLAPSED * typical:
            lines.append(
                f"{member['name']} hardly varies: standard deviation {member['std']:.2g}, median of the members "
                f"{typical:.2g};\n  has that model collapsed?"
            )
    return lines


def identical_members(summary: dict) -> list[str]:
    """A sentence about every group of members that agree in all rows."""
    return [
        f"{', '.join(names)} have the same predictions: one model under {len(names)} names?\n"
        f"  It counts {'twice' if len(names) == 2 else f'{len(names)} times'}."
        for names in summary["identical_members"]
    ]


def _print_correlations(summary: dict, console: Console) -> None:
    correlations, members = summary["correlations"], summary["members"]
    ranks = correlations["srocc"] is not None
    note = "SROCC above the diagonal, PLCC below" if ranks else "PLCC"
    used = "" if correlations["rows"] == summary["n"] else f", {correlations['rows']:,} rows chosen by id"
    console.print(f"\ncorrelation between members ({note}{used})")
    if len(members) > SHOWN_MEMBERS:
        console.print(_extremes(correlations["plcc"], members))
        return
    _print_table(console, partial(_correlation_table, correlations, [member["name"] for member in members]))


def _correlation_table(correlations: dict, names: Sequence[str], split: bool, name_width: int | None) -> Table:
    ranks = correlations["srocc"] is not None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=True)
    table.add_column("", no_wrap=True)
    table.add_column("", overflow="fold", max_width=name_width)
    for number in range(1, len(names) + 1):
        table.add_column(str(number), justify="right", no_wrap=True)
    for i, name in enumerate(names):
        cells = []
        for j in range(len(names)):
            if i == j or (not ranks and j > i):
                cells.append("")
            else:
                cells.append(_number(correlations["srocc" if j > i else "plcc"][i][j]))
        table.add_row(str(i + 1), name, *cells)
    return table


def _extremes(matrix: list[list[float | None]], members: list[dict]) -> str:
    pairs = [
        (matrix[i][j], members[i]["name"], members[j]["name"])
        for i in range(len(members))
        for j in range(i)
        if matrix[i][j] is not None
    ]
    if not pairs:
        return "every member is constant"
    low, high = min(pairs), max(pairs)
    middle = sorted(pair[0] for pair in pairs)[len(pairs) // 2]
    return (
        f"PLCC of {len(pairs)} pairs: median {middle:.3f}; lowest {low[0]:.3f} ({low[1]}, {low[2]}); "
        f"highest {high[0]:.3f} ({high[1]}, {high[2]}); all in --json"
    )


def _scores(scores: dict, split: bool) -> list[str]:
    cells = []
    for name in METRICS:
        low, high = scores["ci95"][name]
        between = "\n" if split else " " if low is None or low < 0 else "-"
        interval = "" if low is None or high is None else f"\n{_short(low)}{between}{_short(high)}"
        cells.append(_number(scores[name]) + interval)
    return cells


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(value: float) -> str:
    """Three digits without the zero before the point, so that five intervals fit beside each other."""
    return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.4f}"
