"""Which parameters are trained, how, and at which learning rate."""

import re
from collections import defaultdict
from dataclasses import replace

import torch
from torch import nn

from ..arguments import TuningArguments
from ..errors import ConfigError
from ..models.families import HEAD_PART, Family, linear_layers
from ..models.regression import LmmRegressor, unwrap_regressor

_HEAD_NAMES = ("regression_head", "pooling")
PARTS = ("vision", "projector", "language_model", "audio", "audio_projector", HEAD_PART)  # of all families


def part_of(name: str, family: Family) -> str:
    """Part of a parameter of an `LmmRegressor`, whatever wraps it (PEFT, DDP): `name` as in `named_parameters`."""
    name = re.sub(r"\.(modules_to_save\.[^.]+|original_module)(?=\.)", "", name)
    if any(re.search(rf"(^|\.){head}\.", name) for head in _HEAD_NAMES):
        return HEAD_PART
    match = re.search(r"(^|\.)backbone\.(.*)", name)
    if match is None:
        raise ConfigError(f"parameter {name!r} belongs neither to the backbone nor to the head")
    if _is_unused(match[2], family):
        return "unused"
    return family.part_of(match[2])


def resolve_tuning(tuning: TuningArguments, family: Family) -> TuningArguments:
    """`tuning` with the family's defaults where it says nothing. A rate that stays None is --learning_rate.

    Raises ConfigError for settings of parts that the family does not have.
    """
    parts = [*family.parts, HEAD_PART]
    values = {}
    for part in PARTS:
        rate = getattr(tuning, f"{part}_learning_rate")
        if part in parts:
            values[part] = tuning.mode(part) or family.default_modes.get(part, "train")
            values[f"{part}_learning_rate"] = family.learning_rates.get(part) if rate is None else rate
        elif tuning.mode(part) is not None or rate is not None:
            raise ConfigError(f"--{part} is set, but a {family.name} model has only the parts {', '.join(parts)}")
    return replace(tuning, **values)


def apply_tuning(model: LmmRegressor, tuning: TuningArguments) -> nn.Module:
    """Freeze, train or adapt each part of `model` as asked.

    Returns `model`, or a `peft.PeftModel` around it if a part uses LoRA: LoRA on every linear layer of the `lora` parts,
    `train` parts (the head among them) saved with the adapter, everything else frozen. Raises ConfigError for settings of
    parts this family does not have, or if nothing is left to train.
    """
    family = model.family
    tuning = resolve_tuning(tuning, family)
    parts = [*family.parts, HEAD_PART]
    modes = {part: tuning.mode(part) for part in parts}
    if set(modes.values()) == {"freeze"}:
        raise ConfigError(f"every part is frozen, so there is nothing to train: set one of {', '.join(parts)} to train")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(modes.get(part_of(name, family), "freeze") == "train")
    if "lora" not in modes.values():
        return model
    return _with_lora(model, tuning, modes)


def _with_lora(model: LmmRegressor, tuning: TuningArguments, modes: dict[str, str]) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    family = model.family
    adapted = tuple(p for part, mode in modes.items() if mode == "lora" for p in family.parts[part])
    layers = [f"backbone.{n}" for n in linear_layers(model.backbone, adapted) if not _is_unused(n, family)]
    trained = [prefix for part, prefixes in family.parts.items() if modes[part] == "train" for prefix in prefixes]
    saved = [f"backbone.{name}" for prefix in trained for name in _callable_modules(model.backbone, prefix)]
    if modes[HEAD_PART] == "train":
        saved += [name for name in _HEAD_NAMES if any(True for _ in getattr(model, name).parameters())]
    config = LoraConfig(
        r=tuning.lora_rank,
        lora_alpha=tuning.lora_alpha,
        lora_dropout=tuning.lora_dropout,
        target_modules=layers,
        modules_to_save=saved or None,
    )
    return get_peft_model(model, config, autocast_adapter_dtype=True)


def _callable_modules(backbone: nn.Module, name: str) -> list[str]:
    """The module `name`, or its members if it is a list: PEFT keeps a trained copy only of what has a forward."""
    module = backbone.get_submodule(name)
    if isinstance(module, nn.ModuleList):
        return [f"{name}.{index}" for index in range(len(module))]
    return [name]


def _is_unused(name: str, family: Family) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in family.unused)


def parameter_groups(
    model: nn.Module, tuning: TuningArguments, learning_rate: float, weight_decay: float = 0.0
) -> list[dict]:
    """Optimizer groups: one or two per part (matrices with `weight_decay`; biases and norms without), empty ones left out.

    Each group has `params`, `lr`, `weight_decay` and `part`. Every trainable parameter is in exactly one group and every
    group belongs to one part; anything else is a bug and raises AssertionError.
    """
    family = unwrap_regressor(model).family
    tuning = resolve_tuning(tuning, family)
    groups: dict[tuple[str, bool], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[part_of(name, family), _ndim(parameter) >= 2].append(parameter)
    result = [
        {
            "params": parameters,
            "lr": tuning.learning_rate(part, learning_rate),
            "weight_decay": weight_decay if decays else 0.0,
            "part": part,
        }
        for (part, decays), parameters in groups.items()
    ]
    grouped = [id(p) for group in result for p in group["params"]]
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    if len(grouped) != len(set(grouped)) or set(grouped) != trainable:
        raise AssertionError("a trainable parameter is in no optimizer group, or in two")
    return result


def tuning_table(model: nn.Module, tuning: TuningArguments, learning_rate: float) -> list[dict]:
    """One row per part: part, mode, parameters, trainable, learning_rate (None if frozen)."""
    family = unwrap_regressor(model).family
    tuning = resolve_tuning(tuning, family)
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, parameter in model.named_parameters():
        if ".original_module." in name:  # PEFT keeps the frozen original beside the trained copy
            continue
        size = getattr(parameter, "ds_numel", parameter.numel())  # ZeRO-3 holds empty shards
        counts[part_of(name, family)][0] += size
        counts[part_of(name, family)][1] += size * parameter.requires_grad
    rows = []
    for part in [*family.parts, HEAD_PART, "unused"]:
        if part not in counts:
            continue
        total, trainable = counts[part]
        mode = "unused" if part == "unused" else tuning.mode(part)
        rate = tuning.learning_rate(part, learning_rate) if trainable else None
        rows.append({"part": part, "mode": mode, "parameters": total, "trainable": trainable, "learning_rate": rate})
    return rows


def print_tuning_table(rows: list[dict]) -> None:
    """Print `tuning_table` to the terminal."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What is trained", title_justify="left")
    for column, justify in (
        ("part", "left"),
        ("mode", "left"),
        ("parameters", "right"),
        ("trainable", "right"),
        ("learning rate", "right"),
    ):
        table.add_column(column, justify=justify)
    for row in rows:
        rate = "-" if row["learning_rate"] is None else f"{row['learning_rate']:.3g}"
        table.add_row(row["part"], row["mode"], f"{row['parameters']:,}", f"{row['trainable']:,}", rate)
    Console().print(table)


def _ndim(parameter: torch.Tensor) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))  # ZeRO-3 flattens the shard
