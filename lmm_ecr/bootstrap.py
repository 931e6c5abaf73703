"""Vectorised bootstrap of SROCC, PLCC, KRCC, RMSE and the final score.

A resample of n rows is its vector of counts `w` (how often each row was drawn). Every metric is then a weighted sum
over rows that were sorted once: no resample is sorted or ranked anew. Repeated rows are ties, as they would be for
`scipy.stats.rankdata` on the resampled rows. Memory: a few arrays of `CHUNK` numbers, whatever n and the number of
resamples. Several prediction columns share the same resamples, so that their differences are paired.

Above `EXACT_ROWS` rows the work is bounded: the resamples are shared out among `SUBSETS` random subsets of
`SUBSET_ROWS` rows, and their deviations from the subset's own value, scaled by sqrt(SUBSET_ROWS / n), are put around the
value of the whole table (after the bag of little bootstraps, Kleiner et al. 2014).
"""

from collections.abc import Iterable

import numpy as np

CHUNK = 1 << 18  # count-matrix cells worked on at once
KRCC_EXACT_ROWS = 2000
"""Up to so many rows KRCC is bootstrapped like the rest. Above, each resample draws this many rows (the m-out-of-n
bootstrap, Bickel, Götze and van Zwet 1997) and its deviations from the full-sample value are scaled by sqrt(m / n)."""

EXACT_ROWS = 100_000
"""Up to so many rows every resample draws n of all n rows."""

SUBSETS, SUBSET_ROWS = 10, 20_000

MIN_DEFINED = 0.9  # share of resamples in which a metric must be defined for its interval to be given


class BootstrapSamples(dict):
    """name -> float64 [columns, resamples] for srocc, plcc, rmse, final_score (and krcc); NaN where undefined."""


class _Groups:
    """Equal values of one column: the order that sorts it, and the first sorted position of each distinct value."""

    def __init__(self, values: np.ndarray):
        self.order = np.argsort(values, kind="stable")
        ordered = values[self.order]
        self.starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
        self.sizes = np.diff(np.append(self.starts, len(values)))
        self.untied = len(self.starts) == len(values)
        self.place = np.empty(len(values), dtype=np.intp)  # row -> group
        self.place[self.order] = np.repeat(np.arange(len(self.starts)), self.sizes)

    def counts(self, weights: np.ndarray) -> np.ndarray:
        """float64 [resamples, groups] from float64 [resamples, rows]."""
        ordered = np.take(weights, self.order, axis=1)
        return ordered if self.untied else np.add.reduceat(ordered, self.starts, axis=1)

    def centred_ranks(self, counts: np.ndarray) -> np.ndarray:
        """Mid-rank minus mean rank of every group: a group of c rows after s others has rank s + (c + 1) / 2."""
        ranks = np.cumsum(counts, axis=1)
        ranks -= 0.5 * counts
        ranks -= 0.5 * np.sum(counts, axis=1, keepdims=True)
        return ranks


def bootstrap_samples(
    predictions: np.ndarray, labels: np.ndarray, *, resamples: int = 1000, seed: int = 0, krcc: bool = True
) -> BootstrapSamples:
    """Metrics of `resamples` resamples (with replacement, n of n rows) for each row of `predictions`.

    predictions: float64 [columns, n], labels: float64 [n], both finite. Rows are put into a canonical order first: the
    result depends on the seed and on the set of rows, not on their order. A resample in which a column or the labels
    are constant has NaN correlations.
    """
    predictions = np.atleast_2d(np.asarray(predictions, np.float64))
    labels = np.asarray(labels, np.float64)
    n = predictions.shape[1]
    if labels.shape != (n,) or n == 0 or resamples < 1:
        raise ValueError(f"predictions {predictions.shape}, labels {labels.shape}, resamples {resamples}")
    order = np.lexsort((*predictions[::-1], labels))
    predictions, labels = predictions[:, order], labels[order]
    rank_seed, krcc_seed = np.random.SeedSequence(seed).spawn(2)
    if n > EXACT_ROWS:
        samples = _samples_of_subsets(predictions, labels, resamples, rank_seed)
    else:
        samples = _samples(predictions, labels, resamples, rank_seed, krcc=krcc and n <= KRCC_EXACT_ROWS)
    if krcc and "krcc" not in samples:
        samples["krcc"] = _tau_from_smaller_resamples(predictions, labels, resamples, krcc_seed)
    return samples


