"""The job scripts on a real two-node SLURM: preemption, requeue, the same result; and the winning system's chain.

The cluster script lies beside the repository (../shared/slurm); where it does not, or SLURM cannot be installed, this is
skipped.
"""

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from lmm_ecr.predictions import read_predictions
from tests.predicting import write_model

from .launch import REPO, environment

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
CLUSTER = REPO / ".." / "shared" / "slurm" / "local_cluster.sh"
FINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Environment in which sbatch talks to a cluster of two nodes."""
    if not CLUSTER.is_file():
        pytest.skip(f"no {CLUSTER.name} beside the repository")
    if shutil.which("slurmctld") is None and (shutil.which("apt-get") is None or os.geteuid() != 0):
        pytest.skip("SLURM is not installed and cannot be: that takes Debian's packages and root")
    directory = Path(f"/tmp/slurm-test-{os.getpid()}")  # short: sockets lie in it
    settings = environment(SLURM_LOCAL_DIR=str(directory), PROCESSES_PER_NODE="1")
    up = subprocess.run(["bash", str(CLUSTER), "up"], env=settings, capture_output=True, text=True, check=False)
    if up.returncode != 0:
        pytest.skip(f"the cluster did not start: {(up.stdout + up.stderr)[-500:]}")
    shown = subprocess.run(
        ["bash", str(CLUSTER), "env"], env=settings, capture_output=True, text=True, check=True
    ).stdout
    settings["SLURM_CONF"] = shown.strip().split("SLURM_CONF=")[1].strip("'\" ")
    yield settings
    subprocess.run(["bash", str(CLUSTER), "down", "--purge"], env=settings, capture_output=True, check=False)


def call(settings, *command: str) -> str:
    done = subprocess.run(command, env=settings, capture_output=True, text=True, cwd=REPO, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def state(settings, job: str) -> str:
    return call(settings, "scontrol", "show", "job", "-o", job).split("JobState=")[1].split()[0]


def wait_for(settings, job: str, timeout: float = 240) -> str:
    deadline = time.monotonic() + timeout
    while (found := state(settings, job)) not in FINAL:
        assert time.monotonic() < deadline, f"job {job} is still {found}"
        time.sleep(0.3)
    return found


def recipe_arguments(tiny_clips, cache):
    return [
        *("--train_data", str(tiny_clips / "train.csv"), "--eval_data", str(tiny_clips / "eval.csv")),
        *("--video_dir", str(tiny_clips / "videos"), "--cache_dir", str(cache), "--use_cpu", "true"),
        *("--dataloader_num_workers", "0", "--bootstrap_resamples", "0", "--eval_ablations"),
    ]


def submit_training(settings, directory, tiny_clips, cache) -> str:
    options = [
        "--parsable",
        "--nodes=2",
        f"--output={directory}.log",
        "launch/slurm/train.sbatch",
        "recipes/qwen_sft.py",
    ]
    words = ["--output_dir", str(directory), "--num_train_epochs", "30", "--per_device_train_batch_size", "3"]
    words += ["--logging_steps", "1", "--eval_strategy", "steps", "--eval_steps", "20", "--save_strategy", "steps"]
    words += ["--save_steps", "20", "--learning_rate", "1e-4", "--head_dropout", "0.1"]
    return call(settings, "sbatch", *options, *recipe_arguments(tiny_clips, cache), *words).strip()


def losses(directory: Path) -> list[float]:
    newest = max(directory.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return [e["loss"] for e in json.loads((newest / "trainer_state.json").read_text())["log_history"] if "loss" in e]


def test_a_preempted_job_on_two_nodes_finishes_with_the_result_of_the_uninterrupted_one(slurm, tiny_clips, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert wait_for(slurm, job := submit_training(slurm, whole, tiny_clips, tmp_path)) == "COMPLETED", read(
        f"{whole}.log"
    )
    assert "2 processes on 2 nodes" in read(f"{whole}.log")

    job = submit_training(slurm, cut, tiny_clips, tmp_path)
    deadline = time.monotonic() + 120
    while "step 10 " not in read(f"{cut}.log"):
        assert time.monotonic() < deadline, read(f"{cut}.log")
        time.sleep(0.05)
    call(slurm, "scancel", "--batch", "--signal=USR1", job)
    assert wait_for(slurm, job) == "COMPLETED", read(f"{cut}.log")
    log = read(f"{cut}.log")
    print(log)  # the record of the run, shown with pytest -s
    assert "asking the program to save and stop" in log
    assert log.count("qwen_sft.py: stopped: stopped by") == 2
    assert f"requeueing job {job}" in log
    assert f"job {job}, run 2" in log
    assert "resuming from" in log.split(f"job {job}, run 2")[1]
    assert len(losses(cut)) == 60
    np.testing.assert_array_equal(losses(cut), losses(whole))
    metrics = [json.loads((d / "metrics.json").read_text())["eval"] for d in (cut, whole)]
    assert metrics[0] == metrics[1]
    scores = [read_predictions(d / "predictions" / "eval.csv").values for d in (cut, whole)]
    np.testing.assert_array_equal(*scores)


def test_a_preempted_prediction_goes_on_and_ends_with_every_row_once(
    slurm, tiny_clips, tiny_qwen, tiny_processor, tmp_path
):
    model = write_model(tmp_path / "model", tiny_qwen, tiny_processor)
    table, output, log = tmp_path / "table.csv", tmp_path / "out.csv", tmp_path / "predict.log"
    clips = sorted((tiny_clips / "videos").glob("*.mp4"))
    names = [f"r{i:03d}" for i in range(300)]
    table.write_text("Id,Video\n" + "".join(f"{name},{clips[i % len(clips)]}\n" for i, name in enumerate(names)))
    words = ["--model", str(model), "--data", str(table), "--output", str(output), "--batch-size", "2"]
    words += ["--device", "cpu", "--num-workers", "0"]
    command = ["sbatch", "--parsable", "--nodes=2", f"--output={log}", "launch/slurm/predict.sbatch", *words]
    job = call(slurm, *command).strip()
    parts = [tmp_path / "out.csv.partial" / f"part-{rank:05d}.jsonl" for rank in range(2)]
    deadline = time.monotonic() + 120
    while not all(read(part).count("\n") >= 10 for part in parts):
        assert time.monotonic() < deadline, read(log)
        assert not output.exists(), "it ended before it could be preempted"
        time.sleep(0.02)
    call(slurm, "scancel", "--batch", "--signal=USR1", job)
    assert wait_for(slurm, job) == "COMPLETED", read(log)
    assert f"requeueing job {job}" in read(log)
    resumed = re.search(
        r"300 of 300 rows scored, (\d+) of them by an earlier run", read(log).split(f"job {job}, run 2")[1]
    )
    assert 20 <= int(resumed[1]) < 300
    assert read_predictions(output).ids.to_pylist() == names

    written = output.stat().st_mtime_ns
    again = call(slurm, *command).strip()
    assert wait_for(slurm, again) == "COMPLETED", read(log)
    assert "already complete: 300 of 300 rows" in read(log)
    assert output.stat().st_mtime_ns == written


def test_the_winning_systems_chain_ends_in_one_file(slurm, tiny_clips, tmp_path):
    """Four trainings side by side, a prediction behind each, the ensemble behind all of them."""
    arguments = " ".join([*recipe_arguments(tiny_clips, tmp_path)[6:-1], "--num_train_epochs 1", "--eval_ablations"])
    settings = {
        **slurm,
        "OUTPUT": str(tmp_path / "chain"),
        "TRAIN_DATA": str(tiny_clips / "train.csv"),
        "EVAL_DATA": str(tiny_clips / "eval.csv"),
        "TEST_DATA": str(tiny_clips / "eval.csv"),
        "VIDEO_DIR": str(tiny_clips / "videos"),
        "TRAIN_RESOURCES": "--nodes=1",
        "PREDICT_RESOURCES": "--nodes=1",
        "VIDEOLLAMA2": arguments,
        "QWEN": arguments,
        "PREDICT": "--device cpu --num-workers 0",
    }
    submitted = call(settings, "launch/slurm/ecnu_sjtu.sh")
    print(submitted)
    last = submitted.split()[-1]
    logs = tmp_path / "chain" / "logs"
    assert wait_for(slurm, last, 300) == "COMPLETED", "\n".join(read(p)[-1500:] for p in sorted(logs.glob("*")))
    names = ["videollama2_8frames_seed1", "videollama2_8frames_seed2", "videollama2_5frames", "qwen2_5_vl"]
    members = [read_predictions(tmp_path / "chain" / "predictions" / f"{name}.csv") for name in names]
    final = read_predictions(tmp_path / "chain" / "submission.csv")
    assert final.ids.to_pylist() == members[0].ids.to_pylist()
    np.testing.assert_allclose(final.values, np.mean([m.values for m in members], axis=0), rtol=0, atol=1e-9)
    records = [json.loads((tmp_path / "chain" / name / "run.json").read_text()) for name in names]
    assert [r["seed"] for r in records] == [1, 2, 3, 4]
    assert [r["preprocessing"]["sampling"]["num_frames"] for r in records] == [8, 8, 5, 8]


def read(path) -> str:
    return Path(path).read_text() if Path(path).is_file() else ""
