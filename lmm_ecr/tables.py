"""Tables with ids, below the level of predictions: header checks, records with their line, exact CSV output."""

import csv
import difflib
import io
import re
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from .errors import DataError

ID_COLUMN = "Id"
LARGEST_FIELD = 2**31 - 1  # bytes, what a C long holds everywhere
HASHED_BYTES = 512  # ids that differ only behind these have the same hash
_ESCAPED = re.compile("[\udc80-\udcff]")  # how "surrogateescape" decodes a byte that is not UTF-8
_FIELD_LIMIT = threading.Lock()


def is_parquet(path: str) -> bool:
    return path.lower().endswith((".parquet", ".pq"))


def combine(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


# pa.array, pa.scalar and to_numpy import pandas where it is installed: 0.3 s and 40 MB for every command. These three go
# through buffers and do not.
def to_numpy(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """The numbers of a column, [N]; a null of a floating-point column becomes NaN. May share memory; do not write."""
    if column.null_count:
        return column.to_numpy() if isinstance(column, pa.ChunkedArray) else column.to_numpy(zero_copy_only=False)
    if not isinstance(column, pa.ChunkedArray):
        return np.from_dlpack(column)
    parts = [np.from_dlpack(chunk) for chunk in column.chunks]
    return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, column.type.to_pandas_dtype()), *parts])


def from_numpy(values: np.ndarray) -> pa.Array:
    """A column of int64 or float64 numbers [N], sharing their memory where they lie one behind the other."""
    kind = {"i": pa.int64(), "f": pa.float64()}[values.dtype.kind]
    values = np.ascontiguousarray(values, np.dtype(f"{values.dtype.kind}8"))
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])


def text_scalar(text: str) -> pa.Scalar:
    """`large_string`."""
    content = text.encode("utf-8")
    offsets = pa.py_buffer(np.array([0, len(content)], np.int64))
    return pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(content)])[0]


def select_columns(path: str, names: list[str], target: str, columns: Sequence[str] | None) -> list[str]:
    """The columns to read, after checking that they exist once."""
    for wanted in (ID_COLUMN, target, *(columns or ())):
        if wanted not in names:
            folded = {name.strip().lower(): name for name in names}
            close = (
                [folded[wanted.lower()]] if wanted.lower() in folded else difflib.get_close_matches(wanted, names, 1)
            )
            hint = f"; did you mean {close[0]!r}?" if close else ""
            if len(names) == 1 and (separator := next((mark for mark in ";\t|" if mark in names[0]), None)):
                hint = f"; the fields seem to be separated by {separator!r}: save the table with commas"
            raise DataError(f"{path}: no column {wanted!r}; it has {', '.join(map(repr, names))}{hint}")
        if names.count(wanted) > 1:
            raise DataError(f"{path}: the column {wanted!r} appears {names.count(wanted)} times in the header")
    others = [name for name in names if names.count(name) == 1] if columns is None else list(columns)
    return [ID_COLUMN, target, *(name for name in others if name not in (ID_COLUMN, target))]


def text_records(path: str) -> Iterator[tuple[int, list[str]]]:
    """(line number of its first line, fields) of every record of a CSV that is not an empty line.

    Raises:
        DataError: bytes that are not UTF-8 or text that is not CSV, with the line and, where there is one, the id.
    """
    # surrogateescape: decoding runs ahead of the records, and must not fail before it is known which one is wrong.
    with (
        pa.input_stream(path) as raw,
        io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream,
    ):
        reader = csv.reader(stream)
        line, header = 1, None
        try:
            while (fields := _next_record(reader)) is not None:
                if fields:
                    _refuse_escaped(path, line, fields, header)
                    header = header or fields
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(f"{path}: line {line}: not valid CSV: {error}") from error


def _next_record(reader: Iterator[list[str]]) -> list[str] | None:
    """The next record with fields of any length. The limit, 128 KiB by default, belongs to the whole process and not to
    the reader, so it is raised for one record at a time."""
    with _FIELD_LIMIT:
        limit = csv.field_size_limit(LARGEST_FIELD)
        try:
            return next(reader, None)
        finally:
            csv.field_size_limit(limit)


