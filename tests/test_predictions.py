"""Prediction tables: what is accepted, what each mistake is called, and that nothing is lost on the way."""

import csv
import io
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_ecr import tables
from lmm_ecr.errors import DataError
from lmm_ecr.predictions import Predictions, match_ids, numeric_column, read_labels, read_predictions, write_predictions

text_ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
scores = st.floats(0, 1, allow_subnormal=True)


def table(ids, values, path="t.csv") -> Predictions:
    return Predictions(path, pa.array(ids, pa.large_string()), np.asarray(values, np.float64))


def put(tmp_path, content: str | bytes, name: str = "preds.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_ids_stay_text_and_values_are_float64(tmp_path):
    path = put(tmp_path, b"\xef\xbb\xbfId,ECR,ECR_std\r\n0012,0.1,x\r\n1e5,1,\r\nNA,0,\r\nnull, 0.25 ,\r\n")
    got = read_predictions(path)
    assert got.ids.to_pylist() == ["0012", "1e5", "NA", "null"]
    assert got.values.dtype == np.float64
    assert got.values.tolist() == [0.1, 1, 0, 0.25]
    assert got.extra["ECR_std"].to_pylist() == ["x", "", "", ""]
    assert (len(got), got.name, got.target) == (4, "preds", "ECR")


BROKEN = {
    "": "the file is empty",
    "\n": "the file is empty",
    "Id,ECR\n": "no rows",
    "id,ECR\na,0.5\n": "no column 'Id'.*did you mean 'id'",
    "Id,ERC\na,0.5\n": "no column 'ECR'.*did you mean 'ERC'",
    "Id,ECR,ECR\na,0.5,0.5\n": "'ECR' appears 2 times in the header",
    "Id,ECR\na,0.5\n,0.5\n": "line 3: the Id is empty",
    'Id,T,ECR\na,"x\ny",0.5\n\nb,,0.1\na,,0.3\n': r"line 6: the Id 'a' appears a second time \(first: line 2\)",
    "Id,ECR\na,0.5\nb,\n": "line 3: ECR of 'b' is empty",
    "Id,ECR\na,0.5\nb,nan\n": "line 3: ECR of 'b' is nan, not a finite number",
    "Id,ECR\na,-inf\n": "line 2: ECR of 'a' is -inf, not a finite number",
    "Id,ECR\na,high\n": "line 2: ECR of 'a' is 'high', not a number",
    "Id,ECR\na,1_0\n": "line 2: ECR of 'a' is '1_0', not a number",
    "Id,ECR\na,0.5\nb,63\n": r"line 3: ECR of 'b' is 63, outside \[0, 1\]; divide scores in percent by 100",
    "Id,ECR\na,-0.01\n": r"line 2: ECR of 'a' is -0.01, outside \[0, 1\]$",
    "Id,ECR\na,0.5\nb,0.1,3\n": r"line 3 \(Id 'b'\): 3 fields where the header has 2",
    "Id,ECR\na\n": r"line 2 \(Id 'a'\): 1 fields where the header has 2",
}


@pytest.mark.parametrize(("content", "message"), BROKEN.items())
def test_every_mistake_names_file_line_and_value(tmp_path, content, message):
    path = put(tmp_path, content)
    with pytest.raises(DataError, match=message) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}: ")