def _samples_of_subsets(
    predictions: np.ndarray, labels: np.ndarray, resamples: int, seed: np.random.SeedSequence
) -> BootstrapSamples:
    """SROCC, PLCC, RMSE and final score as the module's docstring says; sorted rows, more than `EXACT_ROWS`."""
    n, whole = len(labels), _values(predictions, labels)
    shares = [len(part) for part in np.array_split(np.arange(resamples), min(SUBSETS, resamples))]
    parts = []
    for share, part_seed in zip(shares, seed.spawn(len(shares)), strict=True):
        draw_seed, resample_seed = part_seed.spawn(2)
        rows = np.sort(np.random.default_rng(draw_seed).choice(n, SUBSET_ROWS, replace=False))
        some, some_labels = predictions[:, rows], labels[rows]
        own, drawn = _values(some, some_labels), _samples(some, some_labels, share, resample_seed, krcc=False)
        parts.append({name: (drawn[name] - own[name]) * np.sqrt(SUBSET_ROWS / n) for name in own})
    return BootstrapSamples({name: whole[name] + np.concatenate([p[name] for p in parts], axis=1) for name in whole})


def _values(predictions: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """The metrics of the rows themselves, float64 [columns, 1]."""
    once = _metrics(predictions, labels, [np.ones((1, len(labels)))], 1, krcc=False)
    return dict(once)


def _samples(
    predictions: np.ndarray, labels: np.ndarray, resamples: int, seed: np.random.SeedSequence, *, krcc: bool
) -> BootstrapSamples:
    generator, n = np.random.default_rng(seed), len(labels)
    at_once = max(1, CHUNK // n)
    counts = (draw_counts(generator, min(at_once, resamples - at), n) for at in range(0, resamples, at_once))
    return _metrics(predictions, labels, counts, resamples, krcc=krcc)


def _metrics(
    predictions: np.ndarray, labels: np.ndarray, chunks: Iterable[np.ndarray], resamples: int, *, krcc: bool
) -> BootstrapSamples:
    """Metrics of resamples given as `chunks` of counts, float64 [some resamples, n], together `resamples` of them.

    Rows are sorted by label.
    """
    columns, n = predictions.shape
    names = ("srocc", "plcc", "rmse", "final_score") + (("krcc",) if krcc else ())
    samples = BootstrapSamples({name: np.full((columns, resamples), np.nan) for name in names})
    label_groups = _Groups(labels)
    column_groups = [_Groups(column) for column in predictions]
    y = _standardised(labels[None])[0]
    xs = _standardised(predictions)
    # per column: x, x², xy, squared error; then y, y² once
    moments = np.concatenate([xs, xs * xs, xs * y, (predictions - labels) ** 2, [y, y * y]]).T.copy()
    signs = [_sign_products(column, labels) for column in predictions] if krcc else []
    start = 0
    for weights in chunks:
        part = slice(start, start + len(weights))
        start = part.stop
        sums = (weights @ moments) / n
        mean_y, mean_yy = sums[:, -2], sums[:, -1]
        label_counts = label_groups.counts(weights)
        label_ranks = label_groups.centred_ranks(label_counts)
        label_spread = np.einsum("bg,bg->b", label_counts * label_ranks, label_ranks)
        row_ranks = label_ranks if label_groups.untied else np.take(label_ranks, label_groups.place, axis=1)
        weighted_ranks = weights * row_ranks  # labels are sorted: without ties groups are rows
        for c, groups in enumerate(column_groups):
            counts = groups.counts(weights)
            ranks = groups.centred_ranks(counts)
            spread = np.einsum("bg,bg->b", counts * ranks, ranks)
            shared = np.einsum("bg,bg->b", ranks, groups.counts(weighted_ranks))
            varied = (spread > 0) & (label_spread > 0)  # exact: ranks are multiples of 1/2
            with np.errstate(invalid="ignore", divide="ignore"):
                rank_correlation = shared / np.sqrt(spread * label_spread)
                mean_x, mean_xx, mean_xy, error = (sums[:, c + k * columns] for k in range(4))
                variances = (mean_xx - mean_x**2) * (mean_yy - mean_y**2)
                linear = (mean_xy - mean_x * mean_y) / np.sqrt(variances)
            samples["srocc"][c, part] = np.where(varied, np.clip(rank_correlation, -1, 1), np.nan)
            samples["plcc"][c, part] = np.where(varied & (variances > 0), np.clip(linear, -1, 1), np.nan)
            samples["rmse"][c, part] = np.sqrt(error)
            if krcc:
                samples["krcc"][c, part] = _weighted_tau(weights, signs[c], counts, label_counts)
    samples["final_score"][:] = 0.6 * samples["srocc"] + 0.4 * samples["plcc"]
    return samples


def percentile_interval(samples: np.ndarray, confidence: float) -> tuple[float, float]:
    """Percentile interval of the defined samples; (NaN, NaN) if fewer than `MIN_DEFINED` of them are defined."""
    defined = samples[np.isfinite(samples)]
    if len(defined) < MIN_DEFINED * len(samples):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def resampling_notes(n: int) -> list[str]:
    """How the intervals of a large table were bounded in their work; nothing for a small one."""
    lines = []
    if n > EXACT_ROWS:
        lines.append(f"intervals come from resamples of {SUBSET_ROWS:,} of the {n:,} rows, scaled")
    if n > KRCC_EXACT_ROWS:
        lines.append(f"the KRCC interval comes from resamples of {KRCC_EXACT_ROWS:,} of the {n:,} rows, scaled")
    return lines


def _standardised(rows: np.ndarray) -> np.ndarray:
    """Rows minus their mean, over their largest deviation: sums of squares then neither cancel nor underflow."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    largest = np.abs(centred).max(axis=1, keepdims=True)
    return centred / np.where(largest > 0, largest, 1.0)


def draw_counts(generator: np.random.Generator, resamples: int, n: int) -> np.ndarray:
    """float64 [resamples, n]: how often each row is drawn in n draws with replacement."""
    rows = generator.integers(0, n, size=(resamples, n))
    rows += np.arange(resamples)[:, None] * n
    return np.bincount(rows.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def _sign_products(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """float32 [n, n]: 1 for a concordant pair, -1 for a discordant one, 0 for a tie. Small integers: exact."""
    product = np.sign(x[:, None] - x[None, :]).astype(np.float32)
    product *= np.sign(y[:, None] - y[None, :])
    return product


def _weighted_tau(weights: np.ndarray, signs: np.ndarray, x_counts: np.ndarray, y_counts: np.ndarray) -> np.ndarray:
    """Kendall's tau-b [resamples] where row i is repeated weights[:, i] times."""
    n = signs.shape[0]
    pairs = n * (n - 1) / 2
    weights = weights.astype(np.float32)
    difference = np.einsum("bn,bn->b", weights @ signs, weights, dtype=np.float64) / 2
    x_untied = pairs - np.sum(x_counts * (x_counts - 1), axis=1) / 2
    y_untied = pairs - np.sum(y_counts * (y_counts - 1), axis=1) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return difference / np.sqrt(x_untied * y_untied)


def _tau_from_smaller_resamples(
    predictions: np.ndarray, labels: np.ndarray, resamples: int, seed: np.random.SeedSequence
) -> np.ndarray:
    """float64 [columns, resamples]: full-sample tau plus scaled deviations of m-row resamples (see KRCC_EXACT_ROWS)."""
    from scipy.stats import kendalltau

    generator = np.random.default_rng(seed)
    n, m = len(labels), KRCC_EXACT_ROWS
    full = np.array([kendalltau(column, labels).statistic for column in predictions])
    tau = np.empty((len(predictions), resamples))
    for b in range(resamples):
        rows = generator.integers(0, n, size=m)
        for c, column in enumerate(predictions):
            tau[c, b] = kendalltau(column[rows], labels[rows]).statistic
    return full[:, None] + (tau - full[:, None]) * np.sqrt(m / n)
