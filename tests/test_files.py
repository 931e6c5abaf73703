"""Files appear whole or not at all."""

import json
import math
import os
import signal
import stat
import subprocess
import sys

import pytest

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
