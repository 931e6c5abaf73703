"""Label transforms: the scale on which a head is trained, and the way back to label units.

A transform is fitted on the training labels only, is stored in the checkpoint (`to_dict`), and is inverted at prediction.
Labels are shares in [0, 1]; `inverse` always returns values in [0, 1], so a score never leaves the unit interval.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch

from .errors import ConfigError, DataError

QUANTILE_KNOTS = 1001  # resolution of the stored label distribution: 0.1 % steps


class LabelTransform:
    """Identity transform and base class. `forward` maps labels to the training scale, `inverse` maps back.

    Both take and return float32 or float64 tensors of any shape; NaN (a missing label) stays NaN.
    """

    name = "identity"

    def __init__(self, mean: float = 0.0):
        self.mean = float(mean)

    @classmethod
    def fit(cls, labels: Sequence[float] | np.ndarray) -> "LabelTransform":
        """Fit on training labels: float array [N] in [0, 1]; NaN entries (missing labels) are left out.

        Raises DataError if no finite label is there, or if all are equal where the transform needs a spread.
        """
        values = np.asarray(labels, dtype=np.float64)
        values = values[np.isfinite(values)]
        if values.size == 0:
            raise DataError("no training labels to fit the label transform on: is the target column empty?")
        return cls._fit(values)

    @classmethod
    def _fit(cls, values: np.ndarray) -> "LabelTransform":
        return cls(mean=values.mean())

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return labels

    def _inverse(self, scores: torch.Tensor) -> torch.Tensor:
        return scores

    def inverse(self, scores: torch.Tensor) -> torch.Tensor:
        """Training-scale scores to label units, limited to [0, 1]."""
        return self._inverse(scores).clamp(0.0, 1.0)

    @property
    def initial_bias(self) -> float:
        """Training-scale value of the mean label: where the head's last bias starts."""
        return self.mean

    def to_dict(self) -> dict:
        return {"name": self.name, "mean": self.mean}


class ZScoreTransform(LabelTransform):
    """(y - mean) / standard deviation, so that the head learns values of order one."""

    name = "z-score"

    def __init__(self, mean: float = 0.0, std: float = 1.0):
        super().__init__(mean)
        self.std = float(std)

    @classmethod
    def _fit(cls, values: np.ndarray) -> "LabelTransform":
        if np.ptp(values) == 0:  # their standard deviation may be 1e-17: the mean is rounded
            raise DataError(
                f"all {values.size} training labels equal {values[0]:g}: z-score needs a spread. "
                "Check the target column, or use --label_transform identity."
            )
        return cls(mean=values.mean(), std=values.std())

    def forward(self, labels):
        return (labels - self.mean) / self.std

    def _inverse(self, scores):
        return scores * self.std + self.mean

    @property
    def initial_bias(self) -> float:
        return 0.0

    def to_dict(self) -> dict:
        return {"name": self.name, "mean": self.mean, "std": self.std}


class PercentTransform(LabelTransform):
    """100 y: the scale of the winning team's VideoLLaMA2 weights."""

    name = "percent"

    def forward(self, labels):
        return labels * 100

    def _inverse(self, scores):
        return scores / 100

    @property
    def initial_bias(self) -> float:
        return 100 * self.mean


class LogitTransform(LabelTransform):
    """log(y / (1 - y)) with labels first limited to [eps, 1 - eps]; the way back is the logistic function."""

    name = "logit"

    def __init__(self, mean: float = 0.5, eps: float = 1e-3):
        super().__init__(mean)
        self.eps = float(eps)

    def forward(self, labels):
        return torch.logit(labels, eps=self.eps)

    def _inverse(self, scores):
        return torch.sigmoid(scores)

    @property
    def initial_bias(self) -> float:
        share = min(max(self.mean, self.eps), 1 - self.eps)
        return math.log(share / (1 - share))

    def to_dict(self) -> dict:
        return {"name": self.name, "mean": self.mean, "eps": self.eps}


