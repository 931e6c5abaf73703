"""The input table: what is read, and how every mistake in it is named."""

import csv
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_ecr.data.manifest import Rejection, read_manifest, write_rejections
from lmm_ecr.errors import DataError


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in "abcdefgh":
        (tmp_path / f"{name}.mp4").touch()
    return tmp_path


@pytest.fixture
def table(folder):
    """Writes a CSV (text or bytes) or a Parquet file (dict of columns) beside the clips a.mp4 ... h.mp4."""

    def write(content) -> Path:
        if isinstance(content, dict):
            path = folder / "table.parquet"
            pa.parquet.write_table(pa.table(content), path)
            return path
        path = folder / "table.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def rows(manifest):
    return [(r.row, r.id, r.title, r.description, *r.labels) for r in manifest]


def error_of(path, **options) -> str:
    with pytest.raises(DataError) as caught:
        read_manifest(path, **{"targets": ["ECR"], **options})
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


def test_table_of_the_contract(table, folder):
    manifest = read_manifest(table("Id,Title,Description,ECR\na,One,,0.25\nb,,Two words,1\n"), targets=["ECR"])
    assert rows(manifest) == [(1, "a", "One", None, 0.25), (2, "b", None, "Two words", 1.0)]
    assert manifest[0].video == folder / "a.mp4"
    assert manifest.labels.tolist() == [[0.25], [1.0]]
    assert manifest.labels.dtype == np.float64
    assert manifest.rejections == []


def test_title_description_and_labels_may_be_absent_for_prediction(table):
    manifest = read_manifest(table("Id\nb\na\n"))
    assert rows(manifest) == [(1, "b", None, None), (2, "a", None, None)]
    assert manifest.labels.shape == (2, 0)


def test_quotes_line_breaks_scripts_and_order_of_columns(table):
    text = 'ECR,Description,Other,Id,Title\n0.5,"He said ""hi"",\n\nbye",x,a,"标题 हिन्दी عنوان 😀👩‍👧"\n'
    assert rows(read_manifest(table(text), targets=["ECR"])) == [
        (1, "a", "标题 हिन्दी عنوان 😀👩‍👧", 'He said "hi",\n\nbye', 0.5)
    ]


