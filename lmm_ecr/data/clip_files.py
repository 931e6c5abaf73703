"""Which file a prepared clip was made from: told by size and time, and by content where only the time differs."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ..journal import file_digest
from .manifest import ManifestRow

Identity = list  # [bytes, modification time in ns, SHA-256 of the content]


def file_identity(path: str | Path) -> Identity:
    """Identity of a file now. Raises OSError."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, file_digest(path)]


def is_same_file(path: str | Path, identity: Identity) -> bool:
    """Whether `path` has the content it had; a copy (same content, another time) has, and so has a file that is gone."""
    try:
        status = os.stat(path)
        if status.st_size != identity[0]:
            return False
        return status.st_mtime_ns == identity[1] or file_digest(path) == identity[2]
    except OSError:
        return True


def changed_files(rows: Sequence[ManifestRow], identities: Mapping[str, Identity], num_threads: int = 8) -> list[str]:
    """Files of `rows` that have another content than `identities` (by Id; rows without one are not compared)."""
    known = [row for row in rows if row.id in identities]
    with ThreadPoolExecutor(num_threads) as pool:
        same = list(pool.map(lambda row: is_same_file(row.video, identities[row.id]), known))
    return [str(row.video) for row, unchanged in zip(known, same, strict=True) if not unchanged]
