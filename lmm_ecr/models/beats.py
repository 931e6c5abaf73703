"""BEATs, a transformer over the patches of a 128-bin log mel filter bank (Chen et al. 2022, arXiv:2212.09058).

The encoder is independent of any LMM: 16x16 patches of the filter bank, a convolutional position encoding, post-norm
transformer layers with DeepNorm scaling (Wang et al. 2022, arXiv:2203.00555) and a gated relative position bias. The
numbers equal the original's; the names of modules and parameters are ours.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import ModelOutput

_WEIGHT_NORM_EPS = 1e-6  # inside the root, unlike torch.nn.utils.weight_norm


class BeatsConfig(PretrainedConfig):
    """Sizes of a BEATs encoder; the defaults are those of the public checkpoints.

    Args:
        patch_size: side of the square filter bank patches, frames and mel bins.
        embed_dim: channels of the patch embedding, projected to `hidden_size` where the two differ.
        position_conv_kernel, position_conv_groups: the convolutional position encoding, in tokens and groups.
        num_buckets, max_distance: relative position bias; distances (in tokens) from `max_distance` on share a bucket.
        gradient_decay: before every layer the gradient is multiplied by this factor, so that layer i of L sees
            `gradient_decay ** (L - 1 - i)` and everything below the layers `gradient_decay ** L`. 1 switches it off. It
            does not change any output.
        layerdrop: probability of skipping a layer in training. The draw comes from torch's CPU generator.
        fbank_mean, fbank_std: the filter bank is normalised to `(fbank - fbank_mean) / (2 * fbank_std)`.
    """

    model_type = "lmm_ecr_beats"

    def __init__(
        self,
        patch_size: int = 16,
        embed_dim: int = 512,
        hidden_size: int = 768,
        intermediate_size: int = 3072,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        position_conv_kernel: int = 128,
        position_conv_groups: int = 16,
        num_buckets: int = 320,
        max_distance: int = 800,
        num_mel_bins: int = 128,
        layer_norm_eps: float = 1e-5,
        gradient_decay: float = 0.6,
        layerdrop: float = 0.05,
        fbank_mean: float = 15.41663,
        fbank_std: float = 6.55582,
        **kwargs,
    ):
        self.patch_size = patch_size
        self.embed_dim = embed_dim
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.position_conv_kernel = position_conv_kernel
        self.position_conv_groups = position_conv_groups
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.num_mel_bins = num_mel_bins
        self.layer_norm_eps = layer_norm_eps
        self.gradient_decay = gradient_decay
        self.layerdrop = layerdrop
        self.fbank_mean = fbank_mean
        self.fbank_std = fbank_std
        super().__init__(**kwargs)

    def num_tokens(self, num_frames: int) -> int:
        """Tokens of a filter bank of `num_frames` frames; an incomplete last patch is dropped. 2998 give 1496."""
        return (num_frames // self.patch_size) * (self.num_mel_bins // self.patch_size)


@dataclass
class BeatsOutput(ModelOutput):
    """`last_hidden_state` [B, tokens, hidden]; `token_padding_mask` bool [B, tokens], True = padding, or None."""

    last_hidden_state: torch.Tensor | None = None
    token_padding_mask: torch.Tensor | None = None


def token_padding_mask(frame_padding_mask: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Frame mask bool [B, N] (True = padding) -> token mask bool [B, num_tokens].

    As in the original the frames are dealt out evenly to the tokens in their flat order, not to the patches the tokens
    come from: with 2998 frames and 1496 tokens, token (t, f) is padding if frames 16t+2f and 16t+2f+1 are. The two
    agree where the padding starts at a multiple of the patch size and the number of frames is such a multiple.
    """
    batch, frames = frame_padding_mask.shape
    return frame_padding_mask[:, : frames - frames % num_tokens].reshape(batch, num_tokens, -1).all(dim=-1)


