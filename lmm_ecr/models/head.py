"""From hidden states to scores: pooling over tokens and the regression head. Both compute in float32."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import ConfigError

POOLINGS = ("mean", "last", "attention")


class Pooling(nn.Module):
    """Pool hidden states [batch, tokens, hidden] to float32 [batch, hidden], ignoring padding on either side.

    mean: average over the real tokens. last: the last real token. attention: softmax-weighted average, the weights
    from one learned vector (scaled dot product, zero at the start, so that it begins as the mean).
    """

    def __init__(self, kind: str, hidden_size: int):
        super().__init__()
        if kind not in POOLINGS:
            raise ConfigError(f"pooling {kind!r} is unknown; choose one of {', '.join(POOLINGS)}")
        self.kind = kind
        self.query = nn.Parameter(torch.zeros(hidden_size)) if kind == "attention" else None

    def forward(self, hidden_states: torch.Tensor, token_mask: torch.Tensor) -> torch.Tensor:
        """`token_mask` [batch, tokens]: nonzero at real tokens, at least one per row."""
        mask = token_mask.to(hidden_states.device).bool()
        if self.kind == "last":
            positions = torch.arange(mask.shape[1], device=mask.device)
            last = torch.where(mask, positions, -1).amax(dim=1)
            return hidden_states[torch.arange(mask.shape[0], device=mask.device), last].float()
        states = hidden_states.float().masked_fill(~mask.unsqueeze(-1), 0.0)
        if self.kind == "mean":
            return states.sum(dim=1) / mask.sum(dim=1, keepdim=True)
        with torch.autocast(states.device.type, enabled=False):
            scores = states @ self.query.float() / states.shape[-1] ** 0.5
            weights = scores.masked_fill(~mask, float("-inf")).softmax(dim=1)
            return torch.einsum("bt,bth->bh", weights, states)


class RegressionHead(nn.Module):
    """Dropout, linear, ReLU, dropout, linear: float32 [batch, in_size] to float32 [batch, num_targets].

    Runs in float32 whatever the dtype of its input or even of its own weights: a bfloat16 score has 128 steps between
    0.5 and 1, and ties cost rank correlation.
    """

    def __init__(self, in_size: int, hidden_size: int, num_targets: int = 1, dropout: float = 0.1):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(in_size, hidden_size)
        self.fc2 = nn.Linear(hidden_size, num_targets)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            hidden = _linear_float32(self.fc1, self.dropout(features.float())).relu()
            return _linear_float32(self.fc2, self.dropout(hidden))


@dataclass(frozen=True)
class PretrainedHead:
    """The regression head of a checkpoint that another code base wrote.

    state: parameters of `RegressionHead` by name, float32 on the CPU. options: what `LmmRegressor.from_backbone` must be
    told so that the head fits and means the same (pooling, sizes, label transform).
    """

    state: dict[str, torch.Tensor]
    options: dict[str, Any]


def _linear_float32(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return F.linear(inputs, layer.weight.float(), layer.bias.float())
