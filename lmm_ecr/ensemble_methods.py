"""How members are combined: the rules. Their weights are fitted to labels in `ensemble_fit`.

`values` is float64 [members, rows] with numbers in [0, 1] throughout, NaN where a member has no value for a row (at
least one member has). Sums over members run from the first to the last
row of `values`, one member at a time: a row's result does not depend on the other rows (but for `rank`) or on how many
there are.
"""

from dataclasses import dataclass

import numpy as np

from .ensemble_gaps import filled_by_place, filled_with_mean, has_gaps, mean_of_present

METHODS = ("mean", "median", "rank", "logit", "weighted", "greedy", "stack")
FITTED = ("weighted", "greedy", "stack")

LOGIT_CLIP = 1e-6
"""Scores are clipped to [LOGIT_CLIP, 1 - LOGIT_CLIP] before their logit is taken: a logit of at most 13.8."""


@dataclass(frozen=True)
class Scale:
    """How members of different scales are made comparable, and how their sum becomes a score again.

    A member's values x become z = (x - centre) / width with its own centre and width (mean and standard deviation on
    the labelled rows); the score is intercept + slope * (sum of weight * z). centre, width: float64 [members], widths
    positive.
    """

    centre: np.ndarray
    width: np.ndarray
    slope: float
    intercept: float

    def of_members(self, keep: np.ndarray) -> "Scale":
        """The same for some of the members, an index or mask of them."""
        return Scale(self.centre[keep], self.width[keep], self.slope, self.intercept)


@dataclass(frozen=True)
class Combination:
    """A rule ready to use. `weights`: float64 [members], None for the rules that have none. `scale`: what the weights
    refer to, None for the members as they are (weights the user gave). `ridge`: the regularisation `stack` chose."""

    method: str
    weights: np.ndarray | None = None
    scale: Scale | None = None
    ridge: float | None = None


def combine(values: np.ndarray, combination: Combination) -> np.ndarray:
    """Scores of the ensemble, float64 [rows], in [0, 1].

    - mean: the arithmetic mean. Members that agree give exactly that value.
    - median: the middle value, or the mean of the two middle ones.
    - logit: the logistic function of the mean of the logits, after clipping (`LOGIT_CLIP`).
    - rank: the ranks of each member over the rows (equal values share their average rank), averaged over the members,
      give an order of the rows; the k-th smallest in that order receives the k-th smallest of the members' mean. Rows
      with equal average rank, say k to k + m, share the mean of the two middle ones of these values.
    - weighted, greedy, stack with fitted weights: the weighted sum of the members on their common scale, put back on
      the scale of the labels (see `Scale`) and clipped to [0, 1].
    - weighted with given weights: the weighted mean.

    Gaps are filled first, see `fill_gaps`.
    """
    values = fill_gaps(values, combination)
    if combination.method == "median":
        return _median(values)
    if combination.method == "rank":
        return _rank(values)
    if combination.scale is not None:
        scores = np.full(values.shape[1], combination.scale.intercept)
        slopes = combination.scale.slope * combination.weights / combination.scale.width
        for slope, centre, member in zip(slopes, combination.scale.centre, values, strict=True):
            scores += slope * (member - centre)
        return np.clip(scores, 0.0, 1.0, out=scores)
    if combination.method == "logit":
        return _logit_mean(values)
    return running_mean(values, combination.weights)