def relative_position_buckets(relative_position: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """Bucket of `key index - query index`, int64 of any shape -> int64: half of the buckets for keys after the query,
    half of those for exact distances, the rest logarithmic up to `max_distance`."""
    half = num_buckets // 2
    exact = half // 2
    distance = relative_position.abs()
    scale = (half - exact) / math.log(max_distance / exact)
    logarithmic = exact + (torch.log(distance.clamp_min(1).float() / exact) * scale).long()
    bucket = torch.where(distance < exact, distance, logarithmic.clamp_max(half - 1))
    return bucket + half * (relative_position > 0)


class GradientScale(torch.autograd.Function):
    """Identity whose backward multiplies the gradient by a constant."""

    @staticmethod
    def forward(ctx, tensor: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor):
        return gradient * ctx.factor, None


class BeatsPositionConv(nn.Module):
    """x + GELU(grouped convolution over the tokens), the kernel weight-normalised per tap. [B, N, C] -> the same.

    The weights are not called weight_g and weight_v: transformers renames such ones while it loads under ZeRO-3.
    """

    def __init__(self, config: BeatsConfig):
        super().__init__()
        width, self.groups = config.hidden_size, config.position_conv_groups
        self.kernel = config.position_conv_kernel
        self.magnitude = nn.Parameter(torch.ones(1, 1, self.kernel))
        self.direction = nn.Parameter(torch.empty(width, width // self.groups, self.kernel))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        v = self.direction.float()
        norm = (v.square().sum(dim=(0, 1), keepdim=True) + _WEIGHT_NORM_EPS).sqrt()
        weight = (v / norm).to(self.direction.dtype) * self.magnitude
        y = F.conv1d(x.transpose(1, 2), weight, self.bias, padding=self.kernel // 2, groups=self.groups)
        y = y[..., : x.shape[1]]  # an even kernel makes one position too many
        return x + F.gelu(y).transpose(1, 2)


class BeatsAttention(nn.Module):
    """Self-attention whose relative position bias is gated per head and query by the query itself."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.config = config
        width, self.heads = config.hidden_size, config.num_attention_heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.gate_proj = nn.Linear(width // self.heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(1, self.heads, 1, 1))

    def forward(self, x: torch.Tensor, position_bias: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
        """x [B, N, C], position_bias [heads, N, N], padding_mask bool [B, N] (True = key never attended) or None."""
        shape = (*x.shape[:2], self.heads, -1)
        q, k, v = (projection(x).view(shape).transpose(1, 2) for projection in (self.q_proj, self.k_proj, self.v_proj))
        gate_a, gate_b = (
            self.gate_proj(q).unflatten(-1, (2, 4)).sum(dim=-1).sigmoid().split(1, dim=-1)
        )  # [B, heads, N, 1]
        bias = ((gate_a * (gate_b * self.gate_scale - 1.0) + 2.0) * position_bias).to(q.dtype)
        if padding_mask is not None:
            bias = bias.masked_fill(padding_mask[:, None, None, :], torch.finfo(bias.dtype).min)
        if self.config._attn_implementation == "eager":
            logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + bias
            context = logits.softmax(dim=-1, dtype=torch.float32).to(v.dtype) @ v
        else:  # flash attention knows no additive bias; torch chooses the best fused kernel that does
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.out_proj(context.transpose(1, 2).flatten(2))


class BeatsLayer(GradientCheckpointingLayer):
    """`x = LN(a*x + attention(x)); x = LN(a*x + mlp(x))` with `a = (2 * layers) ** 0.25`."""

    def __init__(self, config: BeatsConfig):
        super().__init__()
        self.residual_scale = (2 * config.num_hidden_layers) ** 0.25
        self.attention = BeatsAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.output_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, x: torch.Tensor, position_bias: torch.Tensor, padding_mask: torch.Tensor | None) -> torch.Tensor:
        x = self.attention_norm(self.residual_scale * x + self.attention(x, position_bias, padding_mask))
        hidden = self.fc1(x)
        hidden = F.gelu(hidden.float()).to(hidden.dtype)
        return self.output_norm(self.residual_scale * x + self.fc2(hidden))


class BeatsEncoder(PreTrainedModel):
    """Filter bank (before normalisation) -> audio tokens, `8 * (frames // 16)` of them, time-major."""

    config_class = BeatsConfig
    config: BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "fbank"
    supports_gradient_checkpointing = True
    _no_split_modules = ("BeatsLayer", "BeatsPositionConv")
    # Every implementation is accepted so that one setting can serve a whole LMM; see BeatsAttention.
    _supports_sdpa = True
    _supports_flash_attn = True

    def __init__(self, config: BeatsConfig):
        super().__init__(config)
        self.patch_embedding = nn.Conv2d(1, config.embed_dim, config.patch_size, config.patch_size, bias=False)
        self.patch_norm = nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps)
        same_width = config.embed_dim == config.hidden_size
        self.patch_projection = nn.Identity() if same_width else nn.Linear(config.embed_dim, config.hidden_size)
        self.position_conv = BeatsPositionConv(config)
        self.input_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.relative_position_bias = nn.Embedding(config.num_buckets, config.num_attention_heads)
        self.layers = nn.ModuleList(BeatsLayer(config) for _ in range(config.num_hidden_layers))
        self.gradient_checkpointing = False
        self.post_init()

    def forward(self, fbank: torch.Tensor, frame_padding_mask: torch.Tensor | None = None, **kwargs) -> BeatsOutput:
        """Encode a batch of filter banks.

        Args:
            fbank: [B, N, 128], log mel energies as `lmm_ecr.data.fbank.kaldi_fbank` gives them, any float dtype. They
                are normalised in float32 and then cast to the dtype of the weights. N >= 16.
            frame_padding_mask: bool [B, N], True = padding, or None. Padded tokens are set to zero before the position
                convolution and never attended; their own outputs are meaningless but finite.

        Raises:
            ValueError: wrong number of mel bins, or less than one patch of frames.
        """
        patch = self.config.patch_size
        if fbank.dim() != 3 or fbank.shape[1] < patch or fbank.shape[2] != self.config.num_mel_bins:
            raise ValueError(
                f"BEATs takes filter banks [batch, frames >= {patch}, {self.config.num_mel_bins}], "
                f"not {tuple(fbank.shape)}"
            )
        x = (fbank.float() - self.config.fbank_mean) / (2 * self.config.fbank_std)
        x = self.patch_embedding(x.unsqueeze(1).to(self.patch_embedding.weight.dtype))
        x = self.patch_projection(self.patch_norm(x.flatten(2).transpose(1, 2)))
        mask = None
        if frame_padding_mask is not None:
            mask = token_padding_mask(frame_padding_mask.bool(), x.shape[1])
            x = x.masked_fill(mask.unsqueeze(-1), 0.0)
        x = self.input_norm(self.position_conv(x))
        position_bias = self.position_bias(x.shape[1])
        keep = self._draw_layers(x.device)
        for index, layer in enumerate(self.layers):
            if self.config.gradient_decay != 1.0:
                x = GradientScale.apply(x, self.config.gradient_decay)
            y = layer(x, position_bias, mask)
            x = y if keep is None else torch.where(keep[index], y, x)
        return BeatsOutput(last_hidden_state=x, token_padding_mask=mask)

    def position_bias(self, num_tokens: int) -> torch.Tensor:
        """The relative position bias before gating, [heads, num_tokens, num_tokens] for (query, key)."""
        offsets = torch.arange(1 - num_tokens, num_tokens, device=self.relative_position_bias.weight.device)
        buckets = relative_position_buckets(offsets, self.config.num_buckets, self.config.max_distance)
        per_offset = self.relative_position_bias(buckets).T  # [heads, 2N-1]; row i of the matrix is a slice of it
        return per_offset.unfold(1, num_tokens, 1).flip(1)

    def _draw_layers(self, device: torch.device) -> torch.Tensor | None:
        """Which layers count in this forward pass, bool [layers], or None for all of them.

        A dropped layer is computed and its output discarded: processes that draw differently then still run the same
        collectives (ZeRO-3) and give every parameter a gradient (DDP).
        """
        if not self.training or self.config.layerdrop == 0.0:
            return None
        return (torch.rand(len(self.layers)) > self.config.layerdrop).to(device)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        """DeepNorm initialisation: Xavier, the value path and the MLP scaled by `(8 * layers) ** -0.25`."""
        gain = (8 * self.config.num_hidden_layers) ** -0.25
        if isinstance(module, BeatsPositionConv):
            taps, width = self.config.position_conv_kernel, self.config.hidden_size
            init.normal_(module.direction, std=math.sqrt(4.0 / (taps * width)))
            # The expected norm of one tap, so that the normalised kernel starts with the same spread.
            init.constant_(module.magnitude, math.sqrt(4.0 / (taps * width) * module.direction[..., 0].numel()))
            init.zeros_(module.bias)
        elif isinstance(module, BeatsAttention):
            init.ones_(module.gate_scale)
            for projection, scale in (
                (module.q_proj, 1),
                (module.k_proj, 1),
                (module.v_proj, gain),
                (module.out_proj, gain),
            ):
                init.xavier_normal_(projection.weight, gain=scale)
                init.zeros_(projection.bias)
        elif isinstance(module, BeatsLayer):
            for linear in (module.fc1, module.fc2):
                init.xavier_normal_(linear.weight, gain=gain)
                init.zeros_(linear.bias)
        elif isinstance(module, nn.Conv2d):
            init.xavier_uniform_(module.weight)
        else:
            super()._init_weights(module)
