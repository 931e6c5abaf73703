"""Parts of a table that are looked at one by one: by a category, a number in quantiles, or an empty title."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import DataError
from .predictions import Predictions, numeric_column

QUANTILES = 4
CATEGORIES = 20  # the most frequent ones get a segment each, the rest share one
DISTINCT_NUMBERS = 10  # a numeric column with no more distinct values is a category
DIGITS = 6  # of a number in a name, more where two names would be the same
EDGE_DIGITS = 4  # the same for the ends of a range
EMPTY_TEXT = {"has_title": "Title", "has_description": "Description"}
EMPTY = "(empty)"
_OTHERS = re.compile(r"\(\d+ others\)")


@dataclass(frozen=True)
class Segment:
    """A named part of a table. rows: int64 [M], positions in the vectors the segmentation was made for."""

    name: str
    rows: np.ndarray


def split_segments(labels: Predictions, column: str, rows: np.ndarray) -> list[Segment]:
    """Split the rows of a label table by one of its columns; every row is in exactly one segment, no name occurs twice.

    labels: the table with its other columns in `extra`. column: a column of it, or `has_title` / `has_description`
    (whether that text is empty). rows: int64 [n] positions in the table; the segments index into this vector. Numbers
    with many distinct values are cut at quantiles of these rows, everything else is a category: text as it is written
    (`001` is not `1`), also `nan` and `inf` in a column of numbers. Empty cells are a segment of their own. Raises
    DataError for an unknown column, naming the closest one, and for one that holds neither text nor numbers.
    """
    if column in EMPTY_TEXT and column not in labels.extra:
        name = EMPTY_TEXT[column]
        values = _column(labels, name, f"--segment {column} needs it").take(pa.array(rows))
        filled = ~_is_blank(_text(values, labels, name))
        return _segments([(f"with {name.lower()}", filled), (f"without {name.lower()}", ~filled)])
    values = _column(labels, column, "--segment takes a column or has_title, has_description").take(pa.array(rows))
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    numbers = numeric_column(values)
    if numbers is None:
        return _categories(_text(values, labels, column))
    text = _text(values, labels, column) if _is_text(values) else None
    finite = np.isfinite(numbers)
    empty = np.isnan(numbers) if text is None else _is_blank(text)
    distinct = np.unique(numbers[finite])
    if len(distinct) > DISTINCT_NUMBERS:
        parts = _ranges(numbers, finite)
    elif text is None:
        parts = [(name, numbers == value) for name, value in zip(_number_names(distinct), distinct, strict=True)]
    else:
        # Not numbers if two of them are written differently: these are codes, or a mistake that should be seen.
        written = pc.unique(text.filter(pa.array(finite))).to_pylist()
        if len(written) > len(distinct):
            return _categories(text)
        parts = [(name.strip(), numbers == float(name)) for name in sorted(written, key=float)]
    odd = ~finite & ~empty
    if odd.any():
        odd_text = _text(values, labels, column) if text is None else text
        parts += [
            (name, mask & odd) for name, mask in _named_texts(odd_text, pc.unique(odd_text.filter(pa.array(odd))))
        ]
    return _segments([*parts, (EMPTY, empty)])


def _column(labels: Predictions, column: str, why: str) -> pa.Array:
    if column == labels.target:
        return pa.array(labels.values)
    if column not in labels.extra:
        known = [*labels.extra, *EMPTY_TEXT]
        close = difflib.get_close_matches(column, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f" ({', '.join(labels.extra) or 'none'} besides)"
        raise DataError(f"{labels.path}: no column {column!r} ({why}){hint}")
    return labels.extra[column]


def _is_text(values: pa.Array) -> bool:
    return pa.types.is_string(values.type) or pa.types.is_large_string(values.type)


def _text(values: pa.Array, labels: Predictions, column: str) -> pa.Array:
    """`large_string` without nulls, which become empty."""
    try:
        return pc.fill_null(values.cast(pa.large_string()), "")
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(
            f"{labels.path}: the column {column!r} holds {values.type}; a segment is made of text or numbers"
        ) from error


def _is_blank(text: pa.Array) -> np.ndarray:
    return pc.equal(pc.utf8_trim_whitespace(text), "").to_numpy(zero_copy_only=False)


def _ranges(numbers: np.ndarray, finite: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """The finite ones of float64 [n] numbers cut at their quantiles."""
    # Halved, so that the difference of the largest and the smallest float64 is one, too.
    edges = np.unique(2 * np.quantile(numbers[finite] / 2, np.linspace(0, 1, QUANTILES + 1)))
    names = _number_names(edges, EDGE_DIGITS)
    place = np.searchsorted(edges[1:-1], numbers, side="left")  # a value on an edge belongs to the lower part
    return [
        (f"{'(' if part else '['}{names[part]}, {names[part + 1]}]", finite & (place == part))
        for part in range(max(len(edges) - 1, 1))
    ]


def _number_names(values: np.ndarray, digits: int = DIGITS) -> list[str]:
    """Different float64 numbers in as many digits (at least `digits`) as it takes to tell them apart."""
    while True:
        names = [f"{value:.{digits}g}" for value in values.tolist()]
        # Dates and times as whole numbers, not as 2.025e+07.
        names = [
            f"{value:.0f}" if "e+" in name and abs(value) < 1e16 else name
            for name, value in zip(names, values.tolist(), strict=True)
        ]
        if len(set(names)) == len(names):
            return names
        digits += 1


def _categories(text: pa.Array) -> list[Segment]:
    empty = _is_blank(text)
    counts = {item["values"]: item["counts"] for item in pc.value_counts(text.filter(pa.array(~empty))).to_pylist()}
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    parts = _named_texts(text, pa.array(ranked[:CATEGORIES], pa.large_string()))
    if len(ranked) > CATEGORIES:
        others = pc.is_in(text, value_set=pa.array(ranked[CATEGORIES:], pa.large_string()))
        parts.append((f"({len(ranked) - CATEGORIES} others)", others.to_numpy(zero_copy_only=False)))
    return _segments([*parts, (EMPTY, empty)])


def _named_texts(text: pa.Array, wanted: pa.Array) -> list[tuple[str, np.ndarray]]:
    """Name and mask of every text in `wanted`; in quotes if two would look the same, or one like our own words."""
    place = pc.index_in(text, value_set=wanted).fill_null(-1).to_numpy(zero_copy_only=False)
    names = wanted.to_pylist()
    shown = {name.strip() for name in names}
    plain = len(shown) == len(names) and EMPTY not in shown and not any(_OTHERS.fullmatch(name) for name in shown)
    return [(name.strip() if plain else repr(name), place == k) for k, name in enumerate(names)]


def _segments(parts: Iterable[tuple[str, np.ndarray]]) -> list[Segment]:
    """A list, not a mapping: two parts must never be taken for one because they are called the same."""
    return [Segment(name, np.flatnonzero(mask)) for name, mask in parts if mask.any()]
