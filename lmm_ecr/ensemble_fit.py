"""Weights of an ensemble fitted to labels, and the honest scores of such a fit.

`values` is float64 [members, rows] with numbers in [0, 1] throughout, NaN where a member has no value; `labels` float64
[rows].

Neither SROCC nor PLCC sees the scale of a score, so a fit on the members as they are could not tell a model that has
collapsed (its scores vary by 0.003 where others vary by 0.3) from one that counts little: it would need a hundredfold
weight to be heard, and such weights, made to sum to one, squeeze the ensemble's scores together. Every fit therefore
works on members brought to mean 0 and standard deviation 1, where weights are shares of influence, and then puts the
result on the scale of the labels by a straight line. Both maps belong to the fit and are saved with it
(`ensemble_methods.Scale`).
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from .ensemble_gaps import has_gaps, mean_of_present
from .ensemble_methods import Combination, Scale, combine, fill_gaps
from .ensemble_search import FinalScore, best_single, convex_plcc_weights, forward_selection, simplex_search

SEARCH_ROWS = 20_000
"""Searches over the final score use at most this many labelled rows, the first ones in the order of the id's hash."""

RIDGE_GRID = 10.0 ** np.arange(-6.0, 3.5, 0.5)

LEAST_WIDTH = 1e-12
"""A member with a smaller standard deviation is constant but for rounding and gets no weight."""


def fit(method: str, values: np.ndarray, labels: np.ndarray) -> Combination:
    """Fit the weights of a FITTED method to labelled rows, for the final score 0.6 SROCC + 0.4 PLCC.

    All fits see the members at mean 0 and standard deviation 1. SROCC is piecewise constant in the weights, so that
    gradients do not help:

    - weighted: non-negative weights with sum one. Candidates are equal weights, the best single member, and the
      weights with the highest PLCC (a non-negative least-squares problem, solved exactly by scipy). From the best of
      them weight is moved between pairs of members in shrinking steps while the final score rises (compass search).
    - greedy: forward selection with replacement (Caruana, Niculescu-Mizil, Crew and Ksikes 2004) with sorted
      initialisation: members are added in the order of their own score while that helps, then the member that
      helps most is added again and again; the best bag on that path is kept. Weights are the shares in the bag.
    - stack: ridge regression of the labels that shrinks towards a multiple of the members' mean instead of zero; the
      regularisation is chosen by the mean squared error of an inner 5-fold cross-validation. Weights may be negative;
      each is the change of the score, in the unit of the labels, for one standard deviation of the member.

    The sum of weight * member of `weighted` and `greedy` goes onto the scale of the labels by the least-squares line. So
    that the order of the sum is kept where members are worth nothing, the line rises at least as steeply as for a
    correlation of 1 / sqrt(rows), about what chance gives.

    Rows should come in an order that does not depend on the file (see `ensemble_folds.hash_order`): the searches use
    the first `SEARCH_ROWS`, the inner folds are taken in turn. Labels that are all equal give equal weights.

    A member's mean and standard deviation are those of the values it has. While weights are searched a missing value is
    the mean of the other, standardised members.
    """
    equal = np.full(len(values), 1 / len(values))
    own = [member[~np.isnan(member)] for member in values]
    centre = np.array([some.mean() if len(some) else 0.0 for some in own])
    width = np.array([some.std() if len(some) else 0.0 for some in own])
    constant = width < LEAST_WIDTH
    width = np.where(constant, 1.0, width)
    if constant.all() or np.ptp(labels) == 0:
        return Combination(method, equal)
    standardised = (values - centre[:, None]) / width[:, None]
    if has_gaps(values):
        standardised = np.where(
            np.isnan(values), mean_of_present(standardised, (~constant).astype(float)), standardised
        )
    standardised[constant] = 0.0
    if method == "stack":
        weights, intercept, ridge = _stack(standardised, labels)
        weights = np.where(constant, 0.0, weights)
        return Combination(method, weights, Scale(centre, width, 1.0, intercept), ridge)
    score = FinalScore(standardised[:, :SEARCH_ROWS], labels[:SEARCH_ROWS])
    if method == "greedy":
        weights = forward_selection(score)
    else:
        starts = [equal, best_single(score), convex_plcc_weights(standardised, labels)]
        weights = simplex_search(score, max(starts, key=score))
    weights = np.where(constant, 0.0, weights)
    weights = weights / weights.sum() if weights.sum() > 0 else ~constant / np.count_nonzero(~constant)
    if has_gaps(values):  # filled by the weights now, as `combine` will
        filled = fill_gaps(values, Combination(method, weights, Scale(centre, width, 1.0, 0.0)))
        standardised = (filled - centre[:, None]) / width[:, None]
    together, spread = weights @ standardised, labels.std()
    own_spread = max(float(together.std()), LEAST_WIDTH)
    correlation = together @ (labels - labels.mean()) / (len(labels) * own_spread * spread)
    slope = max(correlation, 1 / np.sqrt(len(labels))) * spread / own_spread
    return Combination(method, weights, Scale(centre, width, float(slope), float(labels.mean())))


def cross_validate(
    method: str, values: np.ndarray, labels: np.ndarray, folds: np.ndarray, fitter: Callable = fit
) -> np.ndarray:
    """Scores of every row by weights fitted without the rows of its fold, float64 [rows].

    Two numbers are common to all folds: the mean and the spread that a fold's combination has over all rows (the mean
    of the labels, and the mean of the spreads the folds were fitted to). With a line of its own every fold would be too
    low and too flat where its held-out labels are high and the signal strong, because what is held out is missing from
    the fit, and correlations over the pooled rows would come out too small, for weak signals much too small (Parker,
    Günter and Bedo 2007). Nothing is gained by it dishonestly: correlations do not see a line common to all rows.
    """
    fits = [(rows, fitter(method, values[:, ~rows], labels[~rows])) for rows in (folds == f for f in np.unique(folds))]
    slopes = [None if c.scale is None else c.scale.slope * c.weights / c.scale.width for _, c in fits]
    filled = [fill_gaps(values, combination) for _, combination in fits]
    spreads = [0.0 if s is None else float((s @ every).std()) for s, every in zip(slopes, filled, strict=True)]
    common = np.mean([spread for spread in spreads if spread > 0]) if max(spreads) > 0 else 0.0
    scores = np.empty(len(labels))
    for (held_out, fitted), every, slope, spread in zip(fits, filled, slopes, spreads, strict=True):
        if slope is not None:
            stretch = common / spread if spread > 0 else 1.0
            level = labels.mean() - stretch * slope @ (every.mean(axis=1) - fitted.scale.centre)
            fitted = replace(fitted, scale=replace(fitted.scale, slope=stretch * fitted.scale.slope, intercept=level))
        scores[held_out] = combine(values[:, held_out], fitted)
    return scores


def _stack(values: np.ndarray, labels: np.ndarray, inner_folds: int = 5) -> tuple[np.ndarray, float, float]:
    """Weights [members], intercept and the chosen regularisation."""
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
    return weights[1:] + weights[0] / len(values), intercept, ridge


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
