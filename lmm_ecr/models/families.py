"""The large multimodal models this package can wrap: one `Family` each, found by the backbone's `model_type`.

Everything the shared code (wrapper, trainer, predict) has to know about one LMM is said here and in the module the family
points to. Modules are imported when a family is used, so that one LMM never costs the import of another.
"""

import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import ConfigError

if TYPE_CHECKING:
    from ..data.processor import ClipProcessor

HEAD_PART = "head"


@dataclass(frozen=True)
class Family:
    """One kind of LMM.

    model_types: `model_type` values of the backbone configurations that belong to it.
    module: where its code lives; it defines `load_backbone(path, **options) -> PreTrainedModel`,
        `backbone_inputs(config, inputs) -> dict` (last changes to a batch on the device, such as normalising pixels) and
        the processor class.
    processor: name of the `ClipProcessor` subclass in that module.
    parts: part name -> prefixes of the backbone's parameter names. Each parameter belongs to exactly one part; the parts
        can be trained, frozen or adapted with their own learning rates.
    unused: prefixes of backbone parameters that never influence the score; they are never trained.
    """

    name: str
    model_types: tuple[str, ...]
    module: str
    processor: str
    parts: dict[str, tuple[str, ...]]
    unused: tuple[str, ...] = ()

    def _module(self):
        return importlib.import_module(self.module, package=__package__)

    @property
    def processor_class(self) -> "type[ClipProcessor]":
        return getattr(self._module(), self.processor)

    def load_backbone(self, path: str, **options):
        """Load the pretrained backbone; ConfigError if any of its weights is missing from the checkpoint."""
        return self._module().load_backbone(path, **options)

    def backbone_inputs(self, config, inputs: dict[str, Any]) -> dict[str, Any]:
        return self._module().backbone_inputs(config, inputs)

    def part_of(self, parameter_name: str) -> str:
        """Part of a backbone parameter name (without the `backbone.` prefix); ConfigError if none or several fit."""
        matches = [
            part
            for part, prefixes in self.parts.items()
            if any(parameter_name == p or parameter_name.startswith(p + ".") for p in prefixes)
        ]
        if len(matches) != 1:
            raise ConfigError(
                f"parameter {parameter_name!r} of a {self.name} backbone fits {len(matches)} parts: {matches}"
            )
        return matches[0]


FAMILIES: tuple[Family, ...] = (
    Family(
        name="qwen2_5_vl",
        model_types=("qwen2_5_vl",),
        module=".qwen2_5_vl",
        processor="Qwen25VLProcessor",
        parts={
            "vision": ("visual.patch_embed", "visual.blocks"),
            "projector": ("visual.merger",),
            "language_model": ("language_model",),
        },
    ),
)


def get_family(model_type: str) -> Family:
    """The family of a backbone configuration's `model_type`. Raises ConfigError for a model this package cannot wrap."""
    for family in FAMILIES:
        if model_type in family.model_types:
            return family
    known = [name for family in FAMILIES for name in family.model_types]
    close = difflib.get_close_matches(model_type, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ConfigError(f"backbones of type {model_type!r} are not supported; supported: {', '.join(known)}.{hint}")


def check_loading(info: dict[str, Any], source: str, allowed_unexpected: tuple[str, ...] = ()) -> None:
    """Refuse a checkpoint that left weights untouched: transformers only warns and keeps random values.

    info: `output_loading_info` of `from_pretrained`. allowed_unexpected: prefixes of checkpoint tensors that are known not
    to be needed.
    """
    missing = sorted(info["missing_keys"])
    mismatched = sorted(str(key) for key in info["mismatched_keys"])
    unexpected = sorted(k for k in info["unexpected_keys"] if not k.startswith(allowed_unexpected))
    problems = [
        f"{len(keys)} {what} ({', '.join(keys[:5])}{', ...' if len(keys) > 5 else ''})"
        for keys, what in (
            (missing, "weights of the model are not in the checkpoint"),
            (mismatched, "weights have another shape"),
            (unexpected, "tensors of the checkpoint have no place in the model"),
        )
        if keys
    ]
    if problems:
        raise ConfigError(
            f"{source} does not fit its model: {'; '.join(problems)}. The model would run with random weights; "
            "check that the directory is complete and that its config.json belongs to it."
        )


def normalise_pixels(values: torch.Tensor, mean, std, channel_repeats: int, dtype: torch.dtype) -> torch.Tensor:
    """uint8 pixels [..., channels * channel_repeats] (channel-major) to (x / 255 - mean) / std in `dtype`.

    Runs where the tensor is: workers ship one byte per value instead of four.
    """
    mean = torch.tensor(mean, dtype=torch.float32, device=values.device).repeat_interleave(channel_repeats)
    std = torch.tensor(std, dtype=torch.float32, device=values.device).repeat_interleave(channel_repeats)
    return ((values.float() / 255 - mean) / std).to(dtype)


def linear_layers(module: nn.Module, prefixes: tuple[str, ...]) -> list[str]:
    """Full names of the `nn.Linear` layers below `prefixes`: what LoRA adapts in a part."""
    return [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and any(name == p or name.startswith(p + ".") for p in prefixes)
    ]
