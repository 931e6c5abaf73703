"""The recipe as users start it: a short run on few clips, and what it leaves behind."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmm_ecr.predict import predict_table

ROOT = Path(__file__).resolve().parents[2]


def launch(*words, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", str(ROOT / "recipes/qwen_sft.py"), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def short_run(tiny_qwen, tiny_clips, output, *words):
    return [
        "--model", tiny_qwen, "--train_data", tiny_clips / "train.csv", "--eval_data", tiny_clips / "eval.csv",
        "--video_dir", tiny_clips / "videos", "--output_dir", output, "--max_pixels", 6 * 784,
        "--per_device_train_batch_size", 4, "--num_train_epochs", 2, "--head_hidden_size", 16, "--logging_steps", 1,
        "--dataloader_num_workers", 0, "--use_cpu", *words,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def finished(tiny_qwen, tiny_clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    done = launch(*short_run(tiny_qwen, tiny_clips, "run", "--report_to", "tensorboard"), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", done.stdout


def test_run_directory_is_complete(finished):
    run, _ = finished
    for name in (
        "config.json", "model.safetensors", "preprocessing.json", "tokenizer.json", "predictions/eval.csv", "metrics.json",
        "plots/eval_scatter.png", "run.json",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    assert not list(run.rglob("*.bin")), "no pickles beside the weights"
    assert {p.name for p in run.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}


def test_metrics_have_the_promised_keys(finished):
    metrics = json.loads((finished[0] / "metrics.json").read_text())
    names = ("srocc", "plcc", "krcc", "rmse", "final_score")
    assert set(names) | {"n", "ci95"} <= set(metrics["eval"])
    assert metrics["eval"]["n"] == 6
    assert set(metrics["eval"]["ci95"]) == set(names)
    assert {"runtime_s", "clips_per_s", "peak_memory_gb"} <= set(metrics["train"])
    assert metrics["eval"]["final_score"] == pytest.approx(
        0.6 * metrics["eval"]["srocc"] + 0.4 * metrics["eval"]["plcc"], abs=1e-12
    )


def test_predict_gives_the_same_scores_as_the_run(finished, tiny_clips, tmp_path):
    run, _ = finished
    predict_table(
        run, str(tiny_clips / "eval.csv"), tmp_path / "out.csv", video_dir=str(tiny_clips / "videos"), num_workers=0
    )
    rows = []
    for path in (run / "predictions/eval.csv", tmp_path / "out.csv"):
        with open(path, newline="") as stream:
            rows.append({r["Id"]: float(r["ECR"]) for r in csv.DictReader(stream)})
    assert list(rows[0]) == list(rows[1])
    np.testing.assert_allclose(list(rows[0].values()), list(rows[1].values()), rtol=0, atol=1e-6)


def test_record_repeats_the_run(finished):
    record = json.loads((finished[0] / "run.json").read_text())
    assert record["arguments"]["training"]["loss"] == "mse"
    assert record["arguments"]["data"]["max_pixels"] == 6 * 784
    assert record["packages"]["torch"]
    assert record["seed"] == 42
    assert "--head_hidden_size" in record["command"]
    assert record["data"]["train"] != record["data"]["eval"]


def test_output_for_a_newcomer(finished):
    run, text = finished
    for word in (
        "What is trained",
        "language_model",
        "2e-06",
        "SROCC",
        "clips/s",
        "Predictions",
        "lmm-ecr predict --model",
    ):
        assert word in text, word
    lines = [line for line in text.splitlines() if line.startswith("step ") and "loss" in line and "eval_" not in line]
    assert len(lines) == 6
    assert all(word in line for line in lines for word in ("clips_per_s", "data_wait", "peak_memory_gb"))
    assert list((run / "runs").rglob("events.out.tfevents.*")) or list(run.rglob("events.out.tfevents.*"))


def test_an_earlier_run_is_not_overwritten(finished, tiny_qwen, tiny_clips):
    run, _ = finished
    before = (run / "metrics.json").read_bytes()
    done = launch(*short_run(tiny_qwen, tiny_clips, run), cwd=run.parent)
    assert done.returncode != 0
    assert "holds an earlier run" in done.stderr
    assert "--overwrite_output_dir" in done.stderr
    assert (run / "metrics.json").read_bytes() == before


def test_a_finished_run_is_not_relabelled_by_resuming_with_other_arguments(finished, tiny_qwen, tiny_clips):
    """Bug: no step was run, and run.json and preprocessing.json said what the model was not trained with."""
    run, _ = finished
    names = ("run.json", "preprocessing.json", "metrics.json", "model.safetensors")
    before = [(run / name).read_bytes() for name in names]
    words = ["--loss", "l1", "--num_frames", 4, "--vision", "lora", "--resume_from_checkpoint", "auto"]
    done = launch(*short_run(tiny_qwen, tiny_clips, "run", *words), cwd=run.parent)
    assert done.returncode != 0
    for message in ("loss: mse -> l1", "sampling.num_frames: 8 -> 4", "vision: train -> lora", "another --output_dir"):
        assert message in done.stderr
    assert [(run / name).read_bytes() for name in names] == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--auto_find_batch_size", "true"], "--auto_find_batch_size would change the batch"),
        (["--lora_rnk", "3"], "did you mean 'lora_rank'"),
        (["--train_data", "nothing.csv"], "no such table"),
        (["--audio", "freeze"], "--audio is set"),
    ],
)
def test_mistakes_are_explained(tiny_qwen, tiny_clips, tmp_path, words, message):
    done = launch(*short_run(tiny_qwen, tiny_clips, "run", *words), cwd=tmp_path)
    assert done.returncode != 0
    assert message in done.stderr
    assert "qwen_sft.py: error:" in done.stderr


@pytest.mark.slow
def test_lora_run_predicts_and_merges(tiny_qwen, tiny_clips, tmp_path):
    from lmm_ecr.merge import merge_adapter

    words = [
        "--vision",
        "freeze",
        "--language_model",
        "lora",
        "--pooling",
        "attention",
        "--loss",
        "mse + 0.5*plcc + 0.1*rank",
    ]
    done = launch(*short_run(tiny_qwen, tiny_clips, "lora", *words), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    merge_adapter(tmp_path / "lora", tmp_path / "merged")
    scores = []
    for model in ("lora", "merged"):
        output = tmp_path / f"{model}.csv"
        predict_table(
            tmp_path / model, str(tiny_clips / "eval.csv"), output, video_dir=str(tiny_clips / "videos"), num_workers=0
        )
        with open(output, newline="") as stream:
            scores.append([float(r["ECR"]) for r in csv.DictReader(stream)])
    with open(tmp_path / "lora/predictions/eval.csv", newline="") as stream:
        scores.append([float(r["ECR"]) for r in csv.DictReader(stream)])
    np.testing.assert_allclose(scores[0], scores[1], rtol=0, atol=1e-6)
    np.testing.assert_allclose(scores[0], scores[2], rtol=0, atol=1e-6)
