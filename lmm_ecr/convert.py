"""`lmm-ecr convert`: a checkpoint in another code base's layout as one of ours, every tensor accounted for."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from .data.processor import ClipProcessor, resolve_directory
from .errors import ConfigError
from .models.families import Family, foreign_family
from .models.regression import LmmRegressor


@dataclass
class Conversion:
    """What `convert_checkpoint` wrote. has_head: a model that predicts; else a backbone to train from."""

    source: str
    output: Path
    family: str
    has_head: bool
    num_parameters: int

    def describe(self) -> str:
        """The summary for the terminal."""
        lines = [f"{self.num_parameters:,} parameters of {self.source} ({self.family}) are now in {self.output}"]
        if self.has_head:
            lines.append(
                "It has a regression head, so it predicts as it is, with the preprocessing it was trained with:\n"
                f"  lmm-ecr predict --model {self.output} --data TABLE --output PREDICTIONS"
            )
        else:
            lines.append(
                "It has no regression head: it is a backbone, and cannot predict before a recipe has trained a head on it:\n"
                f"  accelerate launch recipes/{self.family}_sft.py --config recipes/configs/NAME.yaml --model {self.output} ..."
            )
        return "\n".join(lines)


def convert_checkpoint(model: str | Path, output: str | Path, dtype: str = "auto") -> Conversion:
    """Write the checkpoint `model` (directory or hub name), which is in another code base's layout, to `output` in ours.

    With a regression head `output` is what a recipe leaves behind: a model that `lmm-ecr predict` and
    `LmmRegressor.from_pretrained` take, with its preprocessing. Without one it is a backbone for a recipe's --model. dtype of
    the written backbone: "auto" keeps the stored one; the head is always float32.

    Raises ConfigError if `output` exists, `model` is in our layout or of an unknown kind, or any tensor is missing or has no
    place in the model.
    """
    directory, output = resolve_directory(model), Path(output)
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"--dtype must be auto, float32 or bfloat16, got {dtype!r}")
    if output.exists():
        raise ConfigError(f"--output {output} exists; choose a new directory")
    family = foreign_family(directory)
    if family is None:
        raise ConfigError(
            f"{directory} is not in a layout that needs conversion: use it directly, with `lmm-ecr predict --model` or as a "
            "recipe's --model"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    staging = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    loading = {} if dtype == "auto" else {"dtype": getattr(torch, dtype)}
    has_head = family.read_head(directory) is not None
    write = _write_regressor if has_head else _write_backbone
    num_parameters = write(directory, staging, family, loading)
    os.replace(staging, output)
    return Conversion(str(model), output, family.name, has_head, num_parameters)


def _write_regressor(directory: Path, staging: Path, family: Family, loading: dict) -> int:
    processor = ClipProcessor.from_pretrained(directory)
    model = LmmRegressor.from_pretrained(directory, **loading)
    model.save_pretrained(staging)
    processor.save_pretrained(staging)
    return model.num_parameters()


def _write_backbone(directory: Path, staging: Path, family: Family, loading: dict) -> int:
    processor = family.processor_class.from_backbone(str(directory))
    backbone = family.load_backbone(str(directory), **loading)
    backbone.save_pretrained(staging)
    processor.tokenizer.save_pretrained(staging)
    return backbone.num_parameters()
