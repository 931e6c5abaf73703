"""One process, two, and two with DeepSpeed give the same losses, weights' predictions and checkpoints.

Eleven clips in batches of 8 (so the second step of an epoch has 3) and five evaluation clips in batches of 2: nothing divides
evenly.
"""

import json
import shutil
import sys

import numpy as np
import pytest

from lmm_ecr.files import read_json, write_json
from lmm_ecr.predictions import read_predictions
from tests.data.media import write_clip

from . import driver
from .launch import run, torchrun

pytestmark = pytest.mark.distributed

MSE, PLCC, RANK = "mse", "mse + 0.5*plcc", "rank"
MIXED = "mse + 0.5*plcc + 0.1*rank"
# With micro-batches of one clip, a process often has no sound while the other one has; nothing of the encoders is trained.
SILENT = {
    "family": "videollama2",
    "loss": MSE,
    "silent": [0, 2, 3, 7, 8],
    "tuning": {"audio": "freeze", "audio_projector": "freeze"},
}
ONE = {
    "mse": {"loss": MSE},
    "plcc": {"loss": PLCC},
    "rank": {"loss": RANK},
    "accumulated": {"loss": MIXED},
    "broken": {"loss": PLCC, "broken": [0, 4, 5, 9]},
    "lora": {"loss": MSE, "lora": True},
    "saved": {"loss": PLCC, "save": True},
    "silent": SILENT,
}
TWO = {
    "ddp-mse": {"loss": MSE},
    "ddp-plcc": {"loss": PLCC},
    "ddp-rank": {"loss": RANK},
    "ddp-accumulated": {"loss": MIXED, "accumulation": 2},
    "ddp-broken": {"loss": PLCC, "accumulation": 4, "broken": [0, 4, 5, 9]},
    "ddp-silent": {**SILENT, "accumulation": 4},
    "ddp-stopped": {"loss": PLCC, "save": True, "stop": 2, "directory": "ddp-saved"},
    "ddp-saved": {"loss": PLCC, "save": True, "resume": True},
    "zero1-mse": {"strategy": "zero1", "loss": MSE},
    "zero2-mse": {"strategy": "zero2", "loss": MSE},
    "zero2-plcc": {"strategy": "zero2", "loss": PLCC},
    "zero2-accumulated": {"strategy": "zero2", "loss": MIXED, "accumulation": 2},
    "zero2-bf16": {"strategy": "zero2", "loss": MSE, "bf16": True},
    "zero3-mse": {"strategy": "zero3", "loss": MSE},
    "zero3-rank": {"strategy": "zero3", "loss": RANK},
    "zero3-accumulated": {"strategy": "zero3", "loss": MIXED, "accumulation": 2},
    "zero3-lora": {"strategy": "zero3", "loss": MSE, "lora": True, "save": True},
    "zero3-bf16": {"strategy": "zero3", "loss": MSE, "bf16": True, "lora": True},
    "zero3-silent": {**SILENT, "strategy": "zero3", "accumulation": 4},
    "zero3-stopped": {"strategy": "zero3", "loss": PLCC, "save": True, "stop": 2, "directory": "zero3-saved"},
    "zero3-saved": {"strategy": "zero3", "loss": PLCC, "save": True, "resume": True},
}


@pytest.fixture(scope="module")
def results(tiny_qwen, tiny_videollama2, tiny_clips, tmp_path_factory):
    """name -> one result per process; and the directory of all runs."""
    output = tmp_path_factory.mktemp("equality")
    sound = shutil.copytree(tiny_videollama2, output / "videollama2")
    config = read_json(sound / "config.json")
    config["audio_config"]["layerdrop"] = 0.0  # each process draws its own
    write_json(sound / "config.json", config)
    (output / "broken.mp4").write_bytes(b"no video")
    job = {
        "backbones": {"qwen2_5_vl": str(tiny_qwen), "videollama2": str(sound)},
        "train": str(tiny_clips / "train.csv"),
        "eval": str(tiny_clips / "eval.csv"),
        "videos": str(tiny_clips / "videos"),
        "broken": str(output / "broken.mp4"),
        "silent": str(write_clip(output / "silent.mp4")),
        "output": str(output),
    }
    for processes, runs in ((1, ONE), (2, TWO)):
        content = {**job, "processes": processes, "runs": {k: {"strategy": "plain", **v} for k, v in runs.items()}}
        (output / f"job{processes}.json").write_text(json.dumps(content))
    for name, options in json.loads((output / "job1.json").read_text())["runs"].items():
        driver.run({**job, "processes": 1}, name, options)
    run(torchrun("-m", "tests.distributed.driver", str(output / "job2.json")), DS_ACCELERATOR="cpu")
    found = {}
    for path in sorted(output.glob("*.[01].json")):
        found.setdefault(path.name.rsplit(".", 2)[0], []).append(json.loads(path.read_text()))
    return found, output


