"""The config.json of VideoLLaMA2.1-AV checkpoints (the original's and the winning team's) as our configuration.

That file describes the language model and names the vision tower; the sizes of SigLIP are those of the named tower, and
the sizes of BEATs are read off the shapes of its tensors.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig, Qwen2Config

from lmm_ecr.errors import ConfigError
from lmm_ecr.files import read_json
from lmm_ecr.models.beats import BeatsConfig
from lmm_ecr.models.videollama2.configuration import SO400M_VISION, VideoLlama2Config

REFERENCE_MODEL_TYPE = "videollama2_qwen2"

_TEXT_KEYS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_theta",
    "rope_scaling",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "attention_dropout",
    "bos_token_id",
    "eos_token_id",
)

# BEATs' own names of the sizes, as a configuration written out by the original code has them.
_AUDIO_KEYS = {
    "input_patch_size": "patch_size",
    "embed_dim": "embed_dim",
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "intermediate_size",
    "encoder_layers": "num_hidden_layers",
    "encoder_attention_heads": "num_attention_heads",
    "conv_pos": "position_conv_kernel",
    "conv_pos_groups": "position_conv_groups",
    "num_buckets": "num_buckets",
    "max_distance": "max_distance",
    "layer_wise_gradient_decay_ratio": "gradient_decay",
    "encoder_layerdrop": "layerdrop",
}
_AUDIO_FIXED = {
    "conv_bias": False,
    "activation_fn": "gelu",
    "layer_norm_first": False,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
}
_AUDIO_IRRELEVANT = ("finetuned_model", "predictor_dropout", "predictor_class")


class VideoLlama2ReferenceConfig(PretrainedConfig):
    """A config.json in the reference's layout, unread: it lets `AutoConfig` recognise such a directory."""

    model_type = REFERENCE_MODEL_TYPE


def is_reference_config(values: Mapping[str, Any]) -> bool:
    return values.get("model_type") == REFERENCE_MODEL_TYPE


def read_reference_config(
    directory: Path,
    shapes: Mapping[str, tuple[int, ...]],
    vision_config: Mapping[str, Any] | None = None,
    audio_config: Mapping[str, Any] | None = None,
) -> VideoLlama2Config:
    """Configuration of a checkpoint in the reference's layout.

    Args:
        directory: holds config.json.
        shapes: name -> shape of the checkpoint's tensors, under the reference's names.
        vision_config, audio_config: sizes that win over what is found; also taken from the sections `vision_config`
            and `audio_config` (or `vision_tower_config`, `audio_tower_config`) of config.json. BEATs sizes may have
            our names or the original's.

    Raises:
        ConfigError: another kind of model, a connector or tower that is not known, or sizes that contradict each other.
    """
    path = directory / "config.json"
    values = read_json(path)
    if not is_reference_config(values):
        raise ConfigError(f"{path}: model_type is {values.get('model_type')!r}, not {REFERENCE_MODEL_TYPE!r}")
    projector = values.get("mm_projector_type")
    if projector != "stc_connector_v35":
        raise ConfigError(f"{path}: mm_projector_type {projector!r} is not supported, only 'stc_connector_v35'")
    feature = values.get("mm_vision_select_feature", "patch")
    if feature not in ("patch", "cls_patch"):  # SigLIP has no class token: both mean all patches
        raise ConfigError(f"{path}: mm_vision_select_feature {feature!r} is not supported, only 'patch'")
    sizes = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    absent = [key for key in sizes if key not in values]
    if absent:
        raise ConfigError(f"{path}: {', '.join(absent)} missing")
    text = {key: values[key] for key in _TEXT_KEYS if values.get(key) is not None}
    config = VideoLlama2Config(
        vision_config=_vision_sizes(directory, values, vision_config),
        text_config=Qwen2Config(**text, tie_word_embeddings=False),
        audio_config=_audio_sizes(path, values, shapes, audio_config),
        vision_feature_layer=values.get("mm_vision_select_layer", -2),
        connector_depth=_count(shapes, r"model\.mm_projector\.s1\.b(\d+)\."),
        connector_downsample=shapes.get("model.mm_projector.sampler.0.weight", (0, 0, 2, 2, 2))[2:],
        connector_mlp_depth=_count(shapes, r"model\.mm_projector\.readout\.(\d+)\.weight"),
        audio_projector_depth=_audio_projector_depth(path, values.get("mm_projector_a_type"), shapes),
    )
    hidden = config.text_config.hidden_size
    for key, ours in (
        ("mm_hidden_size", config.vision_config.hidden_size),
        ("mm_hidden_size_a", config.audio_config.hidden_size),
        ("hidden_size_a", hidden),
    ):
        if values.get(key, ours) != ours:
            raise ConfigError(f"{path}: {key} is {values[key]}, but the part it belongs to is {ours} wide")
    return config


