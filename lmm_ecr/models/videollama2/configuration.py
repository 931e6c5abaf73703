"""Configuration of VideoLLaMA2.1-AV: SigLIP, STC connector, BEATs, audio projector and Qwen2 in one model."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig, Qwen2Config, SiglipVisionConfig

from lmm_ecr.errors import ConfigError
from lmm_ecr.models.beats import BeatsConfig

# google/siglip-so400m-patch14-384
SO400M_VISION = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "num_channels": 3,
    "image_size": 384,
    "patch_size": 14,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "attention_dropout": 0.0,
}

QWEN2_7B_TEXT = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": False,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
}


class VideoLlama2Config(PretrainedConfig):
    """Sizes of a VideoLLaMA2.1-AV model; the defaults are those of the public 7B checkpoint.

    Args:
        vision_config, text_config, audio_config: the three sub-configurations, as objects or dictionaries.
        vision_feature_layer: which SigLIP layer's output is used, an index into [embeddings, layer 1, ..., layer N]. -2
            is the output of the layer before the last one; no final norm is applied. Layers above it are not built.
        connector_depth: RegNet blocks in each of the connector's two stages.
        connector_downsample: kernel and stride (time, height, width) of the 3-d convolution between the stages.
        connector_mlp_depth, audio_projector_depth: linear layers of the two MLPs into the language model.

    Raises:
        ConfigError: a layer index outside the tower.
    """

    model_type = "videollama2_av"
    sub_configs = {"vision_config": SiglipVisionConfig, "text_config": Qwen2Config, "audio_config": BeatsConfig}  # noqa: RUF012

    def __init__(
        self,
        vision_config: SiglipVisionConfig | dict[str, Any] | None = None,
        text_config: Qwen2Config | dict[str, Any] | None = None,
        audio_config: BeatsConfig | dict[str, Any] | None = None,
        vision_feature_layer: int = -2,
        connector_depth: int = 4,
        connector_downsample: tuple[int, int, int] = (2, 2, 2),
        connector_mlp_depth: int = 2,
        audio_projector_depth: int = 2,
        **kwargs,
    ):
        self.vision_config = _sub_config(SiglipVisionConfig, vision_config, SO400M_VISION)
        self.text_config = _sub_config(Qwen2Config, text_config, QWEN2_7B_TEXT)
        self.audio_config = _sub_config(BeatsConfig, audio_config, {})
        self.vision_feature_layer = vision_feature_layer
        self.connector_depth = connector_depth
        self.connector_downsample = list(connector_downsample)
        self.connector_mlp_depth = connector_mlp_depth
        self.audio_projector_depth = audio_projector_depth
        if not 1 <= self.num_vision_layers <= self.vision_config.num_hidden_layers:
            raise ConfigError(
                f"vision_feature_layer {vision_feature_layer} is not a layer of a vision tower with "
                f"{self.vision_config.num_hidden_layers} layers"
            )
        super().__init__(**kwargs)

    @property
    def num_vision_layers(self) -> int:
        """SigLIP layers that are built and run: 26 of 27 in the public checkpoint."""
        layer = self.vision_feature_layer
        return layer if layer >= 0 else self.vision_config.num_hidden_layers + 1 + layer

    def num_video_tokens(self, num_frames: int) -> int:
        """Language model positions of one clip: `floor(T/2) * floor(grid/2)**2`. 8 frames give 676 and 5 give 338."""
        grid = self.vision_config.image_size // self.vision_config.patch_size
        time, height, width = self.connector_downsample
        return (num_frames // time) * (grid // height) * (grid // width)

    def num_audio_tokens(self, num_frames: int) -> int:
        """Language model positions of a filter bank of `num_frames` frames. 2998 (30 s) give 1496."""
        return self.audio_config.num_tokens(num_frames)


def _sub_config(config_class, value, defaults: dict[str, Any]):
    if isinstance(value, PretrainedConfig):
        return value
    return config_class(**(defaults if value is None else value))


AutoConfig.register(VideoLlama2Config.model_type, VideoLlama2Config)
