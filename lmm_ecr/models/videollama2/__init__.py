"""VideoLLaMA2.1-AV. Importing this package registers its configurations and model with transformers' Auto classes.

`load_backbone`, `backbone_inputs` and `VideoLlama2Processor` are what the shared code asks of a family of LMMs.
"""

from typing import Any

from lmm_ecr.models.families import check_loading
from lmm_ecr.models.videollama2.configuration import VideoLlama2Config
from lmm_ecr.models.videollama2.conversion import is_reference_checkpoint, load_reference_checkpoint
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
]


def load_backbone(path: str, **options) -> VideoLlama2Model:
    """A pretrained backbone from a directory in our layout or the reference's, every weight accounted for.

    options: as for `from_pretrained` (our layout), or as for `load_reference_checkpoint`. Raises ConfigError if a tensor
    is missing or has no place.
    """
    if is_reference_checkpoint(path):
        options.pop("revision", None)  # of a hub repository; this is a directory
        return load_reference_checkpoint(path, **options)[0]
    model, info = VideoLlama2Model.from_pretrained(path, output_loading_info=True, **options)
    check_loading(info, path)
    return model


def backbone_inputs(config, inputs: dict[str, Any]) -> dict[str, Any]:
    """Nothing to change: the model normalises uint8 frames itself."""
    return inputs
