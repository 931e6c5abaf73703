"""`kill -9` of a recipe at any step, then the same command with --resume_from_checkpoint: as if nothing had happened."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.distributed.launch import REPO, environment, run

pytestmark = pytest.mark.slow


def command(tiny_qwen, tiny_clips, output):
    words = ["--model", tiny_qwen, "--train_data", tiny_clips / "train.csv", "--eval_data", tiny_clips / "eval.csv"]
    words += [
        "--video_dir",
        tiny_clips / "videos",
        "--output_dir",
        output,
        "--use_cpu",
        "true",
        "--max_pixels",
        6 * 784,
    ]
    words += [
        "--per_device_train_batch_size",
        2,
        "--num_train_epochs",
        8,
        "--learning_rate",
        1e-3,
        "--head_dropout",
        0.2,
    ]
    words += ["--logging_steps", 1, "--eval_strategy", "steps", "--eval_steps", 7, "--save_strategy", "steps"]
    words += ["--save_steps", 7, "--save_total_limit", 20, "--dataloader_num_workers", 1, "--loss", "mse + 0.5*plcc"]
    return [sys.executable, str(REPO / "recipes" / "qwen_sft.py"), *map(str, words)]


def losses(output):
    newest = max(output.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return [e["loss"] for e in json.loads((newest / "trainer_state.json").read_text())["log_history"] if "loss" in e]


def test_a_killed_recipe_goes_on_to_the_same_result(tiny_qwen, tiny_clips, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(command(tiny_qwen, tiny_clips, whole))

    log = tmp_path / "cut.log"
    with open(log, "w") as stream:
        process = subprocess.Popen(
            command(tiny_qwen, tiny_clips, cut), env=environment(), stdout=stream, stderr=stream, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while "step 17 " not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (cut / "metrics.json").exists()
    assert len(list(cut.glob("checkpoint-*"))) < 7

    # Without saying what to do with the half-finished run, the recipe refuses.
    refused = run(command(tiny_qwen, tiny_clips, cut), check=False)
    assert refused.returncode == 2
    assert "go on with --resume_from_checkpoint" in refused.stderr

    resumed = run([*command(tiny_qwen, tiny_clips, cut), "--resume_from_checkpoint"])
    assert "resuming from" in resumed.stderr
    assert len(losses(whole)) == 48
    np.testing.assert_array_equal(losses(cut), losses(whole))
    metrics = [json.loads((directory / "metrics.json").read_text()) for directory in (cut, whole)]
    assert metrics[0]["eval"] == metrics[1]["eval"]
    assert metrics[0]["train"]["best_step"] == metrics[1]["train"]["best_step"]
    assert (cut / "predictions" / "eval.csv").read_bytes() == (whole / "predictions" / "eval.csv").read_bytes()
