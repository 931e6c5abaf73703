"""What a run resumes from: the same training, whole, wherever it lies now; and what it reports over interruptions."""

import json
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import load_file
from transformers import TrainerCallback

from lmm_ecr.arguments import TuningArguments
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.errors import ConfigError, Preempted
from lmm_ecr.models.qwen2_5_vl import Qwen25VLProcessor
from lmm_ecr.training.checkpoints import last_complete_checkpoint
from lmm_ecr.training.finish import save_model

from .runs import Interrupted, Interruption, assert_same_weights, make_trainer, step_losses, weights

LORA = TuningArguments(vision="freeze", projector="freeze", language_model="lora", lora_rank=4)
SAVED = {"save_strategy": "steps", "save_steps": 2}


@pytest.fixture
def run(tiny_qwen, tiny_processor, tiny_manifest, tiny_eval_manifest, tmp_path):
    def make(name, train=tiny_manifest, evaluation=tiny_eval_manifest, processor=tiny_processor, **options):
        return make_trainer(tiny_qwen, processor, train, evaluation, tmp_path / name, **options)

    return make


@pytest.fixture
def started(run, tmp_path):
    """name -> the newest checkpoint of a run that was interrupted at step 3."""

    def start(name="run", **options):
        with pytest.raises(Interrupted):
            run(name, callbacks=[Interruption(3)], **{**SAVED, **options}).train()
        return last_complete_checkpoint(tmp_path / name)

    return start


def refusal(trainer, checkpoint) -> str:
    with pytest.raises(ConfigError) as error:
        trainer.train(str(checkpoint))
    assert "--output_dir" in str(error.value)
    return str(error.value)


def test_other_arguments_are_refused_by_name(run, started, tiny_manifest):
    checkpoint = started()
    changes = {
        "loss": ("l1", "loss: mse -> l1"),
        "learning_rate": (5e-4, "learning_rate: 0.001 -> 0.0005"),
        "num_train_epochs": (3, "num_train_epochs: 2 -> 3"),
        "seed": (7, "seed: 42 -> 7"),
        "per_device_train_batch_size": (4, "global batch size: 2 -> 4"),
        "lr_scheduler_type": ("cosine", "lr_scheduler_type: constant -> cosine"),
        "tuning": (TuningArguments(vision="freeze"), "vision: train -> freeze"),
    }
    for name, (value, message) in changes.items():
        assert message in refusal(run("run", **{**SAVED, name: value}), checkpoint), name
    other = replace(tiny_manifest, rows=[replace(tiny_manifest[0], labels=(0.123,)), *tiny_manifest.rows[1:]])
    message = refusal(run("run", train=other, **SAVED), checkpoint)
    assert "training data: 12 clips, " in message
    assert message.count(" -> ") == 1


def test_other_preprocessing_head_and_label_transform_are_refused(run, started, tiny_qwen, tiny_processor):
    checkpoint = started()
    spec = replace(tiny_processor.spec, sampling=FrameSampling(num_frames=2))
    processor = Qwen25VLProcessor.from_backbone(str(tiny_qwen), spec)
    assert "preprocessing.sampling.num_frames: 8 -> 2" in refusal(run("run", processor=processor, **SAVED), checkpoint)
    trainer = run("run", **SAVED)
    trainer.model.config.head_hidden_size = 8
    trainer.model.config.label_transforms = {"ECR": {"name": "logit", "mean": 0.5}}
    message = refusal(trainer, checkpoint)
    assert "head_hidden_size: 16 -> 8" in message
    assert "label_transform of ECR: " in message


def test_other_lora_settings_are_refused(run, started):
    checkpoint = started(tuning=LORA)
    message = refusal(run("run", tuning=replace(LORA, lora_alpha=64.0), **SAVED), checkpoint)
    assert "lora_alpha: 32.0 -> 64.0" in message


def test_a_finished_run_stays_what_it_is(run, tmp_path):
    run("run", **SAVED).train()
    checkpoint = last_complete_checkpoint(tmp_path / "run")
    assert "loss: mse -> l1" in refusal(run("run", loss="l1", **SAVED), checkpoint)


def test_a_checkpoint_that_does_not_say_what_it_belongs_to_is_refused(run, started):
    checkpoint = started()
    (checkpoint / "identity.json").unlink()
    assert "no identity.json" in refusal(run("run", **SAVED), checkpoint)


