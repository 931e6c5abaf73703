"""Read the prediction files of an ensemble and line them up by id."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import ConfigError, DataError
from .predictions import Predictions, read_predictions
from .tables import hash_ids

MISSING = ("error", "drop", "mean")
EXAMPLES = 3  # ids listed in messages


@dataclass
class Members:
    """Prediction files over the same rows.

    names: of the members, unique, sorted; paths: their files, same order; given: position in `names` of each file as
    the user ordered them. ids: pyarrow large_string [rows], unique, in the order of the first file given (ids that only
    later files have follow). values: float64 [members, rows], in [0, 1]. filled: bool [members, rows] where a value was
    missing and is the mean of the others, or None. missing_ids: member -> number of ids it lacks; dropped: rows left
    out because some member lacks them.

    Members are kept in the order of their names, not of the command line, so that sums of floating-point numbers come
    out the same to the last bit for every order of the files.
    """

    names: list[str]
    paths: list[str]
    given: list[int]
    ids: pa.Array
    values: np.ndarray
    filled: np.ndarray | None = None
    missing_ids: dict[str, int] = field(default_factory=dict)
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.names)


def read_members(paths: Sequence[str | os.PathLike], target: str = "ECR", *, missing: str = "error") -> Members:
    """Read `paths` (see `read_predictions`) and line their rows up by id, whatever the order of rows in each.

    `missing` says what happens with an id that some file lacks: "error"; "drop": only ids that all files have; "mean":
    the missing value becomes the mean of the values the other members have for that id.

    Raises:
        DataError: no file, the same file twice, a file `read_predictions` refuses, ids that differ between the files
            (with "error"), no id common to all (with "drop"). Names file, row and id.
        ConfigError: an unknown `missing`.
    """
    if missing not in MISSING:
        raise ConfigError(f"--missing is {missing!r}; choose {', '.join(MISSING)}")
    if not paths:
        raise DataError("no prediction file was given")
    paths = [os.fspath(path) for path in paths]
    _refuse_twice(paths)
    names = member_names(paths)
    order = sorted(range(len(paths)), key=lambda at: names[at])
    tables = _read(paths, target)
    first = next(tables)
    place = {at: row for row, at in enumerate(order)}
    values = np.empty((len(paths), len(first)))
    values[place[0]] = first.values
    index = _Index(first.ids)
    differing: dict[int, Predictions] = {}  # files whose ids are not those of the first, for a second look
    for at, table in enumerate(tables, start=1):
        if table.ids is first.ids:
            values[place[at]] = table.values
        elif (rows := index.rows_of(table.ids)) is not None:
            values[place[at], rows[0]] = table.values[rows[1]]
        else:
            if missing == "error":
                raise DataError(_difference(first, table))
            differing[at] = table
    members = Members([names[at] for at in order], [paths[at] for at in order], [], first.ids, values)
    members.given = [place[at] for at in range(len(paths))]
    pa.default_memory_pool().release_unused()
    if differing:
        _fill_or_drop(members, first, {place[at]: table for at, table in differing.items()}, missing)
    return members


def member_names(paths: Sequence[str]) -> list[str]:
    """File names without suffix; where two are the same, with as many parent folders as it takes to tell them apart.

    >>> member_names(["preds/qwen.csv", "preds/llama.csv"])
    ['qwen', 'llama']
    >>> member_names(["runs/qwen/predictions/eval.csv", "runs/llama/predictions/eval.csv"])
    ['qwen/predictions/eval', 'llama/predictions/eval']
    """
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    parts = [(*folders, name.removesuffix(".gz").rsplit(".", 1)[0] or name) for *folders, name in parts]
    depth = 1
    while depth <= max(map(len, parts)):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
        depth += 1
    return [str(path) for path in paths]


def _read(paths: Sequence[str], target: str):
    """Yield the tables one by one; a table with the ids of the first in the same order shares its array of ids."""
    first = read_predictions(paths[0], target, columns=())
    yield first
    for path in paths[1:]:
        pa.default_memory_pool().release_unused()  # what reading the last file took would else stay beside the next
        yield read_predictions(path, target, columns=(), like=first)


class _Index:
    """Finds the rows of other tables in a first one; both hold each id once.

    Ids are matched through sorted hashes and then compared as text, which is several times as fast as looking a million
    strings up one by one. Where hashes collide, pyarrow looks them up.
    """

    def __init__(self, ids: pa.Array):
        self.ids = ids
        self._order = None
        self._sorted_ids = None

    def rows_of(self, ids: pa.Array) -> tuple[np.ndarray, np.ndarray] | None:
        """(rows here, rows of `ids`) that hold the same id, or None unless both hold the same set of ids."""
        if len(ids) != len(self.ids):
            return None
        if self._order is None:
            self._order = np.argsort(hash_ids(self.ids))
            self._sorted_ids = self.ids.take(pa.array(self._order))
        order = np.argsort(hash_ids(ids))
        if ids.take(pa.array(order)).equals(self._sorted_ids):
            return self._order, order
        rows = pc.index_in(ids, value_set=self.ids)
        return None if rows.null_count else (rows.to_numpy(), np.arange(len(ids)))


def _fill_or_drop(members: Members, first: Predictions, differing: dict[int, Predictions], missing: str) -> None:
    """Rebuild ids and values over the ids of all files, then drop or fill what is missing."""
    by_command_line = [differing[row] for row in members.given if row in differing]
    together = pa.chunked_array([first.ids, *(table.ids for table in by_command_line)])
    ids = pc.unique(together)
    values = np.full((len(members), len(ids)), np.nan)
    values[:, : len(first)] = members.values
    for row, table in differing.items():
        values[row] = np.nan
        values[row, pc.index_in(table.ids, value_set=ids).to_numpy()] = table.values
    absent = np.isnan(values)
    members.missing_ids = {
        name: int(count) for name, count in zip(members.names, absent.sum(axis=1), strict=True) if count
    }
    if missing == "drop":
        keep = ~absent.any(axis=0)
        if not keep.any():
            raise DataError(
                f"no id is in all {len(members)} files ({', '.join(members.paths)}); are they of one data set?"
            )
        members.dropped = int(np.count_nonzero(~keep))
        members.ids, members.values = ids.filter(pa.array(keep)), np.ascontiguousarray(values[:, keep])
        return
    counts = (~absent).sum(axis=0)
    means = np.where(absent, 0.0, values).sum(axis=0) / counts
    members.ids, members.values, members.filled = ids, np.where(absent, np.minimum(means, 1.0), values), absent


def _difference(first: Predictions, table: Predictions) -> str:
    lacking = _without(first.ids, table.ids)
    more = _without(table.ids, first.ids)
    parts = []
    for have, lack, rows in ((first, table, lacking), (table, first, more)):
        if len(rows):
            some = ", ".join(f"{have.ids[int(row)].as_py()!r} (row {row + 1})" for row in rows[:EXAMPLES])
            parts.append(
                f"{lack.path} lacks {len(rows)} of the {len(have)} ids of {have.path}: {some}"
                + (", ..." if len(rows) > EXAMPLES else "")
            )
    return "; ".join(parts) + "; give files of the same clips, or choose --missing drop or --missing mean"


def _without(ids: pa.Array, others: pa.Array) -> np.ndarray:
    """Rows of `ids` that `others` lacks."""
    return np.flatnonzero(~pc.is_in(ids, value_set=others).to_numpy(zero_copy_only=False))


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise DataError(f"{path}: the same file is given twice (as {seen[real]}); give each member once")
        seen[real] = path
