"""How members are combined: the rules, and for some of them their weights fitted to labels.

`values` is float64 [members, rows] with numbers in [0, 1] throughout, `labels` float64 [rows]. Sums over members run
from the first to the last row of `values`, one member at a time: a row's result does not depend on the other rows (but
for `rank`) or on how many there are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .ensemble_search import FinalScore, best_single, convex_plcc_weights, forward_selection, simplex_search

METHODS = ("mean", "median", "rank", "logit", "weighted", "greedy", "stack")
FITTED = ("weighted", "greedy", "stack")

LOGIT_CLIP = 1e-6
"""Scores are clipped to [LOGIT_CLIP, 1 - LOGIT_CLIP] before their logit is taken: a logit of at most 13.8."""

SEARCH_ROWS = 20_000
"""Searches over the final score use at most this many labelled rows, the first ones in the order of the id's hash."""

RIDGE_GRID = 10.0 ** np.arange(-6.0, 3.5, 0.5)


@dataclass(frozen=True)
class Combination:
    """A rule ready to use. `weights` float64 [members] (None for the rules that have none), `intercept` and `ridge`
    (the chosen regularisation) for `stack` only."""

    method: str
    weights: np.ndarray | None = None
    intercept: float = 0.0
    ridge: float | None = None


def combine(values: np.ndarray, combination: Combination) -> np.ndarray:
    """Scores of the ensemble, float64 [rows], in [0, 1].

    - mean: the arithmetic mean. Members that agree give exactly that value.
    - median: the middle value, or the mean of the two middle ones.
    - logit: the logistic function of the mean of the logits, after clipping (`LOGIT_CLIP`).
    - rank: the ranks of each member over the rows (equal values share their average rank), averaged over the members,
      give an order of the rows; the k-th smallest in that order receives the k-th smallest of the members' mean. Rows
      with equal average rank, say k to k + m, share the mean of the two middle ones of these values.
    - weighted, greedy: the weighted mean.
    - stack: intercept + the sum of weight * member, clipped to [0, 1].
    """
    if combination.method == "median":
        return _median(values)
    if combination.method == "rank":
        return _rank(values)
    if combination.method == "stack":
        scores = np.full(values.shape[1], combination.intercept)
        for weight, member in zip(combination.weights, values, strict=True):
            scores += weight * member
        return np.clip(scores, 0.0, 1.0)
    if combination.method == "logit":
        return _logit_mean(values)
    return running_mean(values, combination.weights)


