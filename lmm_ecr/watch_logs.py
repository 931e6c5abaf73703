"""Read watch logs of any length in chunks, and say exactly which row cannot be used.

A watch log has one row per view: video id, seconds watched, duration of the video in seconds. CSV (UTF-8, with a
header; `.csv.gz` is read as it is) or Parquet (file name ending in .parquet or .pq).
"""

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from .errors import ConfigError, DataError
from .table_files import check_readable_twice
from .tables import text_records

MAX_SECONDS = 1e6
"""A longer watch time or duration (11 days) is taken for a column in another unit, such as milliseconds."""

REASONS = {
    "malformed_row": "has not as many fields as the header",
    "empty_id": "the video id is empty",
    "watch_not_a_number": "the watch time is not a finite number",
    "watch_negative": "the watch time is negative",
    "watch_too_long": f"the watch time is above {MAX_SECONDS:.0f} s (is the column in milliseconds?)",
    "duration_not_a_number": "the duration is not a finite number",
    "duration_not_positive": "the duration is not above 0 s",
    "duration_too_long": f"the duration is above {MAX_SECONDS:.0f} s (is the column in milliseconds?)",
}
"""Why a row cannot be used: word in the counts -> sentence in the message. The first
reason that holds is the one given."""


@dataclass(frozen=True)
class LogFormat:
    """Names of the three columns; `on_error` is what to do with a row that cannot be used: "stop", or "skip" and
    count it by reason."""

    id_column: str = "Id"
    watch_column: str = "watch_seconds"
    duration_column: str = "duration"
    on_error: str = "stop"

    def __post_init__(self):
        if self.on_error not in ("stop", "skip"):
            raise ConfigError(f"--on-error is {self.on_error!r}; choose stop or skip")
        names = [self.id_column, self.watch_column, self.duration_column]
        if len(set(names)) != 3:
            raise ConfigError(
                f"the id, watch and duration columns must be three different ones, got {', '.join(names)}"
            )


@dataclass
class Chunk:
    """Usable rows of one piece of one log: watch and duration in seconds, float64; row numbers from 1 in the file.

    `rows_read` counts the rows that cannot be used, too.
    """

    path: Path
    ids: pa.Array
    watch: np.ndarray
    duration: np.ndarray
    row_numbers: np.ndarray
    rows_read: int


def usable_chunks(
    paths: Sequence[str | os.PathLike], chunk_rows: int, log_format: LogFormat, skipped: Counter
) -> Iterator[Chunk]:
    """Yield the rows of all `paths` in chunks of at most `chunk_rows`; `skipped` counts those that cannot be used.

    Raises:
        DataError: a file that cannot be read, a missing column, and (with on_error="stop") a row that cannot be used.
    """
    for path in map(Path, paths):
        check_readable_twice(path)
        first = 1
        for ids, watch_raw, duration_raw in _raw_chunks(path, chunk_rows, log_format, skipped):
            watch, duration = _floats(watch_raw), _floats(duration_raw)
            watch_finite, duration_finite = np.isfinite(watch), np.isfinite(duration)
            empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(ids), ""), True).to_numpy(zero_copy_only=False)
            bad = {
                "empty_id": empty,
                "watch_not_a_number": ~watch_finite,
                "watch_negative": watch < 0,
                "watch_too_long": watch > MAX_SECONDS,
                "duration_not_a_number": ~duration_finite,
                "duration_not_positive": duration <= 0,
                "duration_too_long": duration > MAX_SECONDS,
            }
            rows = np.arange(first, first + len(watch))
            usable = np.ones(len(watch), dtype=bool)
            reason_at = {}
            for reason, mask in bad.items():
                hit = mask & usable
                if hit.any():
                    skipped[reason] += int(hit.sum())
                    reason_at[int(np.argmax(hit))] = reason
                    usable &= ~mask
            if reason_at and log_format.on_error == "stop":
                at = min(reason_at)
                shown = ", ".join(
                    f"{name} {value[at].as_py()!r}"
                    for name, value in zip(_names(log_format), (ids, watch_raw, duration_raw), strict=True)
                )
                raise DataError(
                    f"{path}, row {rows[at]}: {REASONS[reason_at[at]]} ({shown}); correct the row or leave such rows "
                    "out, counted, with --on-error skip"
                )
            first += len(watch)
            if reason_at:
                ids = ids.filter(pa.array(usable))
                watch, duration, rows = watch[usable], duration[usable], rows[usable]
            yield Chunk(path, ids, watch, duration, rows, len(usable))


