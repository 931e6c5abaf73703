"""Segments: every row lies in exactly one of them, and no two look the same."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_ecr.errors import DataError
from lmm_ecr.predictions import Predictions
from lmm_ecr.segments import CATEGORIES, split_segments


def table(**columns) -> Predictions:
    n = len(next(iter(columns.values())))
    ids = pa.array([str(k) for k in range(n)], pa.large_string())
    columns = {name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()}
    return Predictions("labels.csv", ids, np.linspace(0, 1, n), "ECR", columns)


def sizes(values, column="x") -> dict[str, int]:
    """Size of each segment by its name, all rows being in exactly one."""
    labels = table(**{column: values})
    parts = split_segments(labels, column, np.arange(len(labels)))
    names = [part.name for part in parts]
    assert len(set(names)) == len(names), names
    assert sorted(np.concatenate([part.rows for part in parts])) == list(range(len(labels)))
    return {part.name: len(part.rows) for part in parts}


def text(values) -> pa.Array:
    return pa.array([str(value) for value in values], pa.large_string())


@pytest.mark.parametrize("kind", [text, pa.array])
def test_dates_written_as_numbers_are_seven_segments(kind):
    days = [20250101 + k % 7 for k in range(400)]
    assert sizes(kind(days)) == {str(day): days.count(day) for day in sorted(set(days))}


@pytest.mark.parametrize("kind", [text, pa.array])
def test_quartiles_of_unix_seconds_keep_all_rows(kind):
    assert sizes(kind([1_735_689_600 + 10 * k for k in range(400)])) == {
        "[1735689600, 1735690598]": 100,
        "(1735690598, 1735691595]": 100,
        "(1735691595, 1735692592]": 100,
        "(1735692592, 1735693590]": 100,
    }


def test_quartiles_of_close_numbers_keep_all_rows():
    found = sizes(pa.array([1 + k * 1e-9 for k in range(100)]))
    assert list(found.values()) == [25, 25, 25, 25]


def test_numbers_written_differently_are_different_categories():
    assert sizes(text(["001", "1", "001", "002"])) == {"001": 2, "1": 1, "002": 1}
    assert sizes(text(["001", "002", "003", "003"])) == {"001": 1, "002": 1, "003": 2}


def test_text_that_is_not_a_finite_number_is_not_empty():
    values = text([*(k / 100 for k in range(40)), "nan", "inf", "-inf", "NaN", ""])
    found = sizes(values)
    assert {name: found[name] for name in ("nan", "NaN", "inf", "-inf", "(empty)")} == {
        "nan": 1,
        "NaN": 1,
        "inf": 1,
        "-inf": 1,
        "(empty)": 1,
    }
    assert sizes(text(["1", "nan", "2", "", "nan"])) == {"1": 1, "2": 1, "nan": 2, "(empty)": 1}
    assert sizes(pa.array([1.0, np.nan, np.inf, None, 2.0])) == {"1": 1, "2": 1, "inf": 1, "(empty)": 2}


def test_categories_that_look_like_our_own_words():
    assert sizes(text(["(empty)", "", "b"])) == {"'(empty)'": 1, "'b'": 1, "(empty)": 1}
    assert sizes(text(["a", "a ", "b"])) == {"'a'": 1, "'a '": 1, "'b'": 1}
    many = sizes(text([f"c{k:02d}" for k in range(CATEGORIES - 1)] * 2 + ["(2 others)"] * 3 + ["y", "z"]))
    assert (many["'(2 others)'"], many["(2 others)"], len(many)) == (3, 2, CATEGORIES + 1)


def test_columns_that_cannot_be_a_segment_are_named():
    labels = table(x=pa.array([[1], [2, 3]]), Title=pa.array([["a"], ["b"]]))
    for column, named in (("x", "'x'"), ("has_title", "'Title'")):
        with pytest.raises(DataError, match=f"labels.csv: the column {named} holds list<"):
            split_segments(labels, column, np.arange(2))


def test_dictionary_columns_are_read_as_their_values():
    assert sizes(pa.array(["a", "b", "a"]).dictionary_encode()) == {"a": 2, "b": 1}
    assert sizes(pa.array([3, 1, 3]).dictionary_encode()) == {"1": 1, "3": 2}


CELLS = st.one_of(
    st.text(max_size=4),
    st.sampled_from(["", " ", "nan", "inf", "-inf", "001", "1", "1.0", "1e0", "(empty)", "(2 others)", "'a'", "a"]),
    st.floats().map(str),
    st.integers(-(10**18), 10**18).map(str),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(CELLS, min_size=1, max_size=60))
def test_any_text_column_is_split_without_loss(cells):
    sizes(pa.array(cells, pa.large_string()))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats() | st.none(), min_size=1, max_size=60))
def test_any_number_column_is_split_without_loss(cells):
    sizes(pa.array(cells, pa.float64()))