def running_mean(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """(Weighted) mean over the members by Welford's update, float64 [rows]: exact where all members agree."""
    weights = np.ones(len(values)) if weights is None else weights
    total, mean = 0.0, None
    for weight, member in zip(weights, values, strict=True):
        if weight == 0:
            continue
        total += weight
        if mean is None:
            mean = member.copy()
            continue
        step = member - mean
        step *= weight / total
        mean += step
    return np.clip(mean, 0.0, 1.0, out=mean)


def without_member(combination: Combination, member: int) -> Combination | None:
    """The same rule for the other members, weights renormalised; None where that makes no sense: no weight is left, or
    a linear model with an intercept, which says nothing about a smaller one."""
    if combination.weights is None:
        return combination
    weights = np.delete(combination.weights, member)
    if combination.method == "stack" or weights.sum() <= 0:
        return None
    return Combination(combination.method, weights / weights.sum())


def spread(values: np.ndarray, filled: np.ndarray | None = None) -> np.ndarray:
    """Standard deviation of the members around their plain mean (divided by their number), float64 [rows].

    Values that were missing and filled in (`filled`, bool [members, rows]) do not count.
    """
    centre = running_mean(values)  # a filled value is the mean of the others and does not move it
    squares, count = np.zeros(values.shape[1]), np.full(values.shape[1], len(values))
    for row, member in enumerate(values):
        deviation = member - centre
        deviation *= deviation
        if filled is not None:
            deviation[filled[row]] = 0.0
            count -= filled[row]
        squares += deviation
    return np.sqrt(squares / count)


def fit(method: str, values: np.ndarray, labels: np.ndarray) -> Combination:
    """Fit the weights of a FITTED method to labelled rows, for the final score 0.6 SROCC + 0.4 PLCC.

    SROCC is piecewise constant in the weights, so that gradients do not help:

    - weighted: non-negative weights with sum one. Candidates are equal weights, the best single member, and the
      weights with the highest PLCC (a non-negative least-squares problem, solved exactly by scipy). From the best of
      them weight is moved between pairs of members in shrinking steps while the final score rises (compass search).
    - greedy: forward selection with replacement (Caruana, Niculescu-Mizil, Crew and Ksikes 2004) with sorted
      initialisation: members are added in the order of their own score while that helps, then the member that
      helps most is added again and again; the best bag on that path is kept. Weights are the shares in the bag.
    - stack: ridge regression of the labels that shrinks towards a multiple of the plain mean instead of zero; the
      regularisation is chosen by the mean squared error of an inner 5-fold cross-validation.

    Rows should come in an order that does not depend on the file (see `ensemble_folds.hash_order`): the searches use
    the first `SEARCH_ROWS`, the inner folds are taken in turn. Labels that are all equal give equal weights.
    """
    if np.ptp(labels) == 0:
        return Combination(method, np.full(len(values), 1 / len(values)))
    if method == "stack":
        return _stack(values, labels)
    score = FinalScore(values[:, :SEARCH_ROWS], labels[:SEARCH_ROWS])
    if method == "greedy":
        return Combination(method, forward_selection(score))
    starts = [np.full(len(values), 1 / len(values)), best_single(score), convex_plcc_weights(values, labels)]
    return Combination(method, simplex_search(score, max(starts, key=score)))


def cross_validate(
    method: str, values: np.ndarray, labels: np.ndarray, folds: np.ndarray, fitter: Callable = fit
) -> np.ndarray:
    """Scores of every row by weights fitted without the rows of its fold, float64 [rows]."""
    scores = np.empty(len(labels))
    for fold in np.unique(folds):
        held_out = folds == fold
        fitted = fitter(method, values[:, ~held_out], labels[~held_out])
        scores[held_out] = combine(values[:, held_out], fitted)
    return scores


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


def _stack(values: np.ndarray, labels: np.ndarray, inner_folds: int = 5) -> Combination:
    design = np.vstack([values.mean(axis=0), values])
    which = np.arange(len(labels)) % inner_folds
    parts = [_moments(design[:, which == fold], labels[which == fold]) for fold in range(inner_folds)]
    total = _added(parts)
    scale = np.trace(_centred(total)[0]) / len(design) or 1.0
    errors = np.zeros(len(RIDGE_GRID))
    for part in parts:
        rest = tuple(whole - left_out for whole, left_out in zip(total, part, strict=True))
        for at, ridge in enumerate(RIDGE_GRID):
            errors[at] += _squared_error(part, *_ridge(rest, ridge * scale))
    ridge = float(RIDGE_GRID[::-1][np.argmin(errors[::-1])])  # the strongest of the best
    weights, intercept = _ridge(total, ridge * scale)
    return Combination("stack", weights[1:] + weights[0] / len(values), intercept, ridge)


def _moments(design: np.ndarray, labels: np.ndarray) -> tuple:
    """(n, sums of the columns, of the labels, of products, of products with the labels, of squared labels)."""
    gram = design @ design.T
    return len(labels), design.sum(axis=1), labels.sum(), gram, design @ labels, labels @ labels


def _added(parts: list[tuple]) -> tuple:
    return tuple(sum(numbers) for numbers in zip(*parts, strict=True))


def _centred(moments: tuple) -> tuple[np.ndarray, np.ndarray]:
    n, sums, label_sum, gram, products, _ = moments
    return gram - np.outer(sums, sums) / n, products - sums * label_sum / n


def _ridge(moments: tuple, penalty: float) -> tuple[np.ndarray, float]:
    """Weights and intercept; the first column (the plain mean) and the intercept are not penalised."""
    n, sums, label_sum, *_ = moments
    gram, products = _centred(moments)
    diagonal = np.full(len(sums), penalty)
    diagonal[0] = 0.0
    weights = np.linalg.lstsq(gram + np.diag(diagonal), products, rcond=1e-12)[0]
    return weights, float((label_sum - weights @ sums) / n)


def _squared_error(moments: tuple, weights: np.ndarray, intercept: float) -> float:
    n, sums, label_sum, gram, products, label_squares = moments
    quadratic = weights @ gram @ weights + n * intercept**2 + 2 * intercept * (weights @ sums)
    return float(quadratic + label_squares - 2 * (weights @ products) - 2 * intercept * label_sum)


def _pieces(rows: int, size: int = 1 << 16):
    return [slice(start, start + size) for start in range(0, rows, size)]