def fill_gaps(values: np.ndarray, combination: Combination) -> np.ndarray:
    """`values` with what stands in for missing ones: the mean of the members that have one, where the rule works.

    - mean, median: of the values.
    - rank: of the places among each member's values, mapped back to the values of the member that lacks the row.
    - logit: of the logits.
    - weighted with given weights: of the values, by these weights, as if the others' had been scaled up to sum to one.
    - weighted, greedy, stack with fitted weights: of the members at mean 0 and standard deviation 1, by the absolute
      weights, put back on the scale of the member that lacks the row; it may leave [0, 1] there.

    Where only members of weight 0 have a value their plain mean is taken. `values` itself if nothing is missing.
    """
    if not has_gaps(values):
        return values
    if combination.method == "rank":
        return filled_by_place(values)
    weights, scale = None if combination.weights is None else np.abs(combination.weights), combination.scale
    if scale is not None:
        centre, width = scale.centre[:, None], scale.width[:, None]
        return np.where(np.isnan(values), centre + width * mean_of_present((values - centre) / width, weights), values)
    if combination.method == "logit":
        from scipy.special import expit, logit

        means = expit(mean_of_present(logit(np.clip(values, LOGIT_CLIP, 1 - LOGIT_CLIP))))
        return np.where(np.isnan(values), means, values)
    return filled_with_mean(values, weights)


class RunningMean:
    """(Weighted) mean of members that come one after another, by Welford's update: exact where all members agree."""

    def __init__(self):
        self.total = 0.0
        self._mean: np.ndarray | None = None

    def add(self, member: np.ndarray, weight: float = 1.0) -> None:
        """`member`: float64 [rows]; it is not changed."""
        if weight == 0:
            return
        self.total += weight
        if self._mean is None:
            self._mean = member.copy()
            return
        step = member - self._mean
        step *= weight / self.total
        self._mean += step

    def result(self) -> np.ndarray:
        """float64 [rows], in [0, 1]; call it once, at the end."""
        return np.clip(self._mean, 0.0, 1.0, out=self._mean)


def running_mean(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(Weighted) mean over the members, float64 [rows]."""
    mean = RunningMean()
    for weight, member in zip(np.ones(len(values)) if weights is None else weights, values, strict=True):
        mean.add(member, weight)
    return mean.result()


def without_member(combination: Combination, member: int) -> Combination | None:
    """The same rule for the other members, weights renormalised; None where that makes no sense: no weight is left, or
    a linear model with an intercept, which says nothing about a smaller one."""
    if combination.weights is None:
        return combination
    others = np.arange(len(combination.weights)) != member
    weights = combination.weights[others]
    if combination.method == "stack" or weights.sum() <= 0:
        return None
    scale = None if combination.scale is None else combination.scale.of_members(others)
    return Combination(combination.method, weights / weights.sum(), scale)


def spread(values: np.ndarray) -> np.ndarray:
    """Standard deviation of the members that have a value around their plain mean (divided by their number), float64
    [rows]."""
    centre = mean_of_present(values) if has_gaps(values) else running_mean(values)
    squares, count = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for member in values:
        deviation = member - centre
        deviation *= deviation
        present = ~np.isnan(deviation)
        deviation[~present] = 0.0
        count += present
        squares += deviation
    return np.sqrt(squares / count)


def _median(values: np.ndarray) -> np.ndarray:
    out = np.empty(values.shape[1])
    for rows in _pieces(values.shape[1]):
        out[rows] = np.median(values[:, rows], axis=0)
    return out


def _logit_mean(values: np.ndarray) -> np.ndarray:
    from scipy.special import expit, logit

    mean = np.zeros(values.shape[1])
    for count, member in enumerate(values, start=1):
        mean += (logit(np.clip(member, LOGIT_CLIP, 1 - LOGIT_CLIP)) - mean) / count
    return expit(mean)


def _rank(values: np.ndarray) -> np.ndarray:
    from scipy.stats import rankdata

    ranks = np.zeros(values.shape[1])
    for member in values:
        ranks += rankdata(member)  # multiples of 1/2: the sum is exact, so that ties stay ties
    place = rankdata(ranks) - 1
    scale = np.sort(running_mean(values))
    below = np.floor(place).astype(np.intp)
    above = np.ceil(place).astype(np.intp)
    return scale[below] + (scale[above] - scale[below]) * 0.5 * (above > below)


def _pieces(rows: int, size: int = 1 << 16):
    return [slice(start, start + size) for start in range(0, rows, size)]