def test_the_batch_may_be_split_otherwise_and_logging_may_change(run, started, tmp_path):
    options = {"loss": "mse + 0.5*plcc", "per_device_train_batch_size": 4, "num_train_epochs": 3}
    whole = run("whole", **options)
    whole.train()
    checkpoint = started("cut", **options)
    other = {**options, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    resumed = run("cut", eval_strategy="epoch", save_strategy="epoch", report_to=[], **other)
    resumed.train(str(checkpoint))
    np.testing.assert_allclose(step_losses(resumed), step_losses(whole), rtol=0, atol=1e-5)


def test_a_checkpoint_without_optimizer_is_refused(run, started):
    checkpoint = started(save_only_model=True)
    with pytest.raises(ConfigError, match=r"no state of the optimizer and learning rate schedule.*--save_only_model"):
        run("run", **SAVED).train(str(checkpoint))


def evaluations(trainer):
    return {e["step"]: e["eval_final_score"] for e in trainer.state.log_history if "eval_final_score" in e}


class Scores(TrainerCallback):
    """Makes the evaluation after step `best` the best one."""

    def __init__(self, best):
        self.best = best

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        metrics["eval_final_score"] = 1.0 if state.global_step == self.best else 0.0


BEST = {"eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 2, "num_train_epochs": 3}


def test_a_moved_run_ends_with_its_best_model(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = {**BEST, "num_train_epochs": 4, "callbacks": [Scores(6)]}
    cut = run("before", **options)
    cut.args.output_dir = "before"  # as users write it: relative
    cut.add_callback(Interruption(20))
    with pytest.raises(Interrupted):
        cut.train()
    shutil.move("before", "after")
    shutil.copytree("after/checkpoint-18", "before/checkpoint-6")  # something else where the run used to be
    resumed = run("after", **options)
    resumed.train("after/checkpoint-18")
    assert resumed.loaded_best_step == 6
    save_model(resumed, tmp_path / "after")
    expected = load_file("after/checkpoint-6/model.safetensors")
    assert_same_weights(load_file("after/model.safetensors"), expected)


def test_a_best_model_that_is_gone_is_said(run, tmp_path):
    cut = run("run", **BEST, callbacks=[Scores(6), Interruption(14)])
    with pytest.raises(Interrupted):
        cut.train()
    shutil.rmtree(tmp_path / "run/checkpoint-6")
    with pytest.raises(ConfigError, match=r"checkpoint-6, the best model so far, is gone"):
        run("run", **BEST).train(str(tmp_path / "run/checkpoint-12"))
    resumed = run("run", **BEST, load_best_model_at_end=False)
    resumed.train(str(tmp_path / "run/checkpoint-12"))
    assert resumed.loaded_best_step is None


@pytest.mark.parametrize("loaded", [True, False])
def test_the_step_of_the_model_is_that_of_the_weights(run, tmp_path, loaded):
    trainer = run("run", **BEST, load_best_model_at_end=loaded, callbacks=[Scores(6)])
    trainer.train()
    assert trainer.loaded_best_step == (6 if loaded else None)
    expected = load_file(tmp_path / "run" / f"checkpoint-{6 if loaded else 18}" / "model.safetensors")
    assert_same_weights({k: v for k, v in weights(trainer).items() if k in expected}, expected)


def test_the_newest_checkpoint_and_the_best_survive_a_limit_of_one(run, tmp_path):
    run("run", **{**BEST, "save_total_limit": 1}, callbacks=[Scores(6)]).train()
    assert {p.name for p in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-18"}


def test_times_clips_and_loss_are_those_of_the_whole_training(run, started, tmp_path):
    whole = run("whole", **SAVED).train()
    checkpoint = started("cut")
    before = json.loads((checkpoint / "training_record.json").read_text())
    resumed = run("cut", **SAVED).train(str(checkpoint))
    assert resumed.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-5)
    assert resumed.training_loss == resumed.metrics["train_loss"]
    assert resumed.metrics["train_runtime"] > before["runtime_s"] > 0
    clips = resumed.metrics["train_runtime"] * resumed.metrics["train_samples_per_second"]
    assert clips == pytest.approx(24)
    # Resuming what is finished adds nothing but the time of the last step's bookkeeping.
    again = run("cut", **SAVED).train(str(last_complete_checkpoint(tmp_path / "cut")))
    assert again.metrics["train_loss"] == pytest.approx(whole.metrics["train_loss"], rel=1e-5)
    assert again.metrics["train_runtime"] * again.metrics["train_samples_per_second"] == pytest.approx(24)
    assert again.metrics["train_runtime"] > 0.5 * resumed.metrics["train_runtime"]


class SignalInLastEvaluation(TrainerCallback):
    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("save", ["epoch", "no"])
def test_a_signal_during_the_last_evaluation_stops_before_the_rest(run, tmp_path, save):
    options = {"eval_strategy": "epoch", "save_strategy": save}
    stopped = run("run", callbacks=[SignalInLastEvaluation()], **options)
    with pytest.raises(Preempted, match=r"SIGTERM after step 12; .*checkpoint-12 is complete"):
        stopped.train()
    last = last_complete_checkpoint(tmp_path / "run")
    assert last.name == "checkpoint-12"
    resumed = run("run", **options)
    resumed.train(str(last))
    assert resumed.state.global_step == 12