def assert_same(results, name, expected, predictions=1e-5):
    (reference,) = results[expected]
    for result in results[name]:
        np.testing.assert_allclose(result["losses"], reference["losses"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(result["predictions"], reference["predictions"], rtol=0, atol=predictions)
        np.testing.assert_allclose(result["eval"], reference["eval"], rtol=0, atol=predictions)
        assert all(result["readable"])
        assert len(result["predictions"]) == 5


@pytest.mark.parametrize(
    ("strategy", "run"),
    [("ddp", "mse"), ("zero2", "mse"), ("zero3", "mse"), ("zero3", "silent")],
)
def test_processes_were_really_two_and_sharded(results, strategy, run):
    for result in results[0][f"{strategy}-{run}"]:
        kind = "MULTI_CPU" if strategy == "ddp" else "DEEPSPEED"
        assert result["world"] == [2, f"DistributedType.{kind}"]
        assert result["sharded"] == (strategy == "zero3")
    assert results[0]["mse"][0]["world"][0] == 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ddp-mse", "mse"),
        ("zero1-mse", "mse"),
        ("zero2-mse", "mse"),
        ("zero3-mse", "mse"),
        ("ddp-plcc", "plcc"),
        ("zero2-plcc", "plcc"),
        ("zero3-lora", "lora"),
        ("ddp-accumulated", "accumulated"),
        ("ddp-silent", "silent"),
        ("zero3-silent", "silent"),
        ("zero2-accumulated", "accumulated"),
        ("zero3-accumulated", "accumulated"),
    ],
)
def test_losses_and_predictions_equal_those_of_one_process(results, name, expected):
    assert_same(results[0], name, expected)


@pytest.mark.parametrize("name", ["ddp-rank", "zero3-rank"])
def test_rank_loss(results, name):
    """The rank loss does not see a common offset: rounding decides which way AdamW moves the last bias."""
    assert_same(results[0], name, "rank", predictions=2e-4)


def test_a_process_whose_clips_are_all_unreadable_takes_part_without_a_say(results):
    """Micro-batches of one clip: each unreadable clip is a whole batch of its process."""
    assert_same(results[0], "ddp-broken", "broken")
    ids = results[0]["broken"][0]["rejected"]
    assert len(ids) == 4


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_one_process_gets_a_signal_and_all_stop_at_the_same_step_and_resume_to_the_same_result(results, strategy):
    """The signal comes at the last step of the first epoch, before its evaluation: the run stops after the next step."""
    messages = {result["stopped"].split("; ")[0] for result in results[0][f"{strategy}-stopped"]}
    assert messages == {
        "stopped by SIGUSR1 after step 3",
        "stopped by a signal to another process after step 3",
    }
    assert_same(results[0], f"{strategy}-saved", "saved")


@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3"])
def test_the_new_head_is_initialised_and_equal_on_all_processes(results, strategy):
    (reference,) = results[0]["mse"]
    first, second = (result["head"] for result in results[0][f"{strategy}-mse"])
    assert first == second == reference["head"]
    assert 0.018 < first["std"] < 0.022
    assert first["bias"] == 0


@pytest.mark.parametrize("name", ["zero2-bf16", "zero3-bf16"])
def test_bfloat16_weights_keep_float32_scores(results, name):
    """A head computed in bfloat16 would give about 100 different values for 256 inputs."""
    for result in results[0][name]:
        assert result["distinct_scores"] > 250
        assert np.isfinite(result["losses"]).all()


@pytest.mark.parametrize(("name", "expected"), [("zero3-saved", "saved"), ("zero3-lora", None)])
def test_a_zero3_checkpoint_is_loaded_without_deepspeed(results, tiny_clips, tmp_path, name, expected):
    found, output = results
    data = tmp_path / "eval.csv"
    data.write_text("".join((tiny_clips / "eval.csv").read_text().splitlines(keepends=True)[:6]))
    program = "import sys; sys.modules['deepspeed'] = None; from lmm_ecr.cli import main; main()"
    arguments = ["--model", str(output / name), "--data", str(data), "--video-dir", str(tiny_clips / "videos")]
    run([sys.executable, "-c", program, "predict", *arguments, "--output", str(tmp_path / "out.csv")])
    scores = read_predictions(tmp_path / "out.csv").values
    np.testing.assert_allclose(scores, found[expected or name][0]["predictions"], rtol=0, atol=1e-5)