def test_files_that_are_not_tables(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_predictions(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_predictions(tmp_path)
    with pytest.raises(DataError, match="not UTF-8"):
        read_predictions(put(tmp_path, "Id,ECR\né,0.5\n".encode("latin-1")))
    with pytest.raises(DataError, match="not a readable Parquet file"):
        read_predictions(put(tmp_path, b"PAR1 no", "x.parquet"))


def test_out_of_range_values_on_request(tmp_path):
    path = put(tmp_path, "Id,level\na,2\nb,-1\n")
    assert read_labels(path, "level", allow_out_of_range=True).values.tolist() == [2, -1]
    with pytest.raises(DataError, match="line 2: level of 'a' is 2, outside"):
        read_labels(path, "level")
    with pytest.raises(DataError, match="not a finite"):
        read_labels(put(tmp_path, "Id,level\na,inf\n"), "level", allow_out_of_range=True)


def test_columns_can_be_chosen(tmp_path):
    path = put(tmp_path, "x,ECR,Id,y\n1,0.5,a,2\n")
    assert list(read_predictions(path).extra) == ["x", "y"]
    assert read_predictions(path, columns=()).extra == {}
    assert list(read_predictions(path, columns=["y"]).extra) == ["y"]
    with pytest.raises(DataError, match="no column 'z'"):
        read_predictions(path, columns=["z"])


def test_compressed_csv(tmp_path):
    import gzip

    path = put(tmp_path, gzip.compress(b"Id,ECR\na,0.5\n"), "preds.csv.gz")
    assert read_predictions(path).values.tolist() == [0.5]
    with pytest.raises(DataError, match="line 2"):
        read_predictions(put(tmp_path, gzip.compress(b"Id,ECR\na,2\n"), "preds.csv.gz"))


def test_parquet(tmp_path):
    path = tmp_path / "p.parquet"
    pyarrow.parquet.write_table(pa.table({"ECR": pa.array([0.5, 1], pa.float32()), "Id": [12, 7], "n": [1, 2]}), path)
    got = read_predictions(path)
    assert (got.ids.to_pylist(), got.values.tolist(), got.extra["n"].to_pylist()) == (["12", "7"], [0.5, 1], [1, 2])
    for columns, message in [
        ({"Id": [0.5], "ECR": [0.5]}, "floating-point"),
        ({"Id": ["a"], "ECR": ["0.5"]}, "not numbers"),
        ({"Id": ["a", "b"], "ECR": [0.5, None]}, "row 2: ECR of 'b' is empty"),
        ({"Id": ["a", "a"], "ECR": [0.5, 0.5]}, r"row 2: the Id 'a' appears a second time \(first: row 1\)"),
        ({"Id": ["a", None], "ECR": [0.5, 0.5]}, "row 2: the Id is empty"),
    ]:
        pyarrow.parquet.write_table(pa.table(columns), path)
        with pytest.raises(DataError, match=message):
            read_predictions(path)


def test_like_shares_equal_ids_only(tmp_path):
    first = read_predictions(put(tmp_path, "Id,ECR\na,0.5\nb,0.1\n", "a.csv"))
    same = read_predictions(put(tmp_path, "Id,ECR\na,0.2\nb,0.3\n", "b.csv"), like=first)
    other = read_predictions(put(tmp_path, "Id,ECR\nb,0.2\na,0.3\n", "c.csv"), like=first)
    assert same.ids is first.ids
    assert other.ids.to_pylist() == ["b", "a"]
    with pytest.raises(DataError, match="second time"):
        read_predictions(put(tmp_path, "Id,ECR\nb,0.2\nb,0.3\n", "d.csv"), like=first)


@settings(deadline=None)
@given(st.dictionaries(text_ids, scores, min_size=1), st.sampled_from(["csv", "parquet", "csv stdlib"]))
def test_round_trip_is_exact(tmp_path_factory, rows, kind):
    path = tmp_path_factory.mktemp("round") / f"p.{kind.split()[0]}"
    write_predictions(path, rows, {"ECR": list(rows.values()), "note": [f'"{name}",' for name in rows]})
    if kind == "csv stdlib":  # another reader agrees
        records = list(csv.reader(io.StringIO(path.read_bytes().decode(), newline="")))
        assert records[0] == ["Id", "ECR", "note"]
        assert [(r[0], float(r[1]), r[2]) for r in records[1:]] == [(k, v, f'"{k}",') for k, v in rows.items()]
    got = read_predictions(path)
    assert got.ids.to_pylist() == list(rows)
    assert got.values.tolist() == list(rows.values())
    assert got.extra["note"].to_pylist() == [f'"{name}",' for name in rows]


def test_written_csv_is_plain(tmp_path, capsys):
    path = tmp_path / "deep" / "p.csv"
    write_predictions(path, ["a", 'q"x', "c,d"], {"ECR": np.float32([0.5, 0.25, 1]), "n": [1, 2, 3]})
    assert path.read_bytes() == b'Id,ECR,n\na,0.5,1\n"q""x",0.25,2\n"c,d",1,3\n'
    write_predictions("-", ["a"], {"ECR": [0.1]})
    assert capsys.readouterr().out == "Id,ECR\na,0.1\n"


def test_writing_many_rows_in_pieces(tmp_path):
    ids = [f"clip {k}" for k in range(150_000)]
    values = np.random.default_rng(0).random(len(ids))
    write_predictions(tmp_path / "p.csv", ids, {"ECR": values})
    got = read_predictions(tmp_path / "p.csv")
    assert got.ids.to_pylist() == ids
    assert (got.values == values).all()


@pytest.mark.parametrize(
    ("ids", "values", "message"),
    [
        (["a", "b"], [0.5, np.nan], "ECR of 'b' is nan"),
        (["a", "a"], [0, 0], "'a' would be written more"),
        ([""], [0], "empty"),
    ],
)
def test_what_must_not_be_written_leaves_the_old_file(tmp_path, ids, values, message):
    path = put(tmp_path, "old")
    with pytest.raises(DataError, match=message):
        write_predictions(path, ids, {"ECR": values})
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_columns_of_the_wrong_length_are_a_programming_error(tmp_path):
    with pytest.raises(ValueError, match="2 values for 1 ids"):
        write_predictions(tmp_path / "p.csv", ["a"], {"ECR": [0.5, 0.5]})


def test_matching_reports_both_sides():
    match = match_ids(table(["x", "b", "a", "y"], [0.9, 0.2, 0.1, 0.8]), table(["a", "b", "c"], [0.3, 0.4, 0.5]))
    assert match.predictions.tolist() == [0.1, 0.2]
    assert match.labels.tolist() == [0.3, 0.4]
    assert (match.prediction_rows.tolist(), match.label_rows.tolist()) == ([2, 1], [0, 1])
    assert (match.unlabelled, match.unlabelled_examples) == (2, ["x", "y"])
    assert (match.unpredicted, match.unpredicted_examples) == (1, ["c"])
    assert len(match_ids(table(["x"], [0]), table(["y"], [0]))) == 0


@settings(deadline=None)
@given(st.dictionaries(text_ids, scores, min_size=1), st.dictionaries(text_ids, scores, min_size=1), st.randoms())
def test_matching_is_a_join_whatever_the_order(left, right, random):
    keys = list(left)
    random.shuffle(keys)
    match = match_ids(table(keys, [left[k] for k in keys]), table(list(right), list(right.values())))
    joined = [k for k in right if k in left]
    assert match.predictions.tolist() == [left[k] for k in joined]
    assert match.labels.tolist() == [right[k] for k in joined]
    assert match.unpredicted == len(right) - len(joined)
    assert match.unlabelled == len(left) - len(joined)


@settings(deadline=None)
@given(st.lists(st.text("ab\0é", max_size=20)), st.integers(0, 3))
def test_uniqueness_is_exact(ids, skip):
    array = pa.array(ids, pa.large_string()).slice(skip)
    assert tables.ids_are_unique(array) == (len(set(ids[skip:])) == len(ids[skip:]))


def test_uniqueness_of_very_long_ids():
    long = "x" * 2 * tables.HASHED_BYTES
    assert tables.ids_are_unique(pa.array([long, long + "y"], pa.large_string()))
    assert not tables.ids_are_unique(pa.array([long, long], pa.large_string()))


def test_numeric_column():
    assert numeric_column(pa.array(["1", " 2.5 ", "3e1"])).tolist() == [1, 2.5, 30]
    np.testing.assert_equal(numeric_column(pa.array(["1", "", "3"], pa.large_string())), [1, np.nan, 3])
    assert numeric_column(pa.array(["1", "portrait"])) is None
    assert numeric_column(pa.array([1, 2])).tolist() == [1, 2]


csv_like = st.text(st.sampled_from('Id,ECR\n\r"a0.1-e\t é\0;'), max_size=60)


@settings(deadline=None, max_examples=300)
@given(st.one_of(csv_like, csv_like.map(lambda text: "Id,ECR\n" + text)).map(str.encode) | st.binary(max_size=60))
def test_any_bytes_give_a_table_or_a_data_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "p.csv"
    path.write_bytes(content)
    try:
        got = read_predictions(path)
    except DataError:  # any other exception fails the test
        return
    assert len(set(got.ids.to_pylist())) == len(got) > 0
    assert all(got.ids.to_pylist())
    assert ((got.values >= 0) & (got.values <= 1)).all()


def test_reading_and_writing_do_not_import_pandas(tmp_path):
    """It would cost 0.3 s and 40 MB on every start; pyarrow imports it unasked for many a conversion."""
    write_predictions(tmp_path / "a.csv", ["x", "y"], {"ECR": np.array([0.5, 0.25])})
    code = (
        "import sys; from lmm_ecr.ensemble import ensemble, write_ensemble; "
        "from lmm_ecr.ensemble_options import EnsembleOptions; "
        f"result = ensemble([{str(tmp_path / 'a.csv')!r}], EnsembleOptions(keep_members=False)); "
        f"write_ensemble(result, {str(tmp_path / 'b.csv')!r}); assert 'pandas' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert (tmp_path / "b.csv").read_text() == "Id,ECR\nx,0.5\ny,0.25\n"


def test_a_file_like_another_may_hold_long_records(tmp_path):
    """Longer than the blocks in which such a file passes through."""
    write_predictions(tmp_path / "a.csv", ["x", "y"], {"ECR": [0.1, 0.2]})
    write_predictions(tmp_path / "b.csv", ["x", "y"], {"ECR": [0.3, 0.4], "Note": ["n" * 700_000, "line\nbreak"]})
    first = read_predictions(tmp_path / "a.csv", columns=())
    second = read_predictions(tmp_path / "b.csv", columns=(), like=first)
    assert second.values.tolist() == [0.3, 0.4]


def test_other_separators_are_recognised(tmp_path):
    for separator in ";\t|":
        (tmp_path / "a.csv").write_text(f"Id{separator}ECR\nx{separator}0.5\n")
        with pytest.raises(DataError, match=r"seem to be separated by .*save the table with commas"):
            read_predictions(tmp_path / "a.csv")
