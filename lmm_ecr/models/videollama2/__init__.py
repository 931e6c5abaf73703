"""VideoLLaMA2.1-AV. Importing this package registers its configurations and model with transformers' Auto classes.

`load_backbone`, `read_head`, `backbone_inputs` and `VideoLlama2Processor` are what the shared code asks of a family of LMMs.
"""

import inspect
from pathlib import Path
from typing import Any

from lmm_ecr.data.processor import resolve_directory
from lmm_ecr.errors import ConfigError
from lmm_ecr.label_transforms import PercentTransform
from lmm_ecr.models.families import check_loading
from lmm_ecr.models.head import PretrainedHead
from lmm_ecr.models.model_files import reading_weights
from lmm_ecr.models.videollama2.configuration import VideoLlama2Config
from lmm_ecr.models.videollama2.conversion import (
    is_reference_checkpoint,
    load_reference_checkpoint,
    read_reference_head,
)
from lmm_ecr.models.videollama2.modeling import VideoLlama2Model
from lmm_ecr.models.videollama2.processing import VideoLlama2Processor, VideoLlama2Spec

__all__ = [
    "VideoLlama2Config",
    "VideoLlama2Model",
    "VideoLlama2Processor",
    "VideoLlama2Spec",
    "backbone_inputs",
    "is_reference_checkpoint",
    "load_backbone",
    "load_reference_checkpoint",
    "read_head",
]

REFERENCE_DROPOUT = 0.1  # of the reference's head, in its code


def load_backbone(path: str, revision: str | None = None, **options) -> VideoLlama2Model:
    """A pretrained backbone in our layout or the reference's (directory or hub name), every weight accounted for.

    options: as for `from_pretrained` (our layout), or as for `load_reference_checkpoint`. Raises ConfigError if a tensor
    is missing or has no place, or for options that only our layout knows.
    """
    directory = resolve_directory(path, revision)
    if is_reference_checkpoint(directory):
        if "torch_dtype" in options:  # the name before transformers 5
            options.setdefault("dtype", options.pop("torch_dtype"))
        known = inspect.signature(load_reference_checkpoint).parameters
        unknown = sorted(options.keys() - known.keys())
        if unknown:
            raise ConfigError(
                f"{directory} is in the reference's layout, which cannot be loaded with {', '.join(unknown)}: "
                "convert it first (lmm-ecr convert)"
            )
        return load_reference_checkpoint(directory, **options)[0]
    with reading_weights(directory):
        model, info = VideoLlama2Model.from_pretrained(
            directory, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    check_loading(info, path)
    return model


def read_head(path: str | Path) -> PretrainedHead | None:
    """The head of the winning team's fine-tuned weights; None for a checkpoint without one, such as the public one.

    It was trained on ECR in percent, on the mean over all positions.
    """
    state = read_reference_head(path)
    if state is None:
        return None
    options = {
        "targets": ["ECR"],
        "pooling": "mean",
        "head_hidden_size": len(state["fc1.bias"]),
        "head_dropout": REFERENCE_DROPOUT,
        "label_transforms": {"ECR": PercentTransform(mean=0.5)},
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return PretrainedHead(state, options)


def backbone_inputs(config, inputs: dict[str, Any]) -> dict[str, Any]:
    """Nothing to change: the model normalises uint8 frames itself."""
    return inputs
