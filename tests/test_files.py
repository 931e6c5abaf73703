"""Files appear whole or not at all."""

import json
import math
import os
import re
import signal
import stat
import subprocess
import sys
import threading

import pytest

from lmm_ecr.errors import DataError
from lmm_ecr.files import atomic_write, read_json, write_json


def test_text_is_utf8_with_line_ends_as_written(tmp_path):
    path = tmp_path / "new" / "deep" / "t.csv"
    with atomic_write(path) as stream:
        stream.write("naïve 😀\r\nx\n")
    assert path.read_bytes() == "naïve 😀\r\nx\n".encode()
    assert [p.name for p in path.parent.iterdir()] == ["t.csv"]


def test_readers_see_the_old_file_until_the_block_ends(tmp_path):
    path = tmp_path / "t.bin"
    path.write_bytes(b"old")
    with atomic_write(path, "wb") as stream:
        stream.write(b"new and longer")
        stream.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new and longer"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "t.txt"
    path.write_text("old")

    def write_half():
        with atomic_write(path) as stream:
            stream.write("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]


def test_permissions_follow_the_umask_not_the_temporary_file(tmp_path):
    old = os.umask(0o027)
    try:
        with atomic_write(tmp_path / "t.txt") as stream:
            stream.write("x")
        assert os.umask(0o027) == 0o027, "the process's umask must be left as it was"
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "t.txt").stat().st_mode) == 0o640


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_kill_in_the_middle_of_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("old")
    code = (
        "import os, signal, sys\n"
        "from lmm_ecr.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as stream:\n"
        "    stream.write('half'); stream.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_json_round_trip_keeps_scripts_and_floats(tmp_path):
    value = {"title": "标题 हिन्दी 😀", "pi": math.pi, "list": [1, None, True]}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    assert "标题" in (tmp_path / "v.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_refuses_nan_and_keeps_the_old_file(tmp_path, value):
    path = tmp_path / "v.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": value})
    assert json.loads(path.read_text()) == {"a": 1}


def read_fifo(path) -> tuple[threading.Thread, list[bytes]]:
    content = []
    reader = threading.Thread(target=lambda: content.append(path.read_bytes()), daemon=True)
    reader.start()
    return reader, content


@pytest.mark.parametrize("mode", ["w", "wb"])
def test_a_fifo_is_written_through_and_stays_one(tmp_path, mode):
    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)
    reader, content = read_fifo(fifo)
    with atomic_write(fifo, mode) as stream:
        stream.write("x" if mode == "w" else b"x")
    reader.join(10)
    assert content == [b"x"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_device_is_not_replaced(tmp_path):
    link = tmp_path / "null.json"
    link.symlink_to(os.devnull)
    write_json(link, {"a": 1})
    assert os.readlink(link) == os.devnull
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


def test_a_descriptor_of_a_pipe_is_written_through():
    reading, writing = os.pipe()
    write_json(f"/dev/fd/{writing}", 1)
    os.close(writing)
    with open(reading) as stream:
        assert stream.read() == "1\n"


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_what_it_points_to_is_written(tmp_path, exists):
    (tmp_path / "store").mkdir()
    target, link = tmp_path / "store" / "real.txt", tmp_path / "link.txt"
    link.symlink_to(target)
    if exists:
        target.write_text("old")
    with atomic_write(link) as stream:
        stream.write("new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert os.listdir(tmp_path / "store") == ["real.txt"]


def test_the_longest_name_the_system_takes_can_be_written(tmp_path):
    path = tmp_path / ("n" * 251 + ".csv")
    with atomic_write(path) as stream:
        stream.write("x")
    assert path.read_text() == "x"


def test_what_cannot_be_written_is_told_without_a_trace(tmp_path):
    (tmp_path / "file").write_text("")
    for path, reason in (
        (tmp_path / ("n" * 300), "File name too long"),
        ("/proc/x.csv", "No such file"),
        (tmp_path / "file" / "x.csv", "Not a directory"),
        (tmp_path, "Is a directory"),
        ("/dev/full", "No space left"),
    ):
        with pytest.raises(DataError, match=f"^{re.escape(str(path))}: cannot be written: {reason}"):
            write_json(path, "x" * 100_000)


def test_a_reader_that_went_away_is_not_an_error_of_the_file():
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        write_json(f"/dev/fd/{writing}", "x" * 1_000_000)
    os.close(writing)


def test_a_dash_is_not_a_file_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="standard output"):
        write_json("-", 1)
    assert os.listdir() == []


def test_an_error_of_another_file_keeps_its_kind(tmp_path):
    def read_missing():
        with atomic_write(tmp_path / "t.txt"):
            (tmp_path / "missing").read_text()

    with pytest.raises(FileNotFoundError):
        read_missing()
