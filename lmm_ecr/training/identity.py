"""What makes a training the same one: a checkpoint keeps it, and a run that resumes must agree with it.

Everything that changes a loss or a weight belongs to it. What may change between interruptions does not: the number of
processes, the clips per process and the accumulation as long as their product stays, how often something is logged,
evaluated or saved, data loading, and where files lie.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..files import read_json, write_json
from ..models.regression import unwrap_regressor
from .tuning import resolve_tuning

IDENTITY_FILE = "identity.json"
_OPTIMIZATION = (
    "seed",
    "data_seed",
    "max_steps",
    "num_train_epochs",
    "lr_scheduler_type",
    "lr_scheduler_kwargs",
    "warmup_steps",
    "learning_rate",
    "optim",
    "optim_args",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "max_grad_norm",
    "group_by_length",
    "dataloader_drop_last",
    "bf16",
    "fp16",
    "loss",
)


def training_identity(trainer) -> dict[str, Any]:
    """Identity of what an `EcrTrainer` trains, as JSON knows it: name -> value, arguments under their own names."""
    args, model = trainer.args, unwrap_regressor(trainer.model)
    train, config = trainer.train_dataset, model.config
    tuning = {k: v for k, v in asdict(resolve_tuning(trainer.tuning, model.family)).items() if v is not None}
    if "lora" not in tuning.values():
        tuning = {name: value for name, value in tuning.items() if not name.startswith("lora_")}
    transforms = {target: transform["name"] for target, transform in config.label_transforms.items()}
    identity = {
        "training data": f"{len(train)} clips, {train.manifest.fingerprint()}",
        "model": Path(config.backbone_name_or_path or "").name,  # a moved directory or downloaded hub model is the same
        "model_revision": config.backbone_revision,
        "targets": config.targets,
        "pooling": config.pooling,
        "head_hidden_size": config.head_hidden_size,
        "head_dropout": config.head_dropout,
        **{f"label_transform of {target}": name for target, name in transforms.items()},
        **_flat("preprocessing", train.processor.spec.to_dict()),
        **tuning,
        **{name: getattr(args, name) for name in _OPTIMIZATION},
        "global batch size": args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
        "distributed strategy": _strategy(trainer),
    }
    if trainer.eval_dataset is not None:
        identity["evaluation data"] = (
            f"{len(trainer.eval_dataset)} clips, {trainer.eval_dataset.manifest.fingerprint()}"
        )
    if args.dataloader_drop_last:
        identity["clips left out of an epoch"] = len(train) % (args.train_batch_size * args.world_size)
    return json.loads(json.dumps(identity, default=str))


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {key: leaf for inner, v in value.items() for key, leaf in _flat(f"{name}.{inner}", v).items()}


def _strategy(trainer) -> str:
    """How weights and optimizer state are kept; DeepSpeed reads its own for the same number of processes only."""
    if trainer.is_deepspeed_enabled:
        stage = trainer.accelerator.state.deepspeed_plugin.zero_stage
        return f"DeepSpeed ZeRO-{stage} on {trainer.args.world_size} processes"
    return "FSDP" if trainer.is_fsdp_enabled else "whole model in every process"


def write_identity(checkpoint: Path, trainer) -> None:
    write_json(checkpoint / IDENTITY_FILE, training_identity(trainer))


def check_same_training(checkpoint: Path, trainer) -> None:
    """Raise ConfigError that names every difference between the training of `checkpoint` and the one of `trainer`."""
    path = checkpoint / IDENTITY_FILE
    if not path.is_file():
        raise ConfigError(
            f"{checkpoint} has no {IDENTITY_FILE}, so nothing tells whether it belongs to this training (was it written "
            f"by an earlier version?). {_START_ANEW}"
        )
    old, new = read_json(path), training_identity(trainer)
    changes = [
        f"  {name}: {_text(old.get(name))} -> {_text(new.get(name))}"
        for name in dict.fromkeys([*old, *new])
        if old.get(name) != new.get(name)
    ]
    if changes:
        raise ConfigError(
            f"{checkpoint} belongs to another training than these arguments ask for:\n" + "\n".join(changes) + "\n"
            f"Resume with the arguments it was started with ({checkpoint.parent / 'run.json'} has them). {_START_ANEW}"
        )


_START_ANEW = (
    "To start anew, choose another --output_dir, or give --overwrite_output_dir and leave --resume_from_checkpoint out."
)


def _text(value: Any) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
