"""Checkpoints of VideoLLaMA2.1-AV in the reference's layout -> our model, every tensor accounted for.

Two layouts are read: the public VideoLLaMA2.1-7B-AV directory, and the output of the winning team's training, which
adds a regression head (`lm_head_reg.*`). Weights are safetensors or pickle shards (read with `weights_only`), one
tensor in memory at a time beside the model. Where the main weights lack the audio tower or its projector,
`audio_tower.bin` and `mm_projector_a.bin` supply them.

Every tensor of a checkpoint is either given a place in our model, or is one of these, which never influence a hidden
state that is used: the vocabulary head (`lm_head.*`), BEATs' classifier (`audio_tower.predictor.*`), the SigLIP layers
above the selected one, SigLIP's final norm and pooling head, and position tables that old versions saved. Anything
else, and any tensor that our model needs and the checkpoint lacks, is an error.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.initialization import no_init_weights

from lmm_ecr.errors import ConfigError
from lmm_ecr.files import read_json
from lmm_ecr.models.videollama2.configuration import VideoLlama2Config
from lmm_ecr.models.videollama2.modeling import VideoLlama2Model
from lmm_ecr.models.videollama2.reference_config import is_reference_config, read_reference_config
from lmm_ecr.models.videollama2.reference_files import ReferenceFiles

HEAD_PREFIX = "lm_head_reg."
HEAD_TENSORS = ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")

_SIGLIP = r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?"
_BEATS_CONV = r"model\.audio_tower\.encoder\.pos_conv\.0\."
_BEATS_LAYER = r"model\.audio_tower\.encoder\.layers\.(\d+)\."
_RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"model\.(embed_tokens|layers|norm)\.", r"language_model.\1."),
        (_SIGLIP + r"(embeddings|encoder)\.", r"vision_encoder.\1."),
        (r"model\.mm_projector\.s([12])\.", r"connector.stage\1."),
        (r"model\.mm_projector\.sampler\.0\.", r"connector.sampler."),
        (r"model\.mm_projector\.readout\.", r"connector.readout."),
        (r"model\.mm_projector_a\.(weight|bias)$", r"audio_projector.0.\1"),
        (r"model\.mm_projector_a\.", r"audio_projector."),
        (r"model\.audio_tower\.patch_embedding\.", r"audio_encoder.patch_embedding."),
        (r"model\.audio_tower\.layer_norm\.", r"audio_encoder.patch_norm."),
        (r"model\.audio_tower\.post_extract_proj\.", r"audio_encoder.patch_projection."),
        (_BEATS_CONV + r"(?:weight_g|parametrizations\.weight\.original0)$", r"audio_encoder.position_conv.magnitude"),
        (_BEATS_CONV + r"(?:weight_v|parametrizations\.weight\.original1)$", r"audio_encoder.position_conv.direction"),
        (_BEATS_CONV, r"audio_encoder.position_conv."),
        (r"model\.audio_tower\.encoder\.layer_norm\.", r"audio_encoder.input_norm."),
        (_BEATS_LAYER + r"self_attn\.relative_attention_bias\.", r"audio_encoder.relative_position_bias."),
        (_BEATS_LAYER + r"self_attn\.grep_linear\.", r"audio_encoder.layers.\1.attention.gate_proj."),
        (_BEATS_LAYER + r"self_attn\.grep_a$", r"audio_encoder.layers.\1.attention.gate_scale"),
        (_BEATS_LAYER + r"self_attn\.", r"audio_encoder.layers.\1.attention."),
        (_BEATS_LAYER + r"self_attn_layer_norm\.", r"audio_encoder.layers.\1.attention_norm."),
        (_BEATS_LAYER + r"final_layer_norm\.", r"audio_encoder.layers.\1.output_norm."),
        (_BEATS_LAYER + r"(fc[12])\.", r"audio_encoder.layers.\1.\2."),
    )
)
_UNUSED = re.compile(
    r"lm_head\.|model\.audio_tower\.predictor\.|"
    + _SIGLIP
    + r"(?:post_layernorm|head)\.|.*rotary_emb\.|.*\.position_ids$"
)
_SIGLIP_LAYER = re.compile(r"vision_encoder\.encoder\.layers\.(\d+)\.")


def our_name(reference_name: str) -> str | None:
    """Our parameter name (or the head's) for a tensor of the reference, None for one that is never used.

    Names the reference does not have raise KeyError. The 12 names of BEATs' shared position table give one name, and
    layers of SigLIP that our model does not build get a name all the same; `plan_conversion` settles both.
    """
    if reference_name.startswith(HEAD_PREFIX):
        return reference_name
    if _UNUSED.match(reference_name):
        return None
    for pattern, replacement in _RENAMES:
        if pattern.match(reference_name):
            return pattern.sub(replacement, reference_name, count=1)
    raise KeyError(reference_name)


@dataclass(frozen=True)
class ConversionPlan:
    """targets: our name -> the reference's names of it (several for a shared tensor). head: the same for the regression
    head, empty if there is none. unused: names of tensors that are left out on purpose."""

    targets: dict[str, list[str]]
    head: dict[str, str]
    unused: list[str]


def plan_conversion(
    shapes: Mapping[str, tuple[int, ...]], config: VideoLlama2Config, source: str = "the checkpoint"
) -> ConversionPlan:
    """Match the tensors of a checkpoint (name -> shape) with our parameters, by name and shape.

    Raises:
        ConfigError: tensors that are unknown, missing, or of another shape; all of them are counted, some are named.
    """
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in VideoLlama2Model(config).state_dict().items()}
    targets: dict[str, list[str]] = {}
    head: dict[str, str] = {}
    unused, unknown, misshaped = [], [], []
    for name, shape in shapes.items():
        try:
            target = our_name(name)
        except KeyError:
            unknown.append(name)
            continue
        layer = _SIGLIP_LAYER.match(target or "")
        if target is None or (
            layer and config.num_vision_layers <= int(layer.group(1)) < config.vision_config.num_hidden_layers
        ):
            unused.append(name)
        elif target.startswith(HEAD_PREFIX):
            head[target.removeprefix(HEAD_PREFIX)] = name
        elif target not in expected:
            unknown.append(name)
        else:
            targets.setdefault(target, []).append(name)
            if tuple(shape) != expected[target]:
                misshaped.append(f"{name} {tuple(shape)} instead of {expected[target]}")
    unknown += [HEAD_PREFIX + name for name in head if name not in HEAD_TENSORS]
    missing = [f"{name} (ours)" for name in expected if name not in targets]
    missing += [HEAD_PREFIX + name for name in HEAD_TENSORS if head and name not in head]
    problems = [
        f"{len(names)} tensors {what}: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
        for what, names in (("missing", missing), ("not known", unknown), ("of the wrong shape", misshaped))
        if names
    ]
    if problems:
        raise ConfigError(f"{source} does not fit a VideoLLaMA2.1-AV model. " + ". ".join(problems))
    return ConversionPlan(targets, head, unused)


def is_reference_checkpoint(directory: str | Path) -> bool:
    """Whether `directory` is a local checkpoint in the reference's layout (its config.json says so)."""
    path = Path(directory) / "config.json"
    return path.is_file() and is_reference_config(read_json(path))


def load_reference_checkpoint(
    directory: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    attn_implementation: str | None = None,
    vision_config: Mapping[str, Any] | None = None,
    audio_config: Mapping[str, Any] | None = None,
) -> tuple[VideoLlama2Model, dict[str, torch.Tensor] | None]:
    """Load a directory in the reference's layout.

    Args:
        dtype: of the model's weights; None or "auto" keeps the dtype of the stored token embeddings.
        device: where the weights go; needs room for the model and one tensor.
        vision_config, audio_config: sizes that config.json does not tell, see `read_reference_config`.

    Returns:
        The model in evaluation mode, and its regression head (fc1.weight, fc1.bias, fc2.weight, fc2.bias, float32 on
        the CPU), None for a checkpoint without one.

    Raises:
        ConfigError: files missing or unreadable, a configuration that is not supported, or tensors that do not fit.
    """
    directory = Path(directory)
    files = ReferenceFiles(directory)
    config = read_reference_config(directory, files.shapes, vision_config, audio_config)
    plan = plan_conversion(files.shapes, config, str(directory))
    whole = [name for names in plan.targets.values() for name in names if files.dtypes[name] is None]
    if whole:
        raise ConfigError(f"{directory}: {len(whole)} weights are no floating-point tensors, such as {whole[0]}")
    if isinstance(dtype, str):
        dtype = None if dtype == "auto" else getattr(torch, dtype)
    dtype = dtype or files.dtypes[plan.targets["language_model.embed_tokens.weight"][0]]
    if attn_implementation is not None:
        config._attn_implementation = attn_implementation
    with no_init_weights(), torch.device(device):
        model = VideoLlama2Model._from_config(config, dtype=dtype)
    sources = {name: target for target, names in plan.targets.items() for name in names}
    heads = {name: target for target, name in plan.head.items()}
    parameters = dict(model.named_parameters())
    shared: dict[str, torch.Tensor] = {}
    head: dict[str, torch.Tensor] = {}
    for name, tensor in files.tensors(sources.keys() | heads.keys()):
        if name in heads:
            head[heads[name]] = tensor.to("cpu", torch.float32, copy=True)
            continue
        target = sources[name]
        if len(plan.targets[target]) == 1:
            _fill(parameters[target], tensor)
        elif target not in shared:
            shared[target] = tensor.clone()
            _fill(parameters[target], tensor)
        elif not torch.equal(shared[target], tensor):
            raise ConfigError(f"{directory}: {name} should equal its other names {plan.targets[target]}")
    return model.eval(), head or None


def _fill(parameter: torch.nn.Parameter, tensor: torch.Tensor) -> None:
    """Copy a stored tensor into a parameter, which DeepSpeed's ZeRO-3 may have shared out among the processes."""
    if not hasattr(parameter, "ds_id"):
        parameter.data.copy_(tensor)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            parameter.data.copy_(tensor)


def read_reference_head(directory: str | Path) -> dict[str, torch.Tensor] | None:
    """The regression head in a directory in the reference's layout, as `load_reference_checkpoint` returns it, without
    loading the model."""
    files = ReferenceFiles(Path(directory))
    names = [name for name in files.shapes if name.startswith(HEAD_PREFIX)]
    head = {
        name.removeprefix(HEAD_PREFIX): tensor.to("cpu", torch.float32, copy=True)
        for name, tensor in files.tensors(names)
    }
    if head and set(head) != set(HEAD_TENSORS):
        raise ConfigError(
            f"{directory}: the regression head has the tensors {', '.join(sorted(head))}; it needs {', '.join(HEAD_TENSORS)}"
        )
    return head or None
