"""Models of real size with random weights: for measuring speed and memory where no pretrained weights are at hand."""

import tempfile

import torch
from transformers import AutoConfig

from ..errors import ConfigError
from .qwen2_5_vl import Qwen25VLProcessor, Qwen25VLSpec
from .regression import LmmRegressor, LmmRegressorConfig
from .tiny import tiny_qwen2_5_vl_config, write_tiny_qwen2_5_vl

# Sizes from the config.json files of the hub's Qwen2.5-VL-3B-Instruct and -7B-Instruct.
_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
QWEN2_5_VL_SIZES = {
    "qwen2_5_vl_3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "qwen2_5_vl_7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}


def random_regressor(
    size: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32, attn_implementation: str = "sdpa"
) -> tuple[LmmRegressor, Qwen25VLProcessor]:
    """A regressor of a real size (a key of QWEN2_5_VL_SIZES) with random weights made on `device`, and its processor.

    The tokenizer is a small stand-in, so texts are longer in tokens than with the real one. Raises ConfigError for an
    unknown size.
    """
    if size not in QWEN2_5_VL_SIZES:
        raise ConfigError(f"size {size!r} is unknown; choose from {', '.join(QWEN2_5_VL_SIZES)}")
    with tempfile.TemporaryDirectory() as directory:
        write_tiny_qwen2_5_vl(directory, ["a title of a few words"])
        processor = Qwen25VLProcessor.from_backbone(directory, Qwen25VLSpec())
    values = tiny_qwen2_5_vl_config(processor.tokenizer) | QWEN2_5_VL_SIZES[size]
    values["max_window_layers"] = values["num_hidden_layers"]
    values["rope_theta"] = 1000000.0
    values["rope_scaling"] = {"type": "mrope", "mrope_section": [16, 24, 24]}
    values["vision_config"] = values["vision_config"] | _VISION | {"out_hidden_size": values["hidden_size"]}
    config = LmmRegressorConfig(backbone_config=AutoConfig.for_model(**values))
    config._attn_implementation = attn_implementation
    with torch.device(device):
        model = LmmRegressor(config)
    model.backbone.to(dtype)
    model.config.backbone_config.dtype = dtype
    return model, processor
