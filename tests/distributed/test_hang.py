"""A process that stops answering ends the run after the documented time, with a message that names who waited and for what."""

import os
import signal
import subprocess
import time

import psutil
import pytest

from .launch import REPO, environment, torchrun

pytestmark = pytest.mark.distributed


def wait_for(text: str, path, seconds: float) -> str:
    """The content of `path` once it holds `text`."""
    end = time.monotonic() + seconds
    while text not in (content := path.read_text()):
        assert time.monotonic() < end, f"{text!r} did not appear within {seconds} s:\n{content[-3000:]}"
        time.sleep(0.2)
    return content


def test_a_process_that_stops_answering_ends_the_run(tiny_qwen, tiny_clips, tmp_path):
    words = ["--train_data", tiny_clips / "train.csv", "--eval_data", tiny_clips / "eval.csv", "--model", tiny_qwen]
    words += ["--video_dir", tiny_clips / "videos", "--max_pixels", 4704, "--output_dir", tmp_path / "run"]
    words += ["--use_cpu", "true", "--dataloader_num_workers", 0, "--logging_steps", 1, "--max_steps", 100_000]
    words += ["--eval_strategy", "no", "--save_strategy", "no", "--ddp_timeout", 10]
    command = torchrun(str(REPO / "recipes" / "qwen_sft.py"), *map(str, words))
    log = tmp_path / "log"
    with log.open("w") as output:
        launcher = subprocess.Popen(
            command, env=environment(), stdout=output, stderr=output, cwd=REPO, start_new_session=True
        )
    try:
        wait_for("step 2 ", log, 120)
        (stuck,) = (p for p in psutil.Process(launcher.pid).children() if p.environ().get("RANK") == "1")
        stuck.suspend()
        content = wait_for("died of", log, 60)
        assert "rank 0 of 2: qwen_sft.py died of RuntimeError" in content
        assert "Timed out waiting 10000ms" in content
    finally:
        for process in (*psutil.Process(launcher.pid).children(recursive=True), psutil.Process(launcher.pid)):
            os.kill(process.pid, signal.SIGKILL)
        launcher.wait()
