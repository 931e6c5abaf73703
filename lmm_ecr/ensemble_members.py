"""Read the prediction files of an ensemble and line them up by id."""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import ConfigError, DataError
from .predictions import Predictions, read_predictions
from .tables import from_numpy, hash_ids, to_numpy

MISSING = ("error", "drop", "mean")
EXAMPLES = 3  # ids listed in messages


@dataclass
class Members:
    """Prediction files over the same rows.

    names: of the members, unique, sorted; paths: their files, same order; given: position in `names` of each file as
    the user ordered them. ids: pyarrow large_string [rows], unique, in the order of the first file given (ids that only
    later files have follow). values: float64 [members, rows], in [0, 1], NaN where a member lacks the id (missing="mean"
    only); None after `stream_members`. missing_ids: member -> number of ids it lacks; dropped: rows left out because some
    member lacks them.

    Members are kept in the order of their names, not of the command line, so that sums of floating-point numbers come
    out the same to the last bit for every order of the files.
    """

    names: list[str]
    paths: list[str]
    given: list[int]
    ids: pa.Array | None
    values: np.ndarray | None
    missing_ids: dict[str, int] = field(default_factory=dict)
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.names)


def read_members(paths: Sequence[str | os.PathLike], target: str = "ECR", *, missing: str = "error") -> Members:
    """Read `paths` (see `read_predictions`) and line their rows up by id, whatever the order of rows in each.

    `missing` says what happens with an id that some file lacks: "error"; "drop": only ids that all files have; "mean":
    ids that some file has; the value of a file that lacks one is NaN here and counts as the mean of the others where
    members are combined (`ensemble_methods.fill_gaps`).

    Raises:
        DataError: no file, the same file twice, a file `read_predictions` refuses, ids that differ between the files
            (with "error"), no id common to all (with "drop"). Names file, row and id.
        ConfigError: an unknown `missing`.
    """
    if missing not in MISSING:
        raise ConfigError(f"--missing is {missing!r}; choose {', '.join(MISSING)}")
    members, order = _unread(paths)
    place = {at: row for row, at in enumerate(order)}
    tables = _read(members, target, range(1, len(paths)))
    first = next(tables)
    values = np.empty((len(paths), len(first)))
    values[place[0]] = first.values
    index = _Index(first)
    differing: dict[int, Predictions] = {}  # files whose ids are not those of the first, for a second look
    for at, table in enumerate(tables, start=1):
        aligned = index.aligned(table)
        if aligned is not None:
            values[place[at]] = aligned
        elif missing == "error":
            raise DataError(_difference(first, table))
        else:
            differing[at] = table
    members.ids, members.values = first.ids, values
    pa.default_memory_pool().release_unused()
    if differing:
        _join(members, first, {place[at]: table for at, table in differing.items()}, missing)
    return members


def stream_members(
    paths: Sequence[str | os.PathLike], target: str, use: Callable[[pa.Array, np.ndarray], None]
) -> Members:
    """Read `paths` one after another, without ever holding more than two of them.

    `use(ids, values)` gets the values of every member, float64 [rows] in the order of the ids, which are those of the first
    file given; members come in the order of their names. The result has everything but `values`. All files must have
    the same ids; raises as `read_members` with missing="error".
    """
    members, order = _unread(paths)
    first_row = order.index(0)
    tables = _read(members, target, [at for at in order if at != 0])
    first = next(tables)
    index = _Index(first)
    for row in range(len(order)):
        if row == first_row:
            use(first.ids, first.values)
            continue
        table = next(tables)
        aligned = index.aligned(table)
        if aligned is None:
            raise DataError(_difference(first, table))
        use(first.ids, aligned)
    members.ids = first.ids
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


def _unread(paths: Sequence[str | os.PathLike]) -> tuple[Members, list[int]]:
    """Members without rows, and the positions of `paths` in the order of the members' names."""
    if not paths:
        raise DataError("no prediction file was given")
    paths = [os.fspath(path) for path in paths]
    _refuse_twice(paths)
    names = member_names(paths)
    order = sorted(range(len(paths)), key=lambda at: names[at])
    given = [order.index(at) for at in range(len(paths))]
    return Members([names[at] for at in order], [paths[at] for at in order], given, None, None), order


def _read(members: Members, target: str, rest: Sequence[int]) -> Iterator[Predictions]:
    """Yield the first file given and then those at the positions `rest` of the command line; a table with the ids of
    the first in the same order shares its array of ids."""
    paths = [members.paths[row] for row in members.given]
    first = read_predictions(paths[0], target, columns=())
    yield first
    for at in rest:
        pa.default_memory_pool().release_unused()  # what reading the last file took would else stay beside the next
        yield read_predictions(paths[at], target, columns=(), like=first)


class _Index:
    """Finds the rows of other tables in a first one; both hold each id once.

    Ids are matched through sorted hashes and then compared as text, which is several times as fast as looking a million
    strings up one by one. Where hashes collide, pyarrow looks them up.
    """

    def __init__(self, first: Predictions):
        self.ids = first.ids
        self._order = None
        self._sorted_ids = None

    def aligned(self, table: Predictions) -> np.ndarray | None:
        """The values of `table` in the order of the first one, or None unless both hold the same set of ids."""
        if table.ids is self.ids:
            return table.values
        if len(table) != len(self.ids):
            return None
        if self._order is None:
            self._order = np.argsort(hash_ids(self.ids))
            self._sorted_ids = self.ids.take(from_numpy(self._order))
        order = np.argsort(hash_ids(table.ids))
        values = np.empty(len(table))
        if self._are_sorted_ids(table.ids, order):
            values[self._order] = table.values[order]
            return values
        rows = pc.index_in(table.ids, value_set=self.ids)
        if rows.null_count:
            return None
        values[to_numpy(rows)] = table.values
        return values

    def _are_sorted_ids(self, ids: pa.Array, order: np.ndarray, rows_at_once: int = 1 << 16) -> bool:
        for start in range(0, len(ids), rows_at_once):
            some = ids.take(from_numpy(order[start : start + rows_at_once]))
            if not some.equals(self._sorted_ids.slice(start, rows_at_once)):
                return False
        return True


def _join(members: Members, first: Predictions, differing: dict[int, Predictions], missing: str) -> None:
    """Rebuild ids and values over the ids of all files, then drop rows with gaps or keep them with NaN."""
    by_command_line = [differing[row] for row in members.given if row in differing]
    together = pa.chunked_array([first.ids, *(table.ids for table in by_command_line)])
    ids = pc.unique(together)
    values = np.full((len(members), len(ids)), np.nan)
    values[:, : len(first)] = members.values
    for row, table in differing.items():
        values[row] = np.nan
        values[row, to_numpy(pc.index_in(table.ids, value_set=ids))] = table.values
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
    members.ids, members.values = ids, values


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
    return np.flatnonzero(to_numpy(pc.is_in(ids, value_set=others).cast(pa.int8())) == 0)


def _refuse_twice(paths: Sequence[str]) -> None:
    seen: dict[object, str] = {}
    for path in paths:
        try:
            status = os.stat(path)
            file = (status.st_dev, status.st_ino)  # one file has one, under all its names
        except OSError:  # reading it says what is wrong
            file = os.path.realpath(path)
        if file in seen:
            raise DataError(f"{path}: the same file is given twice (as {seen[file]}); give each member once")
        seen[file] = path
