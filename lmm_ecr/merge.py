"""`lmm-ecr merge`: a LoRA checkpoint and its backbone as one plain checkpoint that predicts the same."""

import os
import shutil
from pathlib import Path

import torch

from .data.processor import ClipProcessor, resolve_directory
from .errors import ConfigError
from .models.regression import ADAPTER_CONFIG, LmmRegressor


def merge_adapter(model: str | Path, output: str | Path, dtype: str = "float32") -> Path:
    """Add the LoRA updates of `model` to its backbone's weights and write the result to `output`.

    dtype of the written backbone: the updates are added in float32 and rounded once. Raises ConfigError if `model` holds no
    adapter or `output` is there already.
    """
    directory, output = resolve_directory(model), Path(output)
    if not (directory / ADAPTER_CONFIG).is_file():
        raise ConfigError(
            f"{directory} holds no adapter ({ADAPTER_CONFIG} is missing): it is a plain checkpoint already"
        )
    if output.exists():
        raise ConfigError(f"--output {output} exists; choose a new directory")
    processor = ClipProcessor.from_pretrained(directory)
    merged = LmmRegressor.from_pretrained(directory, dtype=torch.float32).merge_and_unload()
    merged.backbone.to(getattr(torch, dtype))
    merged.config.dtype = merged.config.backbone_config.dtype = getattr(torch, dtype)
    staging = output.with_name(f".{output.name}.tmp")
    shutil.rmtree(staging, ignore_errors=True)
    merged.save_pretrained(staging)
    processor.save_pretrained(staging)
    os.replace(staging, output)
    return output
