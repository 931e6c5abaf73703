"""What stands in for a value that a member lacks: the mean of the members that have one, on a scale they share.

`values` is float64 [members, rows] with NaN for a missing value throughout. Which scale is shared depends on the rule
(see `ensemble_methods.fill_gaps`); on the raw one a member that hardly varies would get outliers.
"""

import numpy as np


def has_gaps(values: np.ndarray) -> bool:
    """Whether a number is missing."""
    return values.size > 0 and bool(np.isnan(values.min()))


def mean_of_present(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(Weighted) mean of the members that have a value, float64 [rows]; NaN where none has.

    `weights`: float64 [members], not negative. Where all members that have a value weigh nothing, their plain mean.
    """
    plain, _ = _running(values, np.ones(len(values)))
    if weights is None:
        return plain
    weighted, total = _running(values, weights)
    return np.where(total > 0, weighted, plain)


def filled_with_mean(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """A copy with every gap at the (weighted) mean of the members that have a value there."""
    return np.where(np.isnan(values), mean_of_present(values, weights), values)


def filled_by_place(values: np.ndarray) -> np.ndarray:
    """A copy with every gap of a member at the value that holds, among the member's own values, the mean of the places
    the other members give the row. The place of the k-th smallest of n values is (k - 1/2) / n, ties share theirs."""
    from scipy.stats import rankdata

    places = np.full(values.shape, np.nan)
    for place, member in zip(places, values, strict=True):
        present = ~np.isnan(member)
        place[present] = (rankdata(member[present]) - 0.5) / max(np.count_nonzero(present), 1)
    place, filled = mean_of_present(places), values.copy()
    for member in filled:
        gaps = np.isnan(member)
        if gaps.any() and not gaps.all():
            own = np.sort(member[~gaps])
            member[gaps] = np.interp(place[gaps], (np.arange(len(own)) + 0.5) / len(own), own)
    nowhere = np.isnan(filled).all(axis=1)  # a member without any value has no scale of its own
    filled[nowhere] = mean_of_present(values[~nowhere])
    return filled


def _running(values: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean (NaN where no member has a value) and sum of weights, by Welford's update as in `RunningMean`."""
    mean, total, some = np.zeros(values.shape[1]), np.zeros(values.shape[1]), np.zeros(values.shape[1], dtype=bool)
    for weight, member in zip(weights, values, strict=True):
        present = ~np.isnan(member)
        some |= present
        if weight > 0:
            total += weight * present
            mean[present] += (member[present] - mean[present]) * (weight / total[present])
    return np.where(some, mean, np.nan), total
