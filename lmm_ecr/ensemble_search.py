"""Searches for member weights with the highest final score, 0.6 SROCC + 0.4 PLCC. All are deterministic."""

import numpy as np

LARGEST_BAG_ROUNDS = 50
"""Members that forward selection adds after its start: weights in steps of about 2 %, as fine as the labels can
tell."""

STEPS = (0.1, 0.03, 0.01)
MAX_EVALUATIONS = 2000
LEAST_GAIN = 1e-7  # a smaller rise of the score is rounding


class FinalScore:
    """`score(weights)`: the final score of the weighted sum of members, a float in [-1, 1]; -1 where it is undefined.

    What does not depend on the weights is computed once: values float64 [members, rows], labels float64 [rows]. The
    same numbers as `metrics.srocc` and `metrics.plcc`, but for rounding.
    """

    def __init__(self, values: np.ndarray, labels: np.ndarray):
        from scipy.stats import rankdata

        self.values = values
        self.labels = _unit(labels)
        self.label_ranks = _unit(rankdata(labels))
        self.places = _unit(np.arange(len(labels), dtype=np.float64))

    def __call__(self, weights: np.ndarray) -> float:
        return self.of(weights @ self.values)

    def of(self, scores: np.ndarray) -> float:
        from scipy.stats import rankdata

        if len(scores) < 2 or np.ptp(scores) < 1e-12:
            return -1.0
        order = np.argsort(scores)
        ordered = scores[order]
        if (ordered[1:] > ordered[:-1]).all():
            rank_correlation = self.places @ self.label_ranks[order]
        else:
            rank_correlation = _unit(rankdata(scores)) @ self.label_ranks
        return float(0.6 * rank_correlation + 0.4 * (_unit(scores) @ self.labels))


def best_single(score: FinalScore) -> np.ndarray:
    """All weight on the member with the highest score of its own."""
    singles = [score.of(member) for member in score.values]
    return np.eye(len(singles))[int(np.argmax(singles))]


def convex_plcc_weights(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Weights >= 0 with sum one that have the highest PLCC with the labels; equal weights if no member correlates.

    PLCC does not change when all weights are scaled, so that its maximum over non-negative weights is the solution of
    non-negative least squares on centred data (Lawson and Hanson 1974), divided by its sum.
    """
    from scipy.optimize import nnls

    members = len(values)
    centred = values - values.mean(axis=1, keepdims=True)
    gram, products = centred @ centred.T, centred @ (labels - labels.mean())
    # Members that are copies of each other make the matrix singular; so small a ridge moves no digit that counts.
    factor = np.linalg.cholesky(gram + np.eye(members) * max(1e-10 * np.trace(gram) / members, 1e-300))
    weights = nnls(factor.T, np.linalg.solve(factor, products))[0]
    return weights / weights.sum() if weights.sum() > 0 else np.full(members, 1 / members)


def simplex_search(score: FinalScore, start: np.ndarray) -> np.ndarray:
    """Move weight from one member to another, in shrinking steps, as long as the score rises; never below `start`."""
    weights, best, evaluations = start.copy(), score(start), 0
    members = len(weights)
    for step in STEPS:
        improved = True
        while improved:
            improved = False
            for giver in range(members):
                for taker in range(members):
                    moved = min(step, weights[giver])
                    if giver == taker or moved <= 0:
                        continue
                    if evaluations >= MAX_EVALUATIONS:
                        return weights / weights.sum()
                    trial = weights.copy()
                    trial[giver] -= moved
                    trial[taker] += moved
                    value = score(trial)
                    evaluations += 1
                    if value > best + LEAST_GAIN:
                        weights, best, improved = trial, value, True
    return weights / weights.sum()


def forward_selection(score: FinalScore) -> np.ndarray:
    """Greedy forward selection with replacement and sorted initialisation (Caruana et al. 2004); shares of the bag.

    The start is the best of the bags "the s members with the highest own score"; then up to `LARGEST_BAG_ROUNDS` times
    the member that raises the score most (or lowers it least) joins. The best bag met on the way wins, the earliest one
    if several are equal.
    """
    members = len(score.values)
    singles = np.array([score.of(member) for member in score.values])
    ranking = np.argsort(-singles, kind="stable")
    prefixes = [np.bincount(ranking[: size + 1], minlength=members) for size in range(members)]
    prefix_scores = [score(counts / counts.sum()) for counts in prefixes]
    start = int(np.argmax(prefix_scores))
    counts, best_counts, best = prefixes[start], prefixes[start], prefix_scores[start]
    total = counts @ score.values
    for _ in range(LARGEST_BAG_ROUNDS):
        trials = [score.of(total + member) for member in score.values]
        winner = int(np.argmax(trials))
        counts = counts + np.eye(members, dtype=np.int64)[winner]
        total = total + score.values[winner]
        if trials[winner] > best + LEAST_GAIN:
            best_counts, best = counts, trials[winner]
    return best_counts / best_counts.sum()


def _unit(values: np.ndarray) -> np.ndarray:
    """Minus the mean, to length one: the inner product of two such vectors is their correlation."""
    centred = values - values.mean()
    return centred / max(np.sqrt(centred @ centred), 1e-300)