def _vision_sizes(directory: Path, values: Mapping[str, Any], given: Mapping[str, Any] | None) -> dict[str, Any]:
    sizes = given or values.get("vision_config") or values.get("vision_tower_config")
    tower = str(values.get("mm_vision_tower"))
    if sizes is not None:
        return {**SO400M_VISION, **sizes}
    if "siglip-so400m-patch14-384" in tower:
        return dict(SO400M_VISION)
    for folder in (Path(tower), directory / tower):
        if (folder / "config.json").is_file():
            found = read_json(folder / "config.json")
            return {**SO400M_VISION, **found.get("vision_config", found)}
    raise ConfigError(
        f"{directory / 'config.json'}: the sizes of the vision tower {tower!r} are not known. Give them as "
        "vision_config, or add a section 'vision_config' to the file"
    )


def _audio_sizes(
    path: Path, values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], given: Mapping[str, Any] | None
) -> dict[str, Any]:
    known = set(BeatsConfig().to_dict())
    sizes = _audio_sizes_from_shapes(shapes)
    stated = given or values.get("audio_config") or values.get("audio_tower_config") or {}
    original = any(key in _AUDIO_KEYS and _AUDIO_KEYS[key] != key for key in stated)
    for key, value in stated.items():
        if original and key in _AUDIO_FIXED:
            if value != _AUDIO_FIXED[key]:
                raise ConfigError(f"{path}: BEATs with {key}={value!r} is not supported, only {_AUDIO_FIXED[key]!r}")
        elif original and key in _AUDIO_KEYS:
            sizes[_AUDIO_KEYS[key]] = value
        elif original and (key in _AUDIO_IRRELEVANT or key == "hidden_size"):
            continue  # in the original's terms hidden_size is the language model's
        elif key in known:
            sizes[key] = value
        else:
            raise ConfigError(f"{path}: {key!r} is no setting of BEATs; known: {', '.join(sorted(_AUDIO_KEYS))}")
    return sizes


def _audio_sizes_from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    prefix = "model.audio_tower."
    patch = shapes.get(prefix + "patch_embedding.weight")
    kernel = shapes.get(prefix + "encoder.pos_conv.0.weight_v")
    fc1 = shapes.get(prefix + "encoder.layers.0.fc1.weight")
    table = shapes.get(prefix + "encoder.layers.0.self_attn.relative_attention_bias.weight")
    if patch is None or kernel is None or fc1 is None or table is None:
        return {}  # the missing tensors are reported with all others
    return {
        "embed_dim": patch[0],
        "patch_size": patch[-1],
        "hidden_size": kernel[0],
        "position_conv_groups": kernel[0] // kernel[1],
        "position_conv_kernel": kernel[2],
        "intermediate_size": fc1[0],
        "num_hidden_layers": _count(shapes, r"model\.audio_tower\.encoder\.layers\.(\d+)\."),
        "num_buckets": table[0],
        "num_attention_heads": table[1],
    }


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    return max(1, len({match.group(1) for match in map(re.compile(pattern).match, shapes) if match}))


def _audio_projector_depth(path: Path, kind: str | None, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of linear layers: as many as are stored, which has to be what config.json says where it says something."""
    depth = _count(shapes, r"model\.mm_projector_a\.(\d+)\.weight")  # a single layer may be stored without a number
    if kind is None:
        return depth
    match = re.fullmatch(r"mlp(\d+)x_gelu", kind)
    if kind != "linear" and match is None:
        raise ConfigError(f"{path}: mm_projector_a_type {kind!r} is not supported, only 'linear' and 'mlp<n>x_gelu'")
    said = 1 if match is None else int(match.group(1))
    if said != depth:
        raise ConfigError(f"{path}: mm_projector_a_type is {kind!r}, but the projector has {depth} linear layers")
    return depth


AutoConfig.register(REFERENCE_MODEL_TYPE, VideoLlama2ReferenceConfig)
