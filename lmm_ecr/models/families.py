"""The large multimodal models this package can wrap: one `Family` each, found by the backbone's `model_type`.

Everything the shared code (wrapper, trainer, predict) has to know about one LMM is said here and in the module the family
points to. Modules are imported when a family is used, so that one LMM never costs the import of another.
"""

import difflib
import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig

from ..errors import ConfigError
from ..files import read_json
from .head import PretrainedHead
from .model_files import damaged_file

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
    default_modes: part -> "train", "freeze" or "lora" where nothing else is asked; a part that is not named is trained.
    learning_rate: the default of --learning_rate. learning_rates: part -> default rate of its own.
    foreign_model_types: `model_type` values of checkpoints in another code base's layout. They load directly, and
        `lmm-ecr convert` rewrites them in ours. The module then defines `read_head(path) -> PretrainedHead | None`.
    """

    name: str
    model_types: tuple[str, ...]
    module: str
    processor: str
    parts: dict[str, tuple[str, ...]]
    unused: tuple[str, ...] = ()
    default_modes: dict[str, str] = field(default_factory=dict)
    learning_rate: float = 1e-5
    learning_rates: dict[str, float] = field(default_factory=dict)
    foreign_model_types: tuple[str, ...] = ()

    def _module(self):
        return importlib.import_module(self.module, package=__package__)

    def register(self) -> None:
        """Make the family's classes known to transformers' Auto classes, for LMMs that transformers does not have."""
        self._module()

    @property
    def processor_class(self) -> "type[ClipProcessor]":
        return getattr(self._module(), self.processor)

    def load_backbone(self, path: str, **options):
        """Load the pretrained backbone; ConfigError if any of its weights is missing from the checkpoint."""
        return self._module().load_backbone(path, **options)

    def read_head(self, path: str | Path) -> PretrainedHead | None:
        """The regression head of a checkpoint directory in another code base's layout; None if it has none."""
        return self._module().read_head(path) if foreign_family(path) is self else None

    def backbone_inputs(self, config, inputs: dict[str, Any]) -> dict[str, Any]:
        """A batch (input_ids, attention_mask and the family's tensors) as the backbone's `forward` takes it."""
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
        # The winning team's: 2e-6 for the vision encoder, 1e-5 for the rest; the new head learns faster.
        learning_rate=1e-5,
        learning_rates={"vision": 2e-6, HEAD_PART: 1e-4},
    ),
    Family(
        name="videollama2",
        model_types=("videollama2_av", "videollama2_qwen2"),
        module=".videollama2",
        processor="VideoLlama2Processor",
        parts={
            "vision": ("vision_encoder",),
            "projector": ("connector",),
            "language_model": ("language_model",),
            "audio": ("audio_encoder",),
            "audio_projector": ("audio_projector",),
        },
        default_modes={"vision": "freeze"},  # as the winning team: everything else is trained, at one rate
        learning_rate=5e-5,
        foreign_model_types=("videollama2_qwen2",),
    ),
)


def read_model_type(name_or_path: str | Path, revision: str | None = None) -> str:
    """`model_type` in the config.json of a directory or a hub repository. Raises ConfigError if there is none."""
    options = {} if revision is None else {"revision": revision}
    try:
        values, _ = PreTrainedConfig.get_config_dict(name_or_path, **options)
    except (OSError, ValueError, TypeError) as error:  # absent, no JSON, no object
        damage = damaged_file(Path(name_or_path)) if Path(name_or_path).is_dir() else None
        raise ConfigError(
            damage or f"{name_or_path}: no model directory or hub repository with a config.json ({error})"
        ) from error
    if "model_type" not in values:
        raise ConfigError(f"{name_or_path}: config.json names no model_type, so it cannot be told which model this is")
    return values["model_type"]


def family_of(name_or_path: str | Path, revision: str | None = None) -> Family:
    """The family of a pretrained backbone: a directory or a hub name. Raises ConfigError if it is of none."""
    return get_family(read_model_type(name_or_path, revision))


def foreign_family(directory: str | Path) -> Family | None:
    """The family of a checkpoint directory in another code base's layout; None for any other directory."""
    path = Path(directory) / "config.json"
    values = read_json(path) if path.is_file() else {}
    model_type = values.get("model_type") if isinstance(values, dict) else None
    return next((family for family in FAMILIES if model_type in family.foreign_model_types), None)


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

    info: `output_loading_info` of `from_pretrained` with ignore_mismatched_sizes=True: without it, weights of another shape
    end in an error that does not name them. (DeepSpeed's ZeRO-3 raises one that does, either way.)
    allowed_unexpected: prefixes of checkpoint tensors that are known not to be needed.
    """
    missing = sorted(info["missing_keys"])
    mismatched = sorted(
        f"{name}: {tuple(found)} instead of {tuple(wanted)}" for name, found, wanted in info["mismatched_keys"]
    )
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
