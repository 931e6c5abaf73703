"""Regression losses and their weighted sums, written as in `--loss "mse + 0.5*plcc"`.

Every loss takes predictions and targets as float32 tensors [N] on the training scale and returns a scalar. Pointwise losses
are means over N; batch-wise ones (plcc, rank) compare the N clips with each other, so N should be the whole batch of all
processes: `lmm_ecr.training` gathers it. N == 1 gives 0 for the batch-wise losses (nothing to compare).
"""

import math
import re
from collections.abc import Callable

import torch
import torch.nn.functional as F

from .errors import ConfigError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def mse_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """mean((p - y)^2)"""
    return F.mse_loss(predictions, targets)


def l1_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """mean(|p - y|)"""
    return F.l1_loss(predictions, targets)


def huber_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """mean(h(p - y)), h(e) = e^2 / 2 for |e| <= 1 and |e| - 1/2 beyond (Huber 1964, delta 1 on the training scale)."""
    return F.huber_loss(predictions, targets, delta=1.0)


def plcc_loss(predictions: torch.Tensor, targets: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Correlation loss, (1 - r)(3 + r) / 8 with r the Pearson correlation; 0 at r = 1, 1/2 at r = -1.

    Written as the mean of two residuals of standardised vectors, z(v) = (v - mean) / (population std + eps):
    A = mean((z(p) - z(y))^2) / 4, B = mean((r z(p) - z(y))^2) / 4, r = mean(z(p) z(y)); loss = (A + B) / 2.
    Source: the norm-in-norm style loss of video quality assessment (Li, Jiang and Jiang, ACM MM 2020) as used by the
    winning system of the VQualA 2025 engagement challenge. With equal predictions the gradient is finite but steep
    (1 / eps), so pair it with a pointwise loss.
    """
    if predictions.numel() < 2:
        return predictions.sum() * 0.0
    p = (predictions - predictions.mean()) / (predictions.std(correction=0) + eps)
    y = (targets - targets.mean()) / (targets.std(correction=0) + eps)
    r = (p * y).mean()
    return ((p - y).square().mean() + (r * p - y).square().mean()) / 8


def rank_loss(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Pairwise logistic ranking loss: mean over pairs with y_i > y_j of log(1 + exp(-(p_i - p_j))).

    Source: RankNet (Burges et al., ICML 2005) with hard targets. Pairs with equal targets do not count; 0 without pairs.
    """
    higher = targets[:, None] > targets[None, :]
    margins = (predictions[:, None] - predictions[None, :])[higher]
    if margins.numel() == 0:
        return predictions.sum() * 0.0
    return F.softplus(-margins).mean()


LOSSES: dict[str, Loss] = {
    "mse": mse_loss,
    "l1": l1_loss,
    "huber": huber_loss,
    "plcc": plcc_loss,
    "rank": rank_loss,
}
BATCH_WISE = frozenset({"plcc", "rank"})

_TERM = re.compile(
    r"(?:(?P<weight>\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?)\s*\*\s*)?(?P<name>[a-z][a-z0-9_]*)"
)


def parse_loss(expression: str) -> dict[str, float]:
    """Read a weighted sum such as "mse + 0.5*plcc" into {name: weight}.

    Raises ConfigError for unknown names, repeated terms, weights that are not positive and finite, or text that is no
    such sum.
    """
    weights: dict[str, float] = {}
    for text in re.split(r"(?<!\d[eE])(?<!\.[eE])\+", expression):
        match = _TERM.fullmatch(text.strip())
        if match is None:
            raise ConfigError(
                f'--loss {expression!r}: cannot read {text.strip()!r}; write a sum such as "mse + 0.5*plcc" '
                f"of {', '.join(LOSSES)}"
            )
        name, weight = match["name"], float(match["weight"] or 1.0)
        if name not in LOSSES:
            raise ConfigError(f"--loss {expression!r}: {name!r} is unknown; choose from {', '.join(LOSSES)}")
        if name in weights:
            raise ConfigError(f"--loss {expression!r}: {name!r} appears twice")
        if not 0 < weight < math.inf:
            raise ConfigError(f"--loss {expression!r}: the weight of {name!r} must be above 0 and finite")
        weights[name] = weight
    return weights


class RegressionLoss:
    """A weighted sum of losses over one or several targets.

    Called with predictions and labels float32 [N, K] on the training scale; a NaN label means "not known" and leaves that
    clip out for that target. The K targets are averaged. Returns a float32 scalar that is connected to `predictions` even
    when no label is known.
    """

    def __init__(self, expression: str = "mse"):
        self.expression = expression
        self.weights = parse_loss(expression)

    @property
    def batch_wise(self) -> bool:
        """Whether a clip's loss depends on the other clips of the batch."""
        return any(name in BATCH_WISE for name in self.weights)

    def __call__(self, predictions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if predictions.shape != labels.shape or predictions.dim() != 2:
            raise ValueError(
                f"expected two [clips, targets] tensors, got {tuple(predictions.shape)} and {tuple(labels.shape)}"
            )
        predictions, labels = predictions.float(), labels.float()
        known = ~labels.isnan()
        total = predictions.sum() * 0.0
        for target in range(predictions.shape[1]):
            rows = known[:, target]
            p, y = predictions[rows, target], labels[rows, target]
            if p.numel():
                total = total + sum(weight * LOSSES[name](p, y) for name, weight in self.weights.items())
        return total / predictions.shape[1]
