"""Tables in compressed files, on standard output, in pipes; and large or badly encoded ones."""

import csv
import gzip
import os
import subprocess
import sys
import threading

import pytest

from lmm_ecr.errors import DataError
from lmm_ecr.predictions import read_predictions, write_predictions
from lmm_ecr.tables import text_records

COLUMNS = {"ECR": [0.25, 0.5]}


def test_gz_is_compressed_and_equal_contents_give_equal_bytes(tmp_path):
    paths = [tmp_path / "one.csv.gz", tmp_path / "two.CSV.GZ"]
    for path in paths:
        write_predictions(path, ["a", "b"], COLUMNS)
    assert gzip.decompress(paths[0].read_bytes()) == b"Id,ECR\na,0.25\nb,0.5\n"
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes()[4:8] == bytes(4), "no time"
    assert read_predictions(paths[0]).values.tolist() == COLUMNS["ECR"]


@pytest.mark.parametrize("name", ["x.csv.bz2", "x.csv.zst", "x.parquet.gz"])
def test_other_compressions_are_not_written_as_plain_text(tmp_path, name):
    with pytest.raises(DataError, match=r"give a name that ends in \.(csv\.gz|parquet)"):
        write_predictions(tmp_path / name, ["a", "b"], COLUMNS)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["full.csv", "full.csv.gz", "full.parquet"])
def test_a_full_device_is_no_stack_trace(tmp_path, name):
    (tmp_path / name).symlink_to("/dev/full")
    with pytest.raises(DataError, match="cannot be written: No space left"):
        write_predictions(tmp_path / name, [str(k) for k in range(100_000)], {"ECR": [0.5] * 100_000})


def test_a_full_standard_output_is_no_stack_trace():
    code = "from lmm_ecr.predictions import write_predictions as w; w('-', ['a'], {'ECR': [0.5]})"
    program = f"from lmm_ecr.processes import run_and_exit\ndef main():\n    {code}\nrun_and_exit('p', main)"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "p: error: standard output: cannot be written: No space left on device\n",
    )


def test_pipes_and_standard_input_are_refused_with_the_way_out(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"read only once.* save it to a file first"):
        read_predictions(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match="not read from standard input"):
        read_predictions("-")


def test_a_record_of_several_megabytes_is_read(tmp_path):
    title = 'x"y,' * 1_500_000
    write_predictions(tmp_path / "t.csv", ["a", "b"], {**COLUMNS, "Title": [title, "short"]})
    for path in (tmp_path / "t.csv", tmp_path / "t.csv.gz"):
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress((tmp_path / "t.csv").read_bytes()))
        table = read_predictions(path)
        assert table.extra["Title"].to_pylist() == [title, "short"]


def test_a_long_field_does_not_hide_the_mistake_behind_it(tmp_path):
    limit = csv.field_size_limit()
    for last, message in (("b,1.5,y", "line 3: ECR of 'b' is 1.5"), ("b,x,y", "line 3: ECR of 'b' is 'x'")):
        (tmp_path / "t.csv").write_text(f"Id,ECR,Title\na,0.5,{'x' * 3_000_000}\n{last}\n")
        with pytest.raises(DataError, match=message):
            read_predictions(tmp_path / "t.csv")
    assert csv.field_size_limit() == limit


def test_the_limit_of_the_process_survives_threads(tmp_path):
    limit = csv.field_size_limit()
    (tmp_path / "t.csv").write_text("Id,ECR\n" + "a,0.5\n" * 2000 + f"b,{'x' * 200_000}\n")
    counts = []
    threads = [
        threading.Thread(target=lambda: counts.append(len(list(text_records(str(tmp_path / "t.csv"))))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts == [2002] * 4
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_a_byte_that_is_not_utf8_is_named_with_its_line_and_id(tmp_path, ending):
    lines = ["Id,ECR,Title", *(f"v{k},0.5,title" for k in range(1000)), "v1000,0.5,caf\xe9", "v1001,0.5,x"]
    (tmp_path / "t.csv").write_bytes(ending.join(lines).encode("latin-1"))
    expected = r"line 1002 \(Id 'v1000'\), column 'Title': byte 0xe9 is not UTF-8; save the table as UTF-8"
    with pytest.raises(DataError, match=expected):
        read_predictions(tmp_path / "t.csv")


def test_an_id_that_is_not_utf8_is_named_by_its_line(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"Id,ECR\na,0.5\nb\xff,0.5\n")
    with pytest.raises(DataError, match="line 3, column 'Id': byte 0xff is not UTF-8"):
        read_predictions(tmp_path / "t.csv")
