"""What members look like by themselves: mean, spread, rows for correlations, copies. Nothing depends on the order of rows,
and members may come one after another."""

import hashlib

import numpy as np
import pyarrow as pa

from .tables import hash_ids

CORRELATION_ROWS = 100_000
"""Correlations between members use at most this many rows, those with the smallest hashes of their ids."""

BLOCK_ROWS = 1 << 16
HALF = 2.0**26  # half the digits of a float64 in [0, 1]


class MemberStatistics:
    """Collects over members, which are added in the order of their names; NaN, a missing value, counts nowhere.

    means, stds: float of each member (population standard deviation). sample: float64 [members, rows], their values at
    `correlation_rows`, in an order fixed by the ids.
    """

    def __init__(self, ids: pa.Array):
        self.means: list[float] = []
        self.stds: list[float] = []
        self._rows = correlation_rows(ids)
        self._samples: list[np.ndarray] = []
        self._digests: list[bytes] = []

    def add(self, values: np.ndarray) -> None:
        """`values`: float64 [rows], in the order of the ids, in [0, 1] or NaN; neither kept nor changed."""
        mean, std = mean_and_std(values)
        self.means.append(mean)
        self.stds.append(std)
        self._samples.append(values[self._rows])
        digest = hashlib.blake2b(digest_size=16)
        for block in _blocks(values):
            digest.update(block + 0.0)  # minus zero is zero
        self._digests.append(digest.digest())

    @property
    def sample(self) -> np.ndarray:
        return np.stack(self._samples)

    def copies(self) -> list[list[int]]:
        """Groups of two or more members with the same values in every row, as positions."""
        groups: dict[bytes, list[int]] = {}
        for at, digest in enumerate(self._digests):
            groups.setdefault(digest, []).append(at)
        return [group for group in groups.values() if len(group) > 1]


def correlation_rows(ids: pa.Array) -> np.ndarray:
    """At most `CORRELATION_ROWS` rows of a `large_string` array, chosen and ordered by hash: int64."""
    hashes = hash_ids(ids)
    if len(hashes) <= CORRELATION_ROWS:
        return np.argsort(hashes)
    rows = np.argpartition(hashes, CORRELATION_ROWS)[:CORRELATION_ROWS]
    return rows[np.argsort(hashes[rows])]


def mean_and_std(values: np.ndarray) -> tuple[float, float]:
    """Mean and population standard deviation of float64 [rows] in [0, 1] without its NaN, to about 1e-15 and the same bits
    for every order; (value, 0.0) if all are equal."""
    if np.isnan(values.min()):
        values = values[~np.isnan(values)]
    low, high = float(values.min()), float(values.max())
    if low == high:
        return low, 0.0
    mean = _sum(values) / len(values)
    largest = max(high - mean, mean - low)
    return mean, largest * (_sum(values, mean, largest) / len(values)) ** 0.5


def _sum(values: np.ndarray, centre: float | None = None, unit: float = 1.0) -> float:
    """Sum of numbers in [0, 1], or of ((value - centre) / unit)². Each is cut to 52 binary places, in two whole numbers that
    float64 adds without rounding: no order of the rows changes the result."""
    first = second = 0
    for block in _blocks(values):
        numbers = block if centre is None else ((block - centre) / unit) ** 2
        scaled = numbers * HALF
        whole = np.floor(scaled)
        scaled -= whole
        scaled *= HALF
        first += int(whole.sum())
        second += int(np.floor(scaled, out=scaled).sum())
    return first / HALF + second / HALF**2


def _blocks(values: np.ndarray) -> list[np.ndarray]:
    return [values[start : start + BLOCK_ROWS] for start in range(0, len(values), BLOCK_ROWS)]