@pytest.mark.parametrize("prefix", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"], ids=["LF", "CRLF", "CR"])
def test_byte_order_mark_and_line_ends(table, prefix, line_end):
    path = table(prefix + line_end.join([b"Id,Title,ECR", b"a,x,0.5", b"", b'b,"y",0.75', b""]))
    assert rows(read_manifest(path, targets=["ECR"])) == [(1, "a", "x", None, 0.5), (2, "b", "y", None, 0.75)]


def test_parquet_of_any_column_type(table):
    content = {
        "Id": pa.array(["a", "b", "c"]).dictionary_encode(),
        "Title": pa.array(["x", None, ""], pa.large_string()),
        "ECR": pa.array([0.1, 1 / 3, 0.123456789012345678]),
        "Extra": [[1], [2], [3]],
    }
    assert rows(read_manifest(table(content), targets=["ECR"])) == [
        (1, "a", "x", None, 0.1),
        (2, "b", None, None, 1 / 3),
        (3, "c", None, None, 0.123456789012345678),
    ]


def test_ids_are_text(table, folder):
    for name in ("0012", "1e5", "NA"):
        (folder / f"{name}.mp4").touch()
    assert [r.id for r in read_manifest(table("Id\n0012\n1e5\nNA\n"))] == ["0012", "1e5", "NA"]
    (folder / "7.mp4").touch()
    assert [r.id for r in read_manifest(table({"Id": [7]}))] == ["7"]


def test_video_column_is_relative_to_the_folder_or_absolute(table, folder):
    other = folder / "sub" / "x.webm"
    other.parent.mkdir()
    other.touch()
    manifest = read_manifest(table(f"Id,Video\n../x,sub/x.webm\nb,\nc,{other}\n"))
    assert [r.video for r in manifest] == [other, folder / "b.mp4", other]


def test_video_dir_and_ids_with_folders(table, folder):
    (folder / "v" / "u").mkdir(parents=True)
    (folder / "v" / "u" / "x.mp4").touch()
    manifest = read_manifest(table("Id\nu/x\n"), folder / "v")
    assert manifest[0].video == folder / "v" / "u" / "x.mp4"


def test_several_targets_may_have_empty_cells(table):
    manifest = read_manifest(table("Id,ECR,NAWP\na,0.5,\nb, ,0.25\nc,0,1\n"), targets=["NAWP", "ECR"])
    np.testing.assert_array_equal(manifest.labels, [[math.nan, 0.5], [0.25, math.nan], [1.0, 0.0]])
    message = error_of(table("Id,ECR,NAWP\na,0.5,\nb,,\n"), targets=["ECR", "NAWP"])
    assert message == "1 problem\n  row 2 (Id 'b'): none of ECR, NAWP is known"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("Title,ECR\nx,0.5\n", "column 'Id' is missing; the table has 'Title', 'ECR'"),
        ("id,ECR\na,0.5\n", "(did you mean 'id'? rename it)"),
        ("Id,ECRs\na,0.5\n", "column 'ECR' is missing; the table has 'Id', 'ECRs' (did you mean 'ECRs'? rename it)"),
        ("Id;ECR\na;0.5\n", "column 'Id' is missing; the table has 'Id;ECR'"),
        ("Id,ECR,ECR\na,0.5,0.1\n", "column 'ECR' appears twice in the header"),
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("Id,ECR\n", "the table has no rows"),
        ("Id,ECR", "the table has no rows"),
        ("Id,ECR\na,0.5\na,0.5\n", "row 2: Id 'a' was used in row 1 already"),
        ("Id,ECR\n,0.5\n  ,0.5\n", "2 problems\n  row 1: Id is empty\n  row 2: Id is empty"),
        ("Id,ECR\na,high\n", "row 1 (Id 'a'): ECR is no number: 'high'"),
        ("Id,ECR\na,0_5\n", "row 1 (Id 'a'): ECR is no number: '0_5'"),
        ("Id,ECR\na,٠.٥\n", "row 1 (Id 'a'): ECR is no number: '٠.٥'"),
        ('Id,ECR\na,"0,5"\n', "row 1 (Id 'a'): ECR is no number: '0,5'"),
        ("Id,ECR\na,nan\n", "row 1 (Id 'a'): ECR must lie in [0, 1], got nan"),
        ("Id,ECR\na,inf\n", "row 1 (Id 'a'): ECR must lie in [0, 1], got inf"),
        ("Id,ECR\na,0\nb,1.0001\n", "row 2 (Id 'b'): ECR must lie in [0, 1], got 1.0001"),
        ("Id,ECR\na,-0.1\n", "row 1 (Id 'a'): ECR must lie in [0, 1], got -0.1"),
        ("Id,ECR\na, \n", "row 1 (Id 'a'): ECR is empty"),
        ("Id,ECR\nzz,0.5\n", "row 1 (Id 'zz'): no file {folder}/zz.mp4\nFor missing files check --video_dir"),
        ("Id,Video,ECR\na,b.webm,0.5\n", "row 1 (Id 'a'): no file {folder}/b.webm"),
        ("Id,Title,ECR\na,x,0.5\nb,0.5\n", "row 2 (line 3) has 2 cells, the header has 3"),
        ('Id,Title,ECR\na,"x\n",0.5\nb,y,1,0.5\n', "row 2 (line 4) has 4 cells, the header has 3"),
        (
            'Id,Title,ECR\na,"x,0.5\nb,y,0.5\n',
            "row 1 (line 2) has 2 cells, the header has 3; is a comma or a quotation",
        ),
        ("Id,Title\na,x\nb,caf\xe9\n".encode("latin-1"), "line 3: byte 0xe9 is not UTF-8; save the table as UTF-8"),
        ("Id,ECR\na,0.5\n".encode("utf-16"), "line 1: byte 0xff is not UTF-8"),
        (b"Id,ECR\na\x00,0.5\n", "row 1: Id 'a\\x00' is no file name inside the video directory"),
    ],
)
def test_every_mistake_is_named_with_its_place(table, folder, content, message):
    """Bugs: rows of the wrong length and non-UTF-8 bytes had no place; 0_5 was read as 5 and ٠.٥ as 0.5."""
    assert message.replace("{folder}", str(folder)) in error_of(table(content))


def test_bad_bytes_far_into_the_file_are_found(table):
    """Beyond what is read for the header: pyarrow notices, without saying where."""
    text = "Id,Title,ECR\n" + "".join(f"{i},{'x' * 100},0.5\n" for i in range(2000))
    message = error_of(table(text.encode() + b"last,\xff,0.5\n"))
    assert message == "line 2002: byte 0xff is not UTF-8; save the table as UTF-8"


