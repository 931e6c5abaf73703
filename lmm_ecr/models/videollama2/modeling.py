"""VideoLLaMA2.1-AV without a vocabulary head: frames, sound and text in, hidden states out.

SigLIP and Qwen2 are transformers' modules, held (not inherited) under names of our own. Checkpoints written by
`save_pretrained` carry exactly these names:

    vision_encoder.  connector.  audio_encoder.  audio_projector.  language_model.
"""

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel, Qwen2Model, SiglipVisionConfig
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipPreTrainedModel, SiglipVisionEmbeddings

from lmm_ecr.models.beats import BeatsEncoder
from lmm_ecr.models.videollama2.configuration import VideoLlama2Config
from lmm_ecr.models.videollama2.connector import StcConnector, gelu_mlp

TEXT, VIDEO, AUDIO = 0, 1, 2  # values of mm_token_type_ids


def normalise_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1, `(x / 255 - 0.5) / 0.5`; float input is taken as normalised already."""
    return (pixels.float() / 255 - 0.5) / 0.5 if pixels.dtype == torch.uint8 else pixels


class SiglipFeatures(SiglipPreTrainedModel):
    """SigLIP up to and including layer `num_layers`: no later layer, final norm or pooling head.

    Frames [N, 3, size, size], normalised -> patch features [N, patches, hidden], no class token.
    """

    config_class = SiglipVisionConfig
    config: SiglipVisionConfig
    base_model_prefix = "vision_encoder"

    def __init__(self, config: SiglipVisionConfig, num_layers: int):
        super().__init__(config)
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)
        self.encoder.layers = self.encoder.layers[:num_layers]
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.encoder(inputs_embeds=self.embeddings(pixel_values)).last_hidden_state


class VideoLlama2Model(PreTrainedModel):
    """Backbone of the audio-visual regressor.

    Placeholders for video and audio are already expanded in `input_ids`: `mm_token_type_ids` marks them, and whatever
    token id stands under them is ignored. A row may have video, sound, both or neither. No parameter is frozen here;
    `default_frozen_parts` names what the reference freezes, and a vision encoder without trainable parameters runs
    without building a graph.
    """

    config_class = VideoLlama2Config
    config: VideoLlama2Config
    base_model_prefix = "videollama2"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules = ("Qwen2DecoderLayer", "SiglipEncoderLayer", "SiglipVisionEmbeddings", "Bottleneck")

    parts = ("vision_encoder", "connector", "audio_encoder", "audio_projector", "language_model")
    default_frozen_parts = ("vision_encoder",)

    def __init__(self, config: VideoLlama2Config):
        super().__init__(config)
        hidden = config.text_config.hidden_size
        self.vision_encoder = SiglipFeatures(config.vision_config, config.num_vision_layers)
        self.connector = StcConnector(
            config.vision_config.hidden_size,
            hidden,
            depth=config.connector_depth,
            mlp_depth=config.connector_mlp_depth,
            downsample=config.connector_downsample,
        )
        self.audio_encoder = BeatsEncoder(config.audio_config)
        self.audio_projector = gelu_mlp(config.audio_config.hidden_size, hidden, config.audio_projector_depth)
        self.language_model = Qwen2Model(config.text_config)
        self.post_init()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs) -> "VideoLlama2Model":
        """As in transformers, and also from a directory in the layout of the public VideoLLaMA2.1-7B-AV checkpoint.

        A regression head in such a directory is left out here; `conversion.load_reference_checkpoint` returns both.
        """
        from lmm_ecr.models.videollama2 import conversion

        if conversion.is_reference_checkpoint(pretrained_model_name_or_path):
            return conversion.load_reference_checkpoint(pretrained_model_name_or_path, *args, **kwargs)[0]
        return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding):
        self.language_model.embed_tokens = value

    def get_vision_features(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames [N, 3, size, size] (uint8, or float and normalised) -> patch features [N, patches, vision width]."""
        trained = any(parameter.requires_grad for parameter in self.vision_encoder.parameters())
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return self.vision_encoder(normalise_pixels(frames))

    def get_video_tokens(self, clips: torch.Tensor) -> torch.Tensor:
        """Clips [B, T, 3, size, size] -> [B, `config.num_video_tokens(T)`, hidden]."""
        features = self.get_vision_features(clips.flatten(0, 1))
        return self.connector(features.unflatten(0, clips.shape[:2]))

    def get_audio_tokens(self, fbank: torch.Tensor, fbank_mask: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Filter banks [B, N, 128], mask bool [B, N] (True = real frame) -> for each [its tokens, hidden]."""
        encoded = self.audio_encoder(fbank, None if fbank_mask is None else ~fbank_mask.bool())
        tokens = self.audio_projector(encoded.last_hidden_state)
        if encoded.token_padding_mask is None:
            return list(tokens)
        return [row[~padding] for row, padding in zip(tokens, encoded.token_padding_mask, strict=True)]

    def get_inputs_embeds(
        self,
        input_ids: torch.Tensor,
        mm_token_type_ids: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        fbank: torch.Tensor | None = None,
        fbank_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Token embeddings [B, S, hidden] with video and audio tokens in their places; arguments as in `forward`."""
        embeds = self.language_model.embed_tokens(input_ids)
        if mm_token_type_ids is None:
            if pixel_values_videos is not None or fbank is not None:
                raise ValueError("video or sound without mm_token_type_ids: the model cannot know where they belong")
            mm_token_type_ids = torch.zeros_like(input_ids)
        counts = torch.stack([(mm_token_type_ids == kind).sum(dim=1) for kind in (VIDEO, AUDIO)])
        video_counts, audio_counts = ([count for count in row if count] for row in counts.tolist())
        # Video before sound on every process, whatever its batch has: ZeRO-3 and FSDP gather weights as modules run.
        for kind, name, placeholders in ((VIDEO, "video", video_counts), (AUDIO, "audio", audio_counts)):
            if kind == VIDEO:
                rows = self._video_rows(pixel_values_videos, len(placeholders))
            else:
                rows = [] if fbank is None else self.get_audio_tokens(fbank, fbank_mask)
            if [len(row) for row in rows] != placeholders:
                raise ValueError(
                    f"{name} placeholders in the rows of the batch that have any: {placeholders}; "
                    f"{name} tokens: {[len(row) for row in rows]}"
                )
            if rows:
                place = (mm_token_type_ids == kind).unsqueeze(-1)
                embeds = embeds.masked_scatter(place, torch.cat(rows).to(embeds.dtype))
            elif self._must_run(kind):
                embeds = embeds + 0.0 * self._tokens_of_smallest_input(kind, embeds).sum().to(embeds.dtype)
        return embeds

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        pixel_values_videos: torch.Tensor | None = None,
        fbank: torch.Tensor | None = None,
        fbank_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the whole sequence after the final norm.

        Args:
            input_ids: int64 [B, S], placeholders already expanded (any valid id stands for them).
            attention_mask: [B, S], 1 = real position, padding on either side; None = no padding.
            mm_token_type_ids: int64 [B, S], 0 text, 1 video, 2 audio. May be None for text alone.
            pixel_values_videos: [clips, T, 3, size, size] or [clips * T, 3, size, size], uint8 or normalised float, one
                clip for each row with video placeholders, in the order of the rows.
            fbank: float [tracks, N, 128], one for each row with audio placeholders, in the order of the rows.
            fbank_mask: bool [tracks, N], True = real frame, for tracks of different lengths; None = all real.
            position_ids: int64 [B, S]; default: counted over the real positions.

        Returns:
            `last_hidden_state` [B, S, hidden]; what stands at padded positions has no meaning.

        Raises:
            ValueError: the placeholders of a row do not match its video or audio tokens.
        """
        embeds = self.get_inputs_embeds(input_ids, mm_token_type_ids, pixel_values_videos, fbank, fbank_mask)
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.long().cumsum(dim=-1) - 1).clamp_min(0)
        return self.language_model(
            inputs_embeds=embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            use_cache=kwargs.pop("use_cache", False),
            **kwargs,
        )

    def _video_rows(self, pixels: torch.Tensor | None, num_rows: int) -> list[torch.Tensor]:
        if pixels is None:
            return []
        if pixels.dim() == 4:
            if num_rows == 0 or len(pixels) % num_rows:
                raise ValueError(f"{len(pixels)} frames cannot be divided among {num_rows} rows with a video")
            pixels = pixels.unflatten(0, (num_rows, -1))
        return list(self.get_video_tokens(pixels))

    def _must_run(self, kind: int) -> bool:
        """Whether a batch without video or sound must run its encoder all the same.

        DDP needs a gradient (of zero) for every trained parameter; where weights are sharded, all processes must gather
        the same ones, or the run hangs.
        """
        parts = (self.vision_encoder, self.connector) if kind == VIDEO else (self.audio_encoder, self.audio_projector)
        parameters = [parameter for part in parts for parameter in part.parameters()]
        trained = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters)
        return trained or any(_is_sharded(parameter) for parameter in parameters)

    def _tokens_of_smallest_input(self, kind: int, like: torch.Tensor) -> torch.Tensor:
        if kind == VIDEO:
            vision = self.config.vision_config
            shape = (1, self.config.connector_downsample[0], vision.num_channels, vision.image_size, vision.image_size)
            return self.get_video_tokens(torch.zeros(shape, device=like.device, dtype=like.dtype))
        audio = self.config.audio_config
        return self.get_audio_tokens(torch.zeros(1, audio.patch_size, audio.num_mel_bins, device=like.device))[0]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """New connectors: convolutions by fan-in, linear layers and norms as in transformers."""
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            fan_in = module.weight[0].numel()
            init.normal_(module.weight, std=fan_in**-0.5)
            if module.bias is not None:
                init.zeros_(module.bias)
        else:
            super()._init_weights(module)


def _is_sharded(parameter: nn.Parameter) -> bool:
    """Whether this process holds only its share of it: of ZeRO-3, or a DTensor of FSDP2."""
    return hasattr(parameter, "ds_id") or hasattr(parameter, "device_mesh")


AutoModel.register(VideoLlama2Config, VideoLlama2Model)
