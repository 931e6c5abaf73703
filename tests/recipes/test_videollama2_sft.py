"""The VideoLLaMA2 recipe as users start it: a short run on few clips with sound, and what it leaves behind."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lmm_ecr.data.prompt import DEFAULT_TEMPLATE
from lmm_ecr.data.synthetic import PROMPT_TEXTS
from lmm_ecr.predict import predict_table

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes/videollama2_sft.py"


def launch(*words, cwd) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", str(RECIPE), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=400)


def short_run(clips, output, *words):
    """The embedded default (tiny model, sound, ablations) on the test clips and for a few steps."""
    return [
        "--train_data", clips / "train.csv", "--eval_data", clips / "eval.csv", "--video_dir", clips / "videos",
        "--output_dir", output, "--num_train_epochs", 2, "--per_device_train_batch_size", 4, "--logging_steps", 1,
        "--dataloader_num_workers", 0, "--use_cpu", *words,
    ]  # fmt: skip


def scores(path) -> dict[str, float]:
    with open(path, newline="") as stream:
        return {row["Id"]: float(row["ECR"]) for row in csv.DictReader(stream)}


def predict(model, clips, output, **options) -> dict[str, float]:
    predict_table(
        model, str(clips / "eval.csv"), output, video_dir=str(clips / "videos"), num_workers=0, device="cpu", **options
    )
    return scores(output)


@pytest.fixture(scope="module")
def finished(tiny_clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videollama2")
    done = launch(*short_run(tiny_clips, "run"), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "run", done.stdout


@pytest.mark.slow
def test_run_directory_and_record(finished):
    run, _ = finished
    for name in (
        "config.json", "model.safetensors", "preprocessing.json", "processor_config.json", "tokenizer.json",
        "predictions/eval.csv", "metrics.json", "plots/eval_scatter.png", "run.json",
    ):  # fmt: skip
        assert (run / name).stat().st_size > 0, name
    record = json.loads((run / "run.json").read_text())
    # The family's defaults are resolved in the record; vision is trained because the tiny one starts from random weights.
    tuning = record["arguments"]["tuning"]
    assert [tuning[part] for part in ("vision", "projector", "audio", "audio_projector", "head")] == ["train"] * 5
    assert record["preprocessing"]["audio"]["seconds"] == 3
    assert record["preprocessing"]["audio_windows"] == "all"
    assert record["preprocessing"]["audio_padding_seconds"] is None
    metrics = json.loads((run / "metrics.json").read_text())
    assert set(metrics["eval_ablations"]) == {"blank-text", "shuffle-frames", "mute"}


@pytest.mark.slow
def test_predict_gives_the_same_scores_as_the_run(finished, tiny_clips, tmp_path):
    run, _ = finished
    ours, theirs = scores(run / "predictions/eval.csv"), predict(run, tiny_clips, tmp_path / "out.csv")
    assert list(ours) == list(theirs)
    np.testing.assert_allclose(list(theirs.values()), list(ours.values()), rtol=0, atol=1e-6)
    muted = predict(run, tiny_clips, tmp_path / "mute.csv", ablations=("mute",))
    assert max(abs(muted[name] - ours[name]) for name in ours) > 1e-6


@pytest.mark.slow
def test_output_for_a_newcomer(finished):
    _, text = finished
    for word in (
        "What is trained",
        "audio_projector",
        "VideoLLaMA2.1-AV fine-tuned",
        "mute",
        "lmm-ecr predict --model",
    ):
        assert word in text, word


@pytest.mark.slow
def test_frozen_vision_lora_and_percent_from_a_backbone(tiny_clips, tiny_videollama2, tmp_path):
    """Without the embedded settings the family's defaults hold: vision frozen, 5e-5. An adapter finds its backbone again."""
    words = [
        "--model",
        tiny_videollama2,
        "--audio_padding_seconds",
        2,
        "--audio_windows",
        "all",
        "--head_hidden_size",
        16,
    ]
    words += ["--language_model", "lora", "--label_transform", "percent", "--gradient_checkpointing", "--num_frames", 4]
    done = launch(*short_run(tiny_clips, "lora", *words), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "lora/adapter_config.json").is_file()
    record = json.loads((tmp_path / "lora/run.json").read_text())
    assert record["arguments"]["tuning"]["vision"] == "freeze"
    assert record["arguments"]["training"]["learning_rate"] == 5e-5
    ours = scores(tmp_path / "lora/predictions/eval.csv")
    theirs = predict(tmp_path / "lora", tiny_clips, tmp_path / "out.csv")
    np.testing.assert_allclose(list(theirs.values()), list(ours.values()), rtol=0, atol=1e-6)
    assert 0.2 < np.mean(list(ours.values())) < 0.8  # in label units, not percent


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_pixels", "784"], "--max_pixels: a videollama2 model has no such setting"),
        (["--audio_mode", "whole"], "--audio_seconds has no effect on the whole sound"),
        (["--audio_windws", "all"], "did you mean 'audio_windows'"),
    ],
)
def test_mistakes_are_explained(tiny_clips, tmp_path, words, message):
    done = subprocess.run(
        [sys.executable, str(RECIPE), *map(str, short_run(tiny_clips, "run", *words))],
        cwd=tmp_path, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2
    assert message in done.stderr
    assert "videollama2_sft.py: error:" in done.stderr


def test_the_tiny_model_is_written_as_the_recipe_reads_it(tiny_videollama2, tmp_path):
    """Same seed, same bytes: the embedded default is the same run everywhere."""
    from lmm_ecr.models.tiny_videollama2 import write_tiny_videollama2

    again = write_tiny_videollama2(tmp_path, [DEFAULT_TEMPLATE, *PROMPT_TEXTS])
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (again / name).read_bytes() == (tiny_videollama2 / name).read_bytes(), name
