"""Where a command may write, found out before the work."""

import os
import re

import pytest

from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.outputs import check_output, check_side_output


def test_an_existing_file_needs_force(tmp_path):
    path = tmp_path / "x.csv"
    check_output(path)
    path.write_text("")
    with pytest.raises(DataError, match="exists already; give another --output, or --force"):
        check_output(path)
    check_output(path, force=True)


def test_devices_pipes_and_standard_output_need_no_force(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in ("-", os.devnull, tmp_path / "pipe"):
        check_output(path)
    reading, writing = os.pipe()
    check_output(f"/dev/fd/{writing}")
    check_side_output(f"/dev/fd/{writing}", "--json", (".json",))
    os.close(reading)
    os.close(writing)


def test_an_input_is_never_an_output_by_whatever_name(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("Id,ECR\n")
    (tmp_path / "link.csv").symlink_to(path)
    (tmp_path / "hard.csv").hardlink_to(path)
    for name in ("in.csv", "link.csv", "hard.csv"):
        with pytest.raises(DataError, match="also one of the inputs"):
            check_output(tmp_path / name, inputs=[path], force=True)
        with pytest.raises(DataError, match="also one of the inputs"):
            check_side_output(tmp_path / name, "--json", (".csv",), inputs=[path], force=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("n" * 300, "File name too long"),
        ("/proc/x.csv", "No such file"),
        ("file/x.csv", "Not a directory"),
        (".", "is a directory"),
    ],
)
def test_what_cannot_be_written_is_found_out_before(tmp_path, name, reason):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=reason):
        check_output(tmp_path / name)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("suffix", [".bz2", ".xz", ".zst", ".zip", ".lz4", ".br", ".BZ2"])
def test_compressions_that_are_not_written_are_refused(tmp_path, suffix):
    with pytest.raises(
        DataError, match=re.escape(f"{suffix.lower()} is not written; give a name that ends in .csv.gz")
    ):
        check_output(tmp_path / f"x.csv{suffix}", force=True)


def test_only_text_is_compressed(tmp_path):
    check_output(tmp_path / "x.csv.gz")
    with pytest.raises(DataError, match="Parquet compresses inside"):
        check_output(tmp_path / "x.parquet.gz")


def test_a_side_output_has_the_suffix_of_its_kind(tmp_path):
    check_side_output(tmp_path / "x.json", "--json", (".json",))
    check_side_output(tmp_path / "x.HTML", "--report", (".html", ".htm"))
    with pytest.raises(DataError, match=r"--output writes \.html or \.htm; .* --force"):
        check_side_output(tmp_path / "x.csv", "--output", (".html", ".htm"))
    check_side_output(tmp_path / "x.csv", "--output", (".html", ".htm"), force=True)
    with pytest.raises(ConfigError, match="--save - : a file is written"):
        check_side_output("-", "--save", (".json",))
    check_side_output("-", "--json", (".json",), stdout=True)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("x.json", b' {"a": 1}'),
        ("x.json", b"[1]"),
        ("x.html", b"<!doctype html>"),
        ("x.png", b"\x89PNG\r\n\x1a\n"),
        ("x.svg", b"<?xml version"),
        ("x.pdf", b"%PDF-1.4"),
    ],
)
def test_an_existing_file_of_another_kind_needs_force(tmp_path, name, own):
    path = tmp_path / name
    for content in (own, b""):
        path.write_bytes(content)
        check_side_output(path, "--json", (path.suffix,))
    path.write_bytes(b"Id,ECR\na,0.5\n")
    with pytest.raises(DataError, match=f"exists and is not a {path.suffix} file"):
        check_side_output(path, "--json", (path.suffix,))
    check_side_output(path, "--json", (path.suffix,), force=True)
