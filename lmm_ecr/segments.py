"""Parts of a table that are looked at one by one: by a category, a number in quantiles, or an empty title."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import DataError
from .predictions import Predictions, numeric_column

QUANTILES = 4
CATEGORIES = 20  # the most frequent ones get a segment each, the rest share one
DISTINCT_NUMBERS = 10  # a numeric column with no more distinct values is a category
EMPTY_TEXT = {"has_title": "Title", "has_description": "Description"}


@dataclass(frozen=True)
class Segment:
    """A named part of a table. rows: int64 [M], positions in the vectors the segmentation was made for."""

    name: str
    rows: np.ndarray


def split_segments(labels: Predictions, column: str, rows: np.ndarray) -> list[Segment]:
    """Split the rows of a label table by one of its columns.

    labels: the table with its other columns in `extra`. column: a column of it, or `has_title` / `has_description`
    (whether that text is empty). rows: int64 [n] positions in the table; the segments index into this vector. Numbers
    with many distinct values are cut at quantiles of these rows, everything else is a category; empty cells are a
    segment of their own. Raises DataError for an unknown column, naming the closest one.
    """
    if column in EMPTY_TEXT and column not in labels.extra:
        text = _column(labels, EMPTY_TEXT[column], f"--segment {column} needs it").take(pa.array(rows))
        filled = pc.not_equal(pc.utf8_trim_whitespace(pc.fill_null(text.cast(pa.large_string()), "")), "")
        filled = filled.to_numpy(zero_copy_only=False)
        word = EMPTY_TEXT[column].lower()
        return _segments({f"with {word}": filled, f"without {word}": ~filled})
    values = _column(labels, column, "--segment takes a column or has_title, has_description").take(pa.array(rows))
    numbers = numeric_column(values)
    if numbers is None:
        return _categories(values.cast(pa.large_string()))
    present = np.isfinite(numbers)
    distinct = np.unique(numbers[present])
    if len(distinct) <= DISTINCT_NUMBERS:
        masks = {f"{value:g}": numbers == value for value in distinct}
    else:
        edges = np.unique(np.quantile(numbers[present], np.linspace(0, 1, QUANTILES + 1)))
        place = np.searchsorted(edges[1:-1], numbers, side="left")  # a value on an edge belongs to the lower part
        masks = {}
        for part in range(len(edges) - 1):
            opening = "[" if part == 0 else "("
            masks[f"{opening}{edges[part]:.4g}, {edges[part + 1]:.4g}]"] = present & (place == part)
    return _segments(masks | {"(empty)": ~present})


def _column(labels: Predictions, column: str, why: str) -> pa.Array:
    if column == labels.target:
        return pa.array(labels.values)
    if column not in labels.extra:
        known = [*labels.extra, *EMPTY_TEXT]
        close = difflib.get_close_matches(column, known, 1)
        hint = f"; did you mean {close[0]!r}?" if close else f" ({', '.join(labels.extra) or 'none'} besides)"
        raise DataError(f"{labels.path}: no column {column!r} ({why}){hint}")
    return labels.extra[column]


def _categories(values: pa.Array) -> list[Segment]:
    values = pc.if_else(
        pc.equal(pc.utf8_trim_whitespace(pc.fill_null(values, "")), ""), "(empty)", pc.fill_null(values, "")
    )
    encoded = values.dictionary_encode()
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.to_numpy()
    counts = np.bincount(codes, minlength=len(names))
    ranked = sorted(range(len(names)), key=lambda code: (-counts[code], names[code]))
    masks = {names[code]: codes == code for code in ranked[:CATEGORIES]}
    if len(ranked) > CATEGORIES:
        masks[f"({len(ranked) - CATEGORIES} others)"] = np.isin(codes, ranked[CATEGORIES:])
    return _segments(masks)


def _segments(masks: Mapping[str, np.ndarray]) -> list[Segment]:
    return [Segment(name, np.flatnonzero(mask)) for name, mask in masks.items() if mask.any()]
