"""Folds and row orders that depend on the ids alone, not on where a row stands in a file or what else is in it."""

import hashlib
from collections.abc import Iterable

import numpy as np

FOLDS = 5


def id_hashes(ids: Iterable[str]) -> np.ndarray:
    """uint64 [rows]: the first 8 bytes (little endian) of the BLAKE2b hash of each id in UTF-8; the same everywhere."""
    digests = b"".join(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest() for text in ids)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def hash_order(hashes: np.ndarray) -> np.ndarray:
    """Rows in the order of their hashes: a shuffle that is the same for every order of the file. int64 [rows]."""
    return np.argsort(hashes, kind="stable")


def fold_of(hashes: np.ndarray, folds: int = FOLDS) -> np.ndarray:
    """Fold of each row, 0 to folds - 1: the hash modulo the number of folds. int64 [rows]."""
    return (hashes % np.uint64(folds)).astype(np.int64)