@pytest.mark.parametrize("clip_id", ["../x", "a/../../x", "/etc/passwd", "..\\x", "\\x", "C:\\x", "C:/x", "a/.."])
def test_ids_that_leave_the_video_directory(table, clip_id):
    """Bug: such a row was also listed as a missing file outside the directory."""
    message = error_of(table({"Id": [clip_id, "a"], "ECR": [0.5, 0.5]}), missing_files="reject")
    assert message == (
        f"1 problem\n  row 1: Id {clip_id!r} is no file name inside the video directory; use the Video column for paths"
    )


def test_all_problems_are_counted_and_ten_are_shown(table):
    lines = "".join(f"missing{i},2\n" for i in range(20))
    message = error_of(table("Id,ECR\n" + lines))
    assert message.startswith("40 problems\n")
    assert "... and 30 more" in message
    assert message.count("row ") == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Id": [{"x": 1}], "ECR": [0.5]}, "column 'Id' of type struct<x: int64> is no text or number"),
        ({"Id": ["a"], "Title": [b"\xff"], "ECR": [0.5]}, "column 'Title' of type binary is no text or number"),
        ({"Id": ["a"], "ECR": [True]}, "row 1 (Id 'a'): ECR is no number: 'true'"),
        ({"Id": ["a", None], "ECR": [0.5, None]}, "row 2: Id is empty"),
        ({"Id": ["a"], "ECR": [math.nan]}, "row 1 (Id 'a'): ECR must lie in [0, 1], got nan"),
        ({"Id": pa.array([], pa.string()), "ECR": pa.array([], pa.float64())}, "the table has no rows"),
    ],
)
def test_mistakes_in_parquet_columns(table, content, message):
    """Bug: a column of another type ended in an error from inside pyarrow."""
    assert message in error_of(table(content))


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "bytes"])
def test_broken_parquet_files_are_named(table, damage):
    """Bug: damage inside the pages of a Parquet file came out as a plain OSError."""
    path = table({"Id": ["a"] * 1000, "ECR": [0.1] * 1000})
    data = bytearray(path.read_bytes())
    if damage == "bytes":
        data[20:60] = b"\xff" * 40
    path.write_bytes({"text": b"Id,ECR\na,0.5\n", "empty": b"", "cut": data[:200], "bytes": data}[damage])
    assert error_of(path).startswith("cannot be read as a table (")


def test_no_such_table(folder):
    assert error_of(folder / "nothing.csv") == "no such table"
    assert error_of(folder) == "no such table"


def test_rows_without_a_file_can_be_set_aside(table, folder):
    path = table("Id,ECR\na,0.1\nzz,0.2\nb,0.3\n")
    manifest = read_manifest(path, targets=["ECR"], missing_files="reject")
    assert rows(manifest) == [(1, "a", None, None, 0.1), (3, "b", None, None, 0.3)]
    assert manifest.rejections == [Rejection(2, "zz", "missing", str(folder / "zz.mp4"))]
    write_rejections(folder / "rejected.csv", manifest.rejections)
    assert (folder / "rejected.csv").read_text() == f"row,Id,reason,detail\n2,zz,missing,{folder / 'zz.mp4'}\n"


def test_no_file_at_all_says_where_they_were_looked_for(table, folder):
    path = table("Id\nyy\nzz\n")
    for missing_files in ("error", "reject"):
        message = error_of(path, video_dir=folder / "vidoes", targets=(), missing_files=missing_files)
        assert str(folder / "vidoes" / "yy.mp4") in message
        assert f"--video_dir / --video-dir ({folder / 'vidoes'}, which is no folder) and the Video column" in message


def test_fingerprint_tells_tables_apart(table):
    def fingerprint(text):
        return read_manifest(table(text), targets=["ECR"]).fingerprint()

    first = fingerprint("Id,Title,ECR\na,x,0.5\nb,y,0.25\n")
    assert fingerprint("ECR,Other,Title,Id\n0.50,?,x,a\n2.5e-1,?,y,b\n") == first
    changed = {
        fingerprint("Id,Title,ECR\nb,y,0.25\na,x,0.5\n"),
        fingerprint("Id,Title,ECR\na,z,0.5\nb,y,0.25\n"),
        fingerprint("Id,Title,ECR\na,x,0.5\nb,y,0.26\n"),
        fingerprint("Id,Title,ECR\na,x,0.5\nc,y,0.25\n"),
    }
    assert len(changed | {first}) == 5


