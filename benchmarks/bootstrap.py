"""Bootstrap of SROCC, PLCC, RMSE and final score: `lmm_ecr.bootstrap` against a plain numpy/scipy loop.

    python benchmarks/bootstrap.py [--rows 100000] [--resamples 1000] [--loop-resamples 50]

The loop ranks every resample anew (scipy.stats.rankdata, numpy.corrcoef). It is timed on `--loop-resamples` resamples
and scaled, unless that many is `--resamples`; the intervals of both are printed so that one sees they agree.
"""

import argparse
import resource
import time

import numpy as np
from scipy.stats import rankdata

from lmm_ecr.metrics import bootstrap_intervals

METRICS = ("srocc", "plcc", "rmse", "final_score")


def plain_loop(predictions: np.ndarray, labels: np.ndarray, resamples: int, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    samples = {name: np.empty(resamples) for name in METRICS}
    for b in range(resamples):
        rows = generator.integers(0, len(labels), len(labels))
        x, y = predictions[rows], labels[rows]
        samples["srocc"][b] = np.corrcoef(rankdata(x), rankdata(y))[0, 1]
        samples["plcc"][b] = np.corrcoef(x, y)[0, 1]
        samples["rmse"][b] = np.sqrt(np.mean((x - y) ** 2))
        samples["final_score"][b] = 0.6 * samples["srocc"][b] + 0.4 * samples["plcc"][b]
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--loop-resamples", type=int, default=50)
    parser.add_argument("--ties", action="store_true", help="round to two decimals, so that most values are tied")
    arguments = parser.parse_args()
    generator = np.random.default_rng(0)
    labels = generator.random(arguments.rows)
    predictions = np.clip(labels + generator.normal(0, 0.2, arguments.rows), 0, 1)
    if arguments.ties:
        labels, predictions = labels.round(2), predictions.round(2)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    ours = bootstrap_intervals(predictions, labels, resamples=arguments.resamples, metrics=METRICS)
    our_seconds = time.perf_counter() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    start = time.perf_counter()
    samples = plain_loop(predictions, labels, arguments.loop_resamples, seed=1)
    loop_seconds = (time.perf_counter() - start) * arguments.resamples / arguments.loop_resamples

    print(f"{arguments.resamples} resamples of {arguments.rows:,} rows{' (tied)' if arguments.ties else ''}")
    print(f"vectorised  {our_seconds:8.2f} s, peak memory +{grown:.0f} MiB")
    print(f"plain loop  {loop_seconds:8.2f} s (from {arguments.loop_resamples} resamples)")
    print(f"ratio       {our_seconds / loop_seconds:8.3f}")
    for name in METRICS:
        low, high = np.quantile(samples[name], [0.025, 0.975])
        print(f"{name:<12} {ours[name][0]:.5f} to {ours[name][1]:.5f}    loop {low:.5f} to {high:.5f}")


if __name__ == "__main__":
    main()
