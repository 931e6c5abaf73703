"""Small training runs for the tests: a trainer on generated clips, and the losses of its steps."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import torch
from transformers import TrainerCallback

from lmm_ecr.arguments import EcrTrainingArguments, TuningArguments
from lmm_ecr.data.dataset import ClipDataset, FileReader
from lmm_ecr.models.regression import LmmRegressor
from lmm_ecr.training.launch import check_launch
from lmm_ecr.training.trainer import EcrTrainer
from lmm_ecr.training.tuning import apply_tuning


class CachedReader:
    """Decodes each clip once for all runs of a test session."""

    clips: dict = {}  # noqa: RUF012 - shared on purpose

    def __init__(self, processor):
        self.reader = FileReader(processor)
        self.spec = json.dumps(processor.clip_spec())

    def __call__(self, row):
        key = (row.video, self.spec)
        if key not in self.clips:
            self.clips[key] = self.reader(row)
        return self.clips[key]


class Interrupted(Exception):
    pass


class Interruption(TrainerCallback):
    """At the end of step `at`: raise `Interrupted`, or send this process a signal."""

    def __init__(self, at: int, number: signal.Signals | None = None):
        self.at, self.number = at, number

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            if self.number is None:
                raise Interrupted
            os.kill(os.getpid(), self.number)


def make_trainer(
    backbone,
    processor,
    train,
    evaluation,
    output,
    *,
    tuning=None,
    dropout=0.0,
    on_error="fail",
    callbacks=None,
    dtype="float32",
    **arguments,
):
    """An `EcrTrainer` in float32 on the CPU that logs every step; 2 clips per micro-batch and 2 epochs by default."""
    defaults = {
        "output_dir": str(output),
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "logging_steps": 1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "dataloader_num_workers": 0,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    rate = arguments.get("learning_rate", defaults["learning_rate"])  # for every part, instead of the family's defaults
    tuning = replace(tuning or TuningArguments(), vision_learning_rate=rate, head_learning_rate=rate)
    args = EcrTrainingArguments(**{**defaults, **arguments})
    check_launch(args)
    torch.manual_seed(0)
    model = LmmRegressor.from_backbone(
        str(backbone), head_hidden_size=16, head_dropout=dropout, loss=args.loss, dtype=getattr(torch, dtype)
    )
    model = apply_tuning(model, tuning)
    reader = CachedReader(processor)
    datasets = [ClipDataset(manifest, processor, reader) for manifest in (train, evaluation)]
    return EcrTrainer(model, args, tuning, *datasets, on_error=on_error, callbacks=callbacks)


def step_losses(trainer) -> np.ndarray:
    """The loss of every step in the trainer's log, by step."""
    return np.array([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


def assert_same_weights(left: dict, right: dict, tolerance: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")