@settings(deadline=None, max_examples=60)
@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=30), min_size=1, max_size=5
    ),
    labels=st.lists(st.floats(0, 1), min_size=5, max_size=5),
)
def test_any_text_and_label_survives_csv(tmp_path_factory, texts, labels):
    folder = tmp_path_factory.mktemp("t")
    with open(folder / "t.csv", "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Id", "Title", "ECR"])
        for i, text in enumerate(texts):
            (folder / f"{i}.mp4").touch()
            writer.writerow([i, text, repr(labels[i])])
    manifest = read_manifest(folder / "t.csv", targets=["ECR"])
    assert [r.title for r in manifest] == [text or None for text in texts]
    assert [r.labels[0] for r in manifest] == labels[: len(texts)]


def test_real_validation_table(shared_dir, tmp_path):
    """6,000 rows of SnapUGC without their clips; 62 % of the titles and 56 % of the descriptions are empty."""
    path = shared_dir / "data/snapugc/val_data.csv"
    if not path.is_file():
        pytest.skip(f"no table at {path}")
    message = error_of(path, targets=(), video_dir=tmp_path, missing_files="reject")
    assert message.startswith("none of the 6000 clips has a file, for example ")
    assert f"check --video_dir / --video-dir ({tmp_path}) and the Video column" in message
    assert error_of(path).startswith("column 'ECR' is missing; the table has 'Id', 'Title', 'Description'")

    table = pd.read_csv(path, dtype=str, keep_default_na=False).assign(Video=str(path.resolve()))
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    manifest = read_manifest(tmp_path / "t.csv")
    assert len(manifest) == 6000
    assert np.mean([r.title is None for r in manifest]) == pytest.approx(0.62, abs=0.005)
    assert np.mean([r.description is None for r in manifest]) == pytest.approx(0.56, abs=0.005)
    assert read_manifest(tmp_path / "t.parquet").fingerprint() == manifest.fingerprint()


def test_real_clips_table(shared_dir):
    path = shared_dir / "data/snapugc/clips.csv"
    if not path.is_file():
        pytest.skip(f"no table at {path}")
    manifest = read_manifest(path, path.parent / "videos")
    assert len(manifest) == 5
    assert all(r.video.is_file() for r in manifest)


@pytest.mark.parametrize("name", ["title", "TITLE", " Title", "description ", "video"])
def test_an_optional_column_in_another_case_is_refused(tmp_path, name):
    """Bug: the texts were left out without a word, and every clip got another score."""
    (tmp_path / "a.mp4").touch()
    table = tmp_path / "t.csv"
    table.write_text(f"Id,{name}\na,x\n")
    with pytest.raises(DataError, match=rf"column '{name}': did you mean '{name.strip().capitalize()}'\? rename it"):
        read_manifest(table)
    table.write_text(f"Id,{name.strip().capitalize()},{name}\na,a.mp4,x\n")
    assert read_manifest(table)[0].id == "a", "beside the right one it is another column"


@pytest.mark.parametrize(("mark", "shown"), [(";", "';'"), ("\t", r"'\\t'"), ("|", r"'\|'")])
def test_another_separator_is_named(tmp_path, mark, shown):
    table = tmp_path / "t.csv"
    table.write_text(f"Id{mark}Title{mark}ECR\na{mark}one, two, three{mark}0.5\n")
    with pytest.raises(DataError, match=f"column 'Id' is missing.*separated by {shown}: save the table with commas"):
        read_manifest(table, targets=["ECR"])


@pytest.mark.parametrize("size", [200_000, 3_000_000])
def test_long_cells(tmp_path, size):
    """Bug: "field larger than field limit", or pyarrow's advice on block sizes."""
    (tmp_path / "a.mp4").touch()
    table = tmp_path / "t.csv"
    table.write_text(f"Id,Title\na,{'x' * size}\n")
    assert len(read_manifest(table)[0].title) == size
    table.write_text(f"Id,Title\na,{'x' * size}\nb,y,z\n")
    with pytest.raises(DataError, match=r"row 2 \(line 3\) has 3 cells, the header has 2"):
        read_manifest(table)