def _raw_chunks(path: Path, chunk_rows: int, log_format: LogFormat, skipped: Counter):
    """Yield (ids, watch, duration), pyarrow arrays of at most `chunk_rows` rows, the numbers as the file has them."""
    reader = _parquet_batches if path.suffix.lower() in (".parquet", ".pq") else _csv_batches
    try:
        waiting, waiting_rows = [], 0
        for batch in reader(path, chunk_rows, log_format, skipped):
            for start in range(0, batch.num_rows, chunk_rows):
                piece = batch.slice(start, chunk_rows)
                if waiting_rows + piece.num_rows > chunk_rows:
                    yield _joined(waiting)
                    waiting, waiting_rows = [], 0
                waiting.append(piece)
                waiting_rows += piece.num_rows
        if waiting:
            yield _joined(waiting)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except pa.ArrowException as error:
        raise DataError(f"{path}: cannot be read as a watch log: {error}") from error


def _joined(batches: list[pa.RecordBatch]) -> tuple[pa.Array, ...]:
    return tuple(pa.concat_arrays([batch.column(index) for batch in batches]) for index in range(3))


def _csv_batches(path: Path, chunk_rows: int, log_format: LogFormat, skipped: Counter):
    _, header = next(text_records(str(path)), (1, None))
    if not header:
        raise DataError(f"{path}: the file is empty; expected a header with {', '.join(_names(log_format))}")
    _need_columns(path, header, log_format)
    first_malformed = []

    def malformed(row) -> str:
        if log_format.on_error == "stop":
            first_malformed.append(row)
            return "error"
        skipped["malformed_row"] += 1
        return "skip"

    names = _names(log_format)
    options = {
        # One thread: no slower for three columns, and only so does a malformed row know its number. Small blocks: the
        # reader reads many of them ahead.
        "read_options": pyarrow.csv.ReadOptions(use_threads=False, block_size=1 << 20),
        "parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=malformed),
        "convert_options": pyarrow.csv.ConvertOptions(
            include_columns=list(names), column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        ),
    }
    try:
        with pyarrow.csv.open_csv(path, **options) as reader:
            yield from reader
    except pa.ArrowInvalid as error:
        if not first_malformed:
            raise
        row = first_malformed[0]
        raise DataError(
            f"{path}, row {row.number - 1}: {row.actual_columns} fields where the header has {row.expected_columns} "
            f"({row.text[:80]!r}); correct the line or leave such lines out, counted, with --on-error skip"
        ) from error


def _parquet_batches(path: Path, chunk_rows: int, log_format: LogFormat, skipped: Counter):
    with pyarrow.parquet.ParquetFile(path) as parquet:
        _need_columns(path, parquet.schema_arrow.names, log_format)
        names = _names(log_format)
        # One row group at a time: over several of them the reader keeps what it has read of the file.
        for group in range(parquet.num_row_groups):
            for batch in parquet.iter_batches(min(chunk_rows, 1 << 16), row_groups=[group], columns=list(names)):
                by_name = dict(zip(batch.schema.names, batch.columns, strict=True))
                columns = [by_name[name] for name in names]
                if pa.types.is_floating(columns[0].type):
                    raise DataError(f"{path}: the column {names[0]!r} holds floating-point numbers; store ids as text")
                columns[0] = pc.cast(columns[0], pa.string())
                yield pa.record_batch(columns, names=list(names))


def _floats(raw: pa.Array) -> np.ndarray:
    """float64 of a numeric or text array; what is not a number becomes NaN (spaces around a number are allowed)."""
    if not (pa.types.is_string(raw.type) or pa.types.is_large_string(raw.type)):
        return np.asarray(pc.cast(raw, pa.float64()).fill_null(float("nan")))
    try:
        return np.asarray(pc.cast(raw, pa.float64()).fill_null(float("nan")))
    except pa.ArrowInvalid:  # at least one entry is no number: look at them one by one
        return np.array([_float(text) for text in raw.to_pylist()], dtype=np.float64)


def _float(text: str | None) -> float:
    try:
        # Python reads 1_0 and ０ as numbers, a CSV does not.
        return float(text) if text is not None and "_" not in text and text.isascii() else float("nan")
    except ValueError:
        return float("nan")


def _need_columns(path: Path, header: Sequence[str], log_format: LogFormat) -> None:
    flags = ("--id-column", "--watch-column", "--duration-column")
    for flag, name in zip(flags, _names(log_format), strict=True):
        count = list(header).count(name)
        if count > 1:
            raise DataError(f"{path}: the header names the column {name!r} {count} times")
        if count == 0:
            near = difflib.get_close_matches(name, header, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise DataError(f"{path}: no column {name!r}{hint}; it has {', '.join(header)}; name another with {flag}")


def _names(log_format: LogFormat) -> tuple[str, str, str]:
    return log_format.id_column, log_format.watch_column, log_format.duration_column
