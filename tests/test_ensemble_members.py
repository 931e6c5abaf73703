"""Lining up prediction files: any order of rows, exact errors, explicit choices for missing ids."""

import numpy as np
import pytest

from lmm_ecr.ensemble_members import member_names, read_members
from lmm_ecr.errors import ConfigError, DataError


def write(path, rows, header="Id,ECR"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *(f"{name},{value}" for name, value in rows)]) + "\n", encoding="utf-8")
    return path


def test_rows_are_matched_by_id_in_the_order_of_the_first_file(tmp_path):
    b = write(tmp_path / "b.csv", [("x", 0.1), ("y", 0.2), ("z", 0.3)])
    a = write(tmp_path / "a.csv", [("z", 0.6), ("x", 0.4), ("y", 0.5)])
    members = read_members([b, a])
    assert members.names == ["a", "b"]
    assert members.given == [1, 0]
    assert members.ids.to_pylist() == ["x", "y", "z"]
    assert members.values.tolist() == [[0.4, 0.5, 0.6], [0.1, 0.2, 0.3]]
    assert read_members([a, b]).ids.to_pylist() == ["z", "x", "y"]


def test_ids_that_look_alike_stay_apart(tmp_path):
    """Numbers, spaces, long common beginnings (beyond what is hashed) and other scripts are all different ids."""
    ids = ["1", "01", "1.0", " 1", "é", "e\u0301", "短い", "a" * 600 + "b", "a" * 600 + "c"]
    first = write(tmp_path / "a.csv", [(name, number / 10) for number, name in enumerate(ids)])
    other = write(tmp_path / "b.csv", [(name, number / 10) for number, name in reversed(list(enumerate(ids)))])
    members = read_members([first, other])
    assert members.ids.to_pylist() == ids
    np.testing.assert_array_equal(members.values[0], members.values[1])


def test_missing_ids_are_an_error_that_names_file_row_and_id(tmp_path):
    a = write(tmp_path / "a.csv", [("x", 0.1), ("y", 0.2), ("z", 0.3)])
    b = write(tmp_path / "b.csv", [("z", 0.3), ("x", 0.1)])
    with pytest.raises(DataError, match=r"b.csv lacks 1 of the 3 ids of .*a.csv: 'y' \(row 2\).*--missing drop"):
        read_members([a, b])
    with pytest.raises(DataError, match=r"b.csv lacks 1 of the 3 ids"):
        read_members([b, a])
    with pytest.raises(ConfigError, match="choose error, drop, mean"):
        read_members([a, b], missing="ignore")


def test_missing_ids_dropped_or_filled(tmp_path):
    a = write(tmp_path / "a.csv", [("x", 0.1), ("y", 0.2), ("z", 0.3)])
    b = write(tmp_path / "b.csv", [("w", 1), ("z", 0.5), ("x", 0.7)])
    c = write(tmp_path / "c.csv", [("x", 0.4), ("y", 0.6), ("z", 0.1), ("w", 0)])
    dropped = read_members([a, b, c], missing="drop")
    assert dropped.ids.to_pylist() == ["x", "z"]
    assert dropped.values.tolist() == [[0.1, 0.3], [0.7, 0.5], [0.4, 0.1]]
    assert dropped.dropped == 2
    assert dropped.missing_ids == {"a": 1, "b": 1}
    filled = read_members([a, b, c], missing="mean")
    assert filled.ids.to_pylist() == ["x", "y", "z", "w"]
    nan = np.nan
    np.testing.assert_array_equal(filled.values, [[0.1, 0.2, 0.3, nan], [0.7, nan, 0.5, 1], [0.4, 0.6, 0.1, 0]])
    assert filled.missing_ids == {"a": 1, "b": 1}
    other = write(tmp_path / "other.csv", [("q", 0.1)])
    with pytest.raises(DataError, match="no id is in all 2 files"):
        read_members([a, other], missing="drop")
    assert len(read_members([a, other], missing="mean").ids) == 4


@pytest.mark.parametrize(
    ("rows", "header", "words"),
    [
        ([("x", 0.1), ("x", 0.2)], "Id,ECR", r"line 3: the Id 'x' appears a second time"),
        ([("x", 0.1), ("y", "nan")], "Id,ECR", r"line 3: ECR of 'y' is nan"),
        ([("x", 0.1), ("y", "")], "Id,ECR", r"line 3: ECR of 'y' is empty"),
        ([("x", 0.1), ("y", "high")], "Id,ECR", r"line 3: ECR of 'y' is 'high'"),
        ([("x", 0.1), ("y", 1.5)], "Id,ECR", r"line 3: ECR of 'y' is 1.5, outside"),
        ([("x", 0.1), ("y", 0.5)], "Id,NAWP", r"no column 'ECR'"),
        ([], "Id,ECR", r"no rows"),
        ([], "", r"empty"),
    ],
)
@pytest.mark.parametrize("position", [0, 1])
def test_bad_files_are_named_wherever_they_stand(tmp_path, rows, header, words, position):
    good = write(tmp_path / "good.csv", [("x", 0.1), ("y", 0.2)])
    bad = write(tmp_path / "bad.csv", rows, header)
    with pytest.raises(DataError, match=rf"bad.csv: .*{words}"):
        read_members([bad, good] if position == 0 else [good, bad])


def test_the_same_file_twice_is_refused_and_a_copy_is_not(tmp_path):
    a = write(tmp_path / "a.csv", [("x", 0.1)])
    copy = write(tmp_path / "copy" / "a.csv", [("x", 0.1)])
    link = tmp_path / "link.csv"
    link.symlink_to(a)
    hard_link = tmp_path / "hard_link.csv"
    hard_link.hardlink_to(a)
    for twice in (a, tmp_path / "copy" / ".." / "a.csv", link, hard_link):
        with pytest.raises(DataError, match="given twice"):
            read_members([a, twice])
    assert sorted(read_members([a, copy]).names) == sorted([f"{tmp_path.name}/a", "copy/a"])
    with pytest.raises(DataError, match="no prediction file"):
        read_members([])


def test_names_tell_members_apart(tmp_path):
    assert member_names(["preds/a.csv", "preds/b.csv.gz"]) == ["a", "b"]
    assert member_names(["r/a/p/eval.csv", "r/b/p/eval.csv"]) == ["a/p/eval", "b/p/eval"]
    assert len(set(member_names(["p/a.csv", "p/a.parquet"]))) == 2
