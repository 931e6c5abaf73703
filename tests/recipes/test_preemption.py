"""SIGTERM to all processes of a job at once, as batch systems and `timeout` send it: everything is saved, status 85."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lmm_ecr import LmmRegressor
from lmm_ecr.data.synthetic import SyntheticSpec, generate_dataset
from tests.distributed.launch import REPO, environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return generate_dataset(tmp_path_factory.mktemp("clips"), SyntheticSpec(num_train=48, num_eval=6))


@pytest.fixture(scope="module")
def run_dir(tiny_qwen, tiny_processor, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("model")
    LmmRegressor.from_backbone(str(tiny_qwen), head_hidden_size=16).save_pretrained(directory)
    tiny_processor.save_pretrained(directory)
    return directory


def stop_group(words: list, log: Path, begun: Callable[[str], bool]) -> tuple[int, str]:
    """Start a program in a process group of its own and send SIGTERM to all of it once it has begun."""
    with open(log, "w") as stream:
        process = subprocess.Popen(
            [sys.executable, *map(str, words)], env=environment(), stdout=stream, stderr=stream, start_new_session=True
        )
        deadline = time.monotonic() + 240
        while not begun(log.read_text()):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGTERM)
        status = process.wait(timeout=120)
    return status, log.read_text()


def test_training_with_workers_saves_and_stops(tiny_qwen, clips, tmp_path):
    output = tmp_path / "out"
    words = [REPO / "recipes" / "qwen_sft.py", "--model", tiny_qwen, "--train_data", clips / "train.csv"]
    words += ["--eval_data", clips / "eval.csv", "--video_dir", clips / "videos", "--output_dir", output]
    words += ["--use_cpu", "true", "--max_pixels", 6 * 784, "--per_device_train_batch_size", 2]
    words += ["--num_train_epochs", 8, "--logging_steps", 1, "--dataloader_num_workers", 2]
    status, text = stop_group(words, tmp_path / "log", lambda text: "step 3 " in text)
    assert status == 85, text
    assert "stopped by SIGTERM after step" in text
    (checkpoint,) = output.glob("checkpoint-*")
    assert (checkpoint / "complete").is_file()


def test_prediction_with_workers_keeps_its_rows(run_dir, clips, tmp_path):
    output = tmp_path / "out.csv"
    journal = tmp_path / "out.csv.partial" / "part-00000.jsonl"
    words = ["-m", "lmm_ecr.cli", "predict", "--model", run_dir, "--data", clips / "train.csv"]
    words += ["--video-dir", clips / "videos", "--output", output, "--batch-size", 1, "--num-workers", 2]
    status, text = stop_group(words, tmp_path / "log", lambda _: journal.exists() and journal.stat().st_size > 0)
    assert status == 85, text
    assert "finished rows are kept" in text
    assert 0 < len(journal.read_text().splitlines()) < 48
