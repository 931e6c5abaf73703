"""Add watch logs up per video, in memory that grows with the number of distinct videos and not with that of rows.

Watch times are added as whole microseconds, so that the sums do not depend on the order of rows, files or chunks.
"""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import ConfigError, DataError
from .watch_logs import REASONS, Chunk, LogFormat, usable_chunks

DURATION_TOLERANCE_SECONDS = 0.1
"""Durations of one video that lie within this span agree (rounding differs between writers); the longest one is
kept."""

_MICROSECONDS = 1_000_000
_MERGE_ROWS = 1 << 18
_SUM_LIMIT = 1 << 62


@dataclass
class WatchTotals:
    """Sums per distinct video over all rows read; arrays of one length, sorted by id (by code point).

    `ids` list of str; `views` int64; `watch_microseconds` int64; `views_beyond` int64 (views with a watch time
    strictly above the limit); `duration` float64 seconds. `rows` counts what was read, `looped_rows` the views longer
    than the video, `skipped` the rows left out, by reason (with on_error="skip"); `contradicting` lists the ids left
    out because their rows disagree about the duration.
    """

    ids: list[str]
    views: np.ndarray
    watch_microseconds: np.ndarray
    views_beyond: np.ndarray
    duration: np.ndarray
    rows: int = 0
    looped_rows: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    contradicting: list[str] = field(default_factory=list)


def add_up(
    paths: Sequence[str | os.PathLike],
    *,
    beyond_seconds: float = 5.0,
    chunk_rows: int = 262_144,
    log_format: LogFormat | None = None,
) -> WatchTotals:
    """Read all `paths` and return the sums per video, the same for every order of rows and files and every chunk size.

    A watch time longer than the duration is legal: players loop. It counts in full and is counted in `looped_rows`.

    Raises:
        DataError: a file that cannot be read, a missing column, no row at all, the same file twice, and (with
            on_error="stop") a row that cannot be used or durations of one video more than
            `DURATION_TOLERANCE_SECONDS` apart; names the file and the row. Rows count from 1 below the header.
    """
    log_format = log_format or LogFormat()
    if chunk_rows < 1:
        raise ConfigError(f"--chunk-rows is {chunk_rows}; it must be at least 1")
    if not paths:
        raise DataError("no watch log was given")
    _refuse_twice(paths)
    state, pending, pending_rows = None, [], 0
    rows, looped, skipped = 0, 0, Counter()
    for chunk in usable_chunks(paths, chunk_rows, log_format, skipped):
        rows += chunk.rows_read
        looped += int(np.count_nonzero(chunk.watch > chunk.duration))
        if len(chunk.watch):
            pending.append(_sums(chunk, beyond_seconds))
            pending_rows += pending[-1].num_rows
        if pending_rows >= max(_MERGE_ROWS, 0 if state is None else state.num_rows):
            state, pending, pending_rows = _merge(state, pending), [], 0
    state = _merge(state, pending)
    rows += skipped["malformed_row"]
    if rows == 0:
        raise DataError(f"{', '.join(str(path) for path in paths)}: no rows below the header")
    if state is None:
        names = ", ".join(str(path) for path in paths)
        raise DataError(f"{names}: none of the {rows} rows can be used: {_reason_counts(skipped)}")
    state = state.sort_by("Id")
    columns = {name: state[name].to_numpy() for name in state.column_names if name != "Id"}
    apart = columns["duration_max"] - columns["duration_min"] > DURATION_TOLERANCE_SECONDS
    ids = state["Id"].to_pylist()
    contradicting = [ids[at] for at in np.flatnonzero(apart)]
    if contradicting and log_format.on_error == "stop":
        raise DataError(_first_contradiction(paths, chunk_rows, log_format, contradicting))
    keep = ~apart
    return WatchTotals(
        ids=[ids[at] for at in np.flatnonzero(keep)],
        views=columns["views"][keep],
        watch_microseconds=columns["watch"][keep],
        views_beyond=columns["beyond"][keep],
        duration=columns["duration_max"][keep],
        rows=rows,
        looped_rows=looped,
        skipped={reason: skipped[reason] for reason in REASONS if skipped[reason]},
        contradicting=contradicting,
    )


def _sums(chunk: Chunk, beyond_seconds: float) -> pa.Table:
    table = pa.table(
        {
            "Id": chunk.ids,
            "watch": np.rint(chunk.watch * _MICROSECONDS).astype(np.int64),
            "beyond": (chunk.watch > beyond_seconds).astype(np.int64),
            "duration": chunk.duration,
        }
    )
    sums = table.group_by("Id").aggregate(
        [("watch", "count"), ("watch", "sum"), ("beyond", "sum"), ("duration", "min"), ("duration", "max")]
    )
    return sums.rename_columns(_STATE)


_STATE = {
    "Id": "Id",
    "watch_count": "views",
    "watch_sum": "watch",
    "beyond_sum": "beyond",
    "duration_min": "duration_min",
    "duration_max": "duration_max",
}


def _merge(state: pa.Table | None, pending: list[pa.Table]) -> pa.Table | None:
    parts = pending if state is None else [state, *pending]
    if len(parts) <= 1:
        return parts[0] if parts else None
    merged = pa.concat_tables(parts).group_by("Id")
    merged = merged.aggregate(
        [("views", "sum"), ("watch", "sum"), ("beyond", "sum"), ("duration_min", "min"), ("duration_max", "max")]
    )
    merged = merged.rename_columns(["Id", *list(_STATE.values())[1:]])
    if pc.max(merged["watch"]).as_py() >= _SUM_LIMIT:
        raise DataError("the watch times of one video add up to more than 146,000 years: is the column in seconds?")
    return merged


def _first_contradiction(paths, chunk_rows: int, log_format: LogFormat, contradicting: list[str]) -> str:
    """Read again up to the first row whose duration disagrees with an earlier row of its video, and say where it is."""

    spans: dict[str, tuple[float, float]] = {}
    suspects = pa.array(contradicting, pa.string())
    for chunk in usable_chunks(paths, chunk_rows, log_format, Counter()):
        for at in np.flatnonzero(pc.is_in(chunk.ids, value_set=suspects).to_numpy(zero_copy_only=False)):
            video, duration = chunk.ids[at].as_py(), float(chunk.duration[at])
            low, high = spans.get(video, (duration, duration))
            if max(high, duration) - min(low, duration) > DURATION_TOLERANCE_SECONDS:
                return (
                    f"{chunk.path}, row {chunk.row_numbers[at]}: video {video!r} has a duration of {duration:g} s, "
                    f"earlier rows say {low if duration > low else high:g} s; one video has one duration "
                    f"({len(contradicting)} such videos; --on-error skip leaves them out, counted)"
                )
            spans[video] = (min(low, duration), max(high, duration))
    raise DataError(f"durations of {contradicting[0]!r} disagree, but the logs changed while they were read")


def _refuse_twice(paths) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        real = os.path.realpath(path)
        if real in seen:
            raise DataError(f"{path}: the same file is given twice (as {seen[real]}); its views would count twice")
        seen[real] = str(path)


def _reason_counts(skipped: Counter) -> str:
    return ", ".join(f"{count} times: {REASONS[reason]}" for reason, count in skipped.items() if count)
