"""Checks of the training arguments that transformers leaves to a stack trace in the middle of a run, or does not make."""

import difflib
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .errors import ConfigError

METRICS = ("srocc", "plcc", "krcc", "rmse", "final_score")  # of an evaluation, see training/evaluation.py
_AT_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "bootstrap_resamples": 0,
    "dataloader_num_workers": 0,
    "seed": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
}
# Settings of transformers that have no meaning for this trainer, or would change what it promises.
_FIXED = {
    "remove_unused_columns": (False, "the collator's tensors are all used"),
    "logging_nan_inf_filter": (False, "a loss that is not finite stops the run"),
    "batch_eval_metrics": (False, "correlations are computed over all clips at once"),
    "label_smoothing_factor": (0.0, "labels are numbers, not classes"),
}
_REPORTERS = {  # --report_to -> packages, one of which it needs
    "tensorboard": ("tensorboard", "tensorboardX"),
    "wandb": ("wandb",),
    "trackio": ("trackio",),
    "mlflow": ("mlflow",),
    "comet_ml": ("comet_ml",),
    "clearml": ("clearml",),
    "swanlab": ("swanlab",),
}


def check_training_arguments(args: Any) -> None:
    """Raises ConfigError, naming flag and value, for numbers out of range, settings that are kept off, packages of
    `report_to` and `optim` that are not installed, and an output directory that is a file."""
    for name, least in _AT_LEAST.items():
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            raise ConfigError(f"--{name} must be at least {least}, got {value}")
    for name, (value, reason) in _FIXED.items():
        if getattr(args, name) != value:
            raise ConfigError(f"--{name} is kept at {value}: {reason}")
    if args.fp16 and args.use_cpu:
        raise ConfigError("--fp16 has no effect on a CPU: leave it out, or use --bf16 true")
    if args.output_dir and Path(args.output_dir).is_file():
        raise ConfigError(f"--output_dir {args.output_dir} is a file; name a directory")
    for name in [args.report_to] if isinstance(args.report_to, str) else args.report_to or ():
        packages = _REPORTERS.get(name, ())
        if packages and not any(importlib.util.find_spec(package) for package in packages):
            raise ConfigError(f"--report_to {name}: not installed (`pip install {packages[0]}`)")
    if "bnb" in str(args.optim) and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(f"--optim {args.optim}: not installed (`pip install bitsandbytes`)")


def check_best_metric(metric: str | None, targets: Sequence[str]) -> None:
    """Raises ConfigError if no evaluation of these targets has this metric; the first target's have plain names."""
    known = [f"{prefix}{name}" for prefix in ("", *(f"{target}_" for target in targets[1:])) for name in METRICS]
    name = (metric or "final_score").removeprefix("eval_")
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
        raise ConfigError(f"--metric_for_best_model: no evaluation has {metric!r}; {hint}")


def larger_is_better(metric: str | None) -> bool:
    """Whether a larger value of this metric is the better one: of all but the error."""
    return not (metric or "").endswith("rmse")
