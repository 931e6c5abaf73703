"""`lmm_ecr.predict` in several processes: a killed process loses nothing, nothing is scored twice, the order is the table's."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lmm_ecr.models.qwen2_5_vl import Qwen25VLSpec
from lmm_ecr.models.regression import LmmRegressor
from lmm_ecr.predictions import read_predictions
from lmm_ecr.predictor import Predictor

from .launch import environment, run, torchrun

pytestmark = pytest.mark.distributed
NUM_ROWS = 300


@pytest.fixture(scope="module")
def model(tiny_qwen, tiny_processor, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    regressor = LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=16)
    regressor.save_pretrained(directory)
    tiny_processor.save_pretrained(directory)
    assert isinstance(tiny_processor.spec, Qwen25VLSpec)
    return directory


@pytest.fixture(scope="module")
def table(tiny_clips, tmp_path_factory) -> Path:
    """300 rows: the same 12 clips again and again, under different ids and titles."""
    path = tmp_path_factory.mktemp("table") / "many.csv"
    videos = sorted((tiny_clips / "videos").glob("*.mp4"))[:12]
    with open(path, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Id", "Title", "Description", "Video"])
        writer.writerows([f"r{i:03d}", f"number {i}", "", videos[i % 12]] for i in range(NUM_ROWS))
    return path


def arguments(model, table, output):
    names = ["--model", model, "--data", table, "--video-dir", table.parent, "--output", output]
    return [*map(str, names), "--batch-size", "2", "--num-workers", "0", "--device", "cpu"]


def finished_rows(output) -> list[str]:
    return [line for path in Path(f"{output}.partial").glob("part-*") for line in path.read_text().splitlines()]


def children(pid: int) -> list[int]:
    """Processes whose parent is `pid`."""
    text = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(word) for word in text.split()]


def start_and_wait_for_rows(command, output, rows):
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while len(finished_rows(output)) < rows:
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_a_killed_process_and_a_stopped_run_lose_and_double_nothing(model, table, tmp_path):
    output = tmp_path / "out.csv"
    launched = torchrun("-m", "lmm_ecr.predict", *arguments(model, table, output))
    first = start_and_wait_for_rows(launched, output, 20)
    os.kill(children(first.pid)[-1], signal.SIGKILL)
    log, _ = first.communicate(timeout=60)
    assert first.returncode != 0
    assert "SIGKILL" in log  # the launcher says which process died of what
    kept = len(finished_rows(output))
    assert 20 <= kept < NUM_ROWS
    assert not output.exists()

    # Goes on in one process, is stopped by a signal: it ends by itself, with the status that means "start me again".
    alone = [sys.executable, "-m", "lmm_ecr.predict", *arguments(model, table, output)]
    second = start_and_wait_for_rows(alone, output, kept + 10)
    second.send_signal(signal.SIGUSR1)
    log, _ = second.communicate(timeout=30)
    assert second.returncode == 85, log
    assert "stopped by SIGUSR1; finished rows are kept" in log
    kept = len(finished_rows(output))
    assert kept < NUM_ROWS

    done = run(launched)
    assert f"{NUM_ROWS} of {NUM_ROWS} rows scored, {kept} of them by an earlier run" in done.stdout
    result = read_predictions(output)
    assert result.ids.to_pylist() == [f"r{i:03d}" for i in range(NUM_ROWS)]
    with open(table, newline="") as stream:
        rows = list(csv.DictReader(stream))
    predictor = Predictor.from_pretrained(model, device="cpu")
    sample = range(0, NUM_ROWS, 17)
    expected = predictor.predict([{"video": rows[i]["Video"], "title": rows[i]["Title"]} for i in sample])
    np.testing.assert_allclose(result.values[list(sample)], expected[:, 0], rtol=0, atol=1e-5)


def test_unreadable_clips_are_collected_from_all_processes_and_finished_work_is_seen_by_all(
    model, table, tiny_clips, tmp_path
):
    rows = list(csv.DictReader(table.read_text().splitlines()))[:12]
    names = [Path(row["Video"]).name for row in rows]
    videos = tmp_path / "videos"
    shutil.copytree(tiny_clips / "videos", videos)
    small, output = videos / "small.csv", tmp_path / "out.csv"
    with open(small, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Id", "Title", "Video"])
        writer.writerows([row["Id"], row["Title"], name] for row, name in zip(rows, names, strict=True))
    sound = {name: (videos / name).read_bytes() for name in names[2:7]}
    for name in sound:
        (videos / name).write_bytes(b"")
    (videos / names[6]).unlink()
    words = arguments(model, small, output)

    done = run(torchrun("-m", "lmm_ecr.predict", *words), check=False)
    assert done.returncode == 1
    assert "7 of 12 rows scored (" in done.stdout, done.stderr
    with open(f"{output}.rejected.csv", newline="") as stream:
        found = [(r["Id"], r["reason"]) for r in csv.DictReader(stream)]
    assert found == [(f"r{i:03d}", "missing" if i == 6 else "empty") for i in range(2, 7)]
    assert not output.exists()

    for name, data in sound.items():
        (videos / name).write_bytes(data)
    done = run(torchrun("-m", "lmm_ecr.predict", *words, processes=3))
    assert "12 of 12 rows scored, 7 of them by an earlier run" in done.stdout
    assert read_predictions(output).ids.to_pylist() == [row["Id"] for row in rows]
    written = output.stat().st_mtime_ns
    done = run(torchrun("-m", "lmm_ecr.predict", *words))
    assert "already complete: 12 of 12 rows" in done.stdout
    assert output.stat().st_mtime_ns == written