class RankNormalTransform(LabelTransform):
    """Labels to standard-normal scores by their rank among the training labels.

    The empirical distribution is stored as `knots`: its quantiles at evenly spaced probabilities (p_k = k / (K - 1)).
    forward: F = interpolated distribution function; p = (F (K - 1) + 1/2) / K, so that the lowest and the highest label
    have a finite score (with one knot per label: Hazen's plotting positions); score = normal quantile of p.
    inverse: normal distribution function, back to F limited to [0, 1], then the stored quantile function, so results stay
    within the label range seen.
    """

    name = "rank-normal"

    def __init__(self, knots: Sequence[float], mean: float = 0.5):
        super().__init__(mean)
        self.knots = [float(v) for v in knots]

    @classmethod
    def _fit(cls, values: np.ndarray) -> "LabelTransform":
        if np.ptp(values) == 0:
            raise DataError(
                f"all {values.size} training labels equal {values[0]:g}: rank-normal needs a spread. "
                "Check the target column, or use --label_transform identity."
            )
        size = min(QUANTILE_KNOTS, max(values.size, 2))
        values = values.astype(np.float32).astype(np.float64)  # as batches hold them: ties are found by equality
        return cls(knots=np.quantile(values, np.linspace(0, 1, size)), mean=values.mean())

    def forward(self, labels):
        knots = torch.tensor(self.knots, dtype=torch.float64, device=labels.device)
        values = labels.to(torch.float32).to(torch.float64)
        # Middle of the interval of probabilities that share this value: ties get their mid-rank.
        share = (_interpolated_rank(knots, values, right=False) + _interpolated_rank(knots, values, right=True)) / 2
        scores = torch.special.ndtri((share * (len(knots) - 1) + 0.5) / len(knots))
        return torch.where(values.isnan(), values, scores).to(labels.dtype)

    def _inverse(self, scores):
        knots = torch.tensor(self.knots, dtype=torch.float64, device=scores.device)
        position = (torch.special.ndtr(scores.to(torch.float64)) * len(knots) - 0.5).clamp(0, len(knots) - 1)
        lower = position.nan_to_num().floor().long().clamp(0, len(knots) - 2)
        return torch.lerp(knots[lower], knots[lower + 1], position - lower).to(scores.dtype)

    @property
    def initial_bias(self) -> float:
        """The mean of the training labels' scores (not the score of their mean)."""
        return 0.0

    def to_dict(self) -> dict:
        return {"name": self.name, "mean": self.mean, "knots": self.knots}


def _interpolated_rank(knots: torch.Tensor, values: torch.Tensor, right: bool) -> torch.Tensor:
    """Position of `values` among ascending `knots` as a share in [0, 1]; linear between knots.

    At a run of equal knots: its last one for right=True, its first one otherwise.
    """
    last = len(knots) - 1
    if right:
        lower = (torch.searchsorted(knots, values, right=True) - 1).clamp(0, last)
        upper = (lower + 1).clamp(max=last)
    else:
        upper = torch.searchsorted(knots, values, right=False).clamp(0, last)
        lower = (upper - 1).clamp(min=0)
    width = knots[upper] - knots[lower]
    fraction = torch.where(width > 0, (values - knots[lower]) / width, torch.zeros_like(values)).clamp(0, 1)
    return (lower + fraction * (upper - lower)) / last


TRANSFORMS: dict[str, type[LabelTransform]] = {
    cls.name: cls for cls in (LabelTransform, ZScoreTransform, PercentTransform, LogitTransform, RankNormalTransform)
}


def fit_label_transform(name: str, labels) -> LabelTransform:
    """Fit the transform called `name` ("identity", "z-score", "percent", "logit", "rank-normal") on training labels [N]."""
    if name not in TRANSFORMS:
        raise ConfigError(f"label transform {name!r} is unknown; choose one of {', '.join(TRANSFORMS)}")
    return TRANSFORMS[name].fit(labels)


def label_transform_from_dict(state: dict) -> LabelTransform:
    """The transform that `to_dict` described. Raises ConfigError for an unknown name or other fields."""
    if not isinstance(state, dict):
        raise ConfigError(f"the label transform in the checkpoint must be a mapping, got {state!r}")
    fields = dict(state)
    name = fields.pop("name", None)
    if name not in TRANSFORMS:
        raise ConfigError(f"label transform {name!r} in the checkpoint is unknown; known: {', '.join(TRANSFORMS)}")
    try:
        return TRANSFORMS[name](**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the label transform {name!r} in the checkpoint is malformed: {error}") from error