def _refuse_escaped(path: str, line: int, fields: list[str], header: list[str] | None) -> None:
    """Raise DataError if a byte of the record is not UTF-8, with the record's id where it is known."""
    for place, text in enumerate(fields):
        if text.isascii() or not (bad := _ESCAPED.search(text)):
            continue
        where = f"line {line}"
        if header and ID_COLUMN in header and (id_at := header.index(ID_COLUMN)) < len(fields) and id_at != place:
            where += f" ({ID_COLUMN} {fields[id_at][:80]!r})"
        if header and place < len(header):
            where += f", column {header[place]!r}"
        byte = ord(bad[0]) - 0xDC00
        raise DataError(f"{path}: {where}: byte 0x{byte:02x} is not UTF-8; save the table as UTF-8")


def ids_are_unique(ids: pa.Array) -> bool:
    """Whether no id of a `large_string` array (no nulls) occurs twice. Exact.

    The 64-bit hashes of the ids are sorted: two to four times as fast as a hash table of the strings (measured on a
    million ids of 7 to 32 bytes). Only where two hashes are equal does pyarrow compare the strings themselves.
    """
    hashes = hash_ids(ids)
    hashes.sort()
    return not bool((hashes[1:] == hashes[:-1]).any()) or len(pc.unique(ids)) == len(ids)


def hash_ids(ids: pa.Array, rows_at_once: int = 1 << 16) -> np.ndarray:
    """uint64 [N]: a hash of each id of a `large_string` array (no nulls), of its first `HASHED_BYTES` bytes.

    Not for storage and not safe against ids made to collide: who uses it compares the strings where hashes agree.
    """
    parts = [_hash_piece(ids.slice(start, rows_at_once)) for start in range(0, len(ids), rows_at_once)]
    return np.concatenate([np.zeros(0, np.uint64), *parts])


def _hash_piece(ids: pa.Array) -> np.ndarray:
    """Eight bytes at a time, for all ids at once."""
    offsets = np.frombuffer(ids.buffers()[1], np.int64, len(ids) + 1, offset=8 * ids.offset)
    lengths = np.diff(offsets)
    start, size = int(offsets[0]), int(offsets[-1] - offsets[0])
    text = np.zeros(size + 8, np.uint8)  # eight spare bytes: the last word of the last id may reach over
    text[:-8] = np.frombuffer(ids.buffers()[2], np.uint8, size, offset=start) if size else 0
    words = np.ndarray(len(text) - 7, "<u8", text, strides=(1,))  # the eight bytes from every position
    hashes = lengths.astype(np.uint64)
    for first in range(0, min(int(lengths.max(initial=0)), HASHED_BYTES), 8):
        left = np.clip(lengths - first, 0, 8)
        word = words[np.minimum(offsets[:-1] - start + first, len(words) - 1)]
        word &= np.where(left > 0, np.uint64(2**64 - 1) >> (64 - 8 * np.maximum(left, 1)).astype(np.uint64), 0)
        hashes ^= word
        hashes *= np.uint64(0x9E3779B97F4A7C15)  # odd, so no information is lost; the shift mixes high bits down
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _quoted(text: pa.Array) -> pa.Array:
    """Fields as RFC 4180 wants them: in double quotes where they hold a comma, a quote or a line break."""
    if text.null_count:
        text = pc.fill_null(text, "")
    special = pc.match_substring_regex(text, '[",\r\n]')
    if not pc.any(special, min_count=0).as_py():
        return text
    inside = pc.replace_substring(text, '"', '""')
    mark = text_scalar('"')
    return pc.if_else(special, pc.binary_join_element_wise(mark, inside, mark, text_scalar("")), text)


def write_csv(stream: io.RawIOBase, arrays: dict[str, pa.Array], rows_at_once: int = 1 << 16) -> None:
    """Write columns (`large_string` or numbers, equal length, the Id column among them) as CSV, a piece at a time."""
    header = io.StringIO()
    csv.writer(header, lineterminator="\n").writerow(arrays)
    stream.write(header.getvalue().encode("utf-8"))
    text = pa.large_string()
    comma, line_end, nothing = text_scalar(","), text_scalar("\n"), text_scalar("")
    for start in range(0, len(arrays[ID_COLUMN]), rows_at_once):
        pieces = []
        for array in arrays.values():
            part = array.slice(start, rows_at_once)
            pieces += [_quoted(part) if part.type == text else part.cast(text), comma]
        lines = pc.binary_join_element_wise(*pieces[:-1], line_end, nothing)
        first, last = np.frombuffer(lines.buffers()[1], np.int64, len(lines) + 1)[[0, -1]]
        stream.write(memoryview(lines.buffers()[2])[first:last])
