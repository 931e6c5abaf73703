"""Prediction and label tables: read, write and match them by id.

The prediction table is `Id,ECR[,more columns]`, one row per clip, as CSV (UTF-8, RFC 4180, also `.csv.gz`) or Parquet.
Ids are text and stay text (`0012`, `1e5` and `NA` survive). Everything is vectorised; only when a table is found to be
wrong is it read again slowly, to name the line, the id and the value.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from .errors import DataError
from .table_files import check_readable_twice, table_stream
from .table_problems import csv_rows, first_problem, parquet_rows
from .tables import (
    ID_COLUMN,
    combine,
    from_numpy,
    ids_are_unique,
    is_parquet,
    select_columns,
    text_records,
    to_numpy,
    write_csv,
)

TARGET_COLUMN = "ECR"
BLOCK_BYTES = 1 << 18  # of a CSV that passes through; a record may be no longer (else the whole file is read at once)
LARGEST_BLOCK_BYTES = 1 << 29  # a longer record is an error
EXAMPLES = 5  # ids listed in messages about mismatches


@dataclass
class Predictions:
    """One number per clip, and whatever else the table held.

    ids: pyarrow `large_string` array [N], unique, not empty. values: float64 [N], finite (and in [0, 1] unless reading
    allowed otherwise). extra: the other columns, name -> pyarrow array [N]; text in a CSV, the stored type in a Parquet
    file (`numeric_column` converts).
    """

    path: str
    ids: pa.Array
    values: np.ndarray
    target: str = TARGET_COLUMN
    extra: dict[str, pa.Array] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def name(self) -> str:
        """File name without directory and suffix, for tables and legends."""
        return Path(self.path).name.removesuffix(".gz").rsplit(".", 1)[0]


@dataclass
class Match:
    """Rows of two tables that carry the same id: `prediction_rows[k]` and `label_rows[k]`, both int64 [M].

    The order is that of the label table. `predictions` and `labels` are the values at those rows, float64 [M].
    """

    prediction_rows: np.ndarray
    label_rows: np.ndarray
    predictions: np.ndarray
    labels: np.ndarray
    unlabelled: int  # ids of the prediction table without a label
    unlabelled_examples: list[str]
    unpredicted: int  # ids of the label table without a prediction
    unpredicted_examples: list[str]

    def __len__(self) -> int:
        return len(self.label_rows)


def read_predictions(
    path: str | os.PathLike,
    target: str = TARGET_COLUMN,
    *,
    allow_out_of_range: bool = False,
    columns: Sequence[str] | None = None,
    like: Predictions | None = None,
) -> Predictions:
    """Read a prediction table.

    columns: which other columns to keep (None = all, () = none, a name the table lacks is an error). like: a table that
    was read before; where the ids are the same in the same order its id array is shared, which saves the memory and the
    search for duplicates. allow_out_of_range: accept finite values outside [0, 1].

    Raises DataError, with file, line (row in a Parquet file, from 1), id and value, for: an unreadable or empty file,
    a missing column (the closest name is given), duplicate or empty ids, a value that is missing, not a number, not
    finite or outside [0, 1], and lines with too many or too few fields.
    """
    path = os.fspath(path)
    check_readable_twice(path)
    try:
        if is_parquet(path):
            table = _read_parquet(path, target, columns)
        else:
            values = None if like is None or columns != () else _values_like(path, target, like)
            if values is not None and _in_range(values, allow_out_of_range):
                return Predictions(path, like.ids, values, target)
            table = _read_csv(path, target, columns)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
    if table.num_rows == 0:
        raise DataError(f"{path}: the table has a header but no rows")
    shared = like is not None and table[ID_COLUMN].equals(pa.chunked_array([like.ids]))
    ids = like.ids if shared else combine(table[ID_COLUMN])
    column = combine(table[target])
    extra = {name: combine(table[name]) for name in table.column_names if name not in (ID_COLUMN, target)}
    del table  # its ids are as large as `ids`, and what follows takes memory, too
    pa.default_memory_pool().release_unused()
    values = to_numpy(column)
    if not ((shared or _are_good_ids(ids)) and _in_range(values, allow_out_of_range)):
        rows = parquet_rows(ids, column) if is_parquet(path) else csv_rows(path, target)
        raise DataError(f"{path}: {first_problem(rows, target, allow_out_of_range) or 'the table is not valid'}")
    return Predictions(path, ids, values, target, extra)


def read_labels(
    path: str | os.PathLike,
    target: str = TARGET_COLUMN,
    *,
    allow_out_of_range: bool = False,
    columns: Sequence[str] | None = None,
) -> Predictions:
    """Read a label table (`Id,...,ECR`): the same rules and errors as `read_predictions`, all columns kept."""
    return read_predictions(path, target, allow_out_of_range=allow_out_of_range, columns=columns)


def write_predictions(path: str | os.PathLike, ids: Iterable[str], columns: Mapping[str, Sequence]) -> None:
    """Write a prediction table: the Id column, then `columns` in their order. The file appears whole or not at all.

    Numbers are written as float64 in the shortest form that reads back to the same bits; line ends are `\\n`; text is
    quoted only where RFC 4180 asks for it. `-` writes to standard output; a `.parquet` suffix writes Parquet, `.gz`
    compresses.

    Raises DataError for NaN or infinite numbers (a score that is not a number must not reach a submission), for empty
    or repeated ids and where the system does not let it be written, ValueError for columns of different lengths.
    """
    path = os.fspath(path)
    ids = ids if isinstance(ids, pa.Array | pa.ChunkedArray) else pa.array(list(ids), pa.large_string())
    ids = combine(ids.cast(pa.large_string()))
    if len(ids) and not _are_filled(ids):
        raise DataError(f"{path}: an Id to be written is empty")
    if not ids_are_unique(ids):
        repeated = pc.value_counts(ids)
        first = repeated.filter(pc.greater(repeated.field("counts"), 1))[0].as_py()["values"]
        raise DataError(f"{path}: Id {first!r} would be written more than once")
    arrays = {ID_COLUMN: ids}
    for name, values in columns.items():
        arrays[name] = _output_column(path, name, values, ids)
    with table_stream(path) as stream:
        if is_parquet(path):
            pyarrow.parquet.write_table(pa.table(arrays), stream)
        else:
            write_csv(stream, arrays)


def match_ids(predictions: Predictions, labels: Predictions) -> Match:
    """Pair the rows of two tables by id, whatever their orders. Nothing matched gives empty arrays, not an error."""
    if predictions.ids.equals(labels.ids):
        rows = np.arange(len(labels), dtype=np.int64)
        return Match(rows, rows, predictions.values, labels.values, 0, [], 0, [])
    position = pc.index_in(labels.ids, value_set=predictions.ids)
    prediction_rows = to_numpy(pc.drop_null(position)).astype(np.int64)
    found = to_numpy(pc.is_valid(position).cast(pa.int8())).astype(bool)
    label_rows = np.flatnonzero(found)
    unpredicted = np.flatnonzero(~found)
    used = np.zeros(len(predictions), dtype=bool)
    used[prediction_rows] = True
    unlabelled = np.flatnonzero(~used)
    return Match(
        prediction_rows,
        label_rows,
        predictions.values[prediction_rows],
        labels.values[label_rows],
        len(unlabelled),
        predictions.ids.take(from_numpy(unlabelled[:EXAMPLES])).to_pylist(),
        len(unpredicted),
        labels.ids.take(from_numpy(unpredicted[:EXAMPLES])).to_pylist(),
    )


def numeric_column(column: pa.Array) -> np.ndarray | None:
    """float64 [N] with NaN for empty cells, or None if some non-empty cell is not a number."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        text = pc.utf8_trim_whitespace(column)
        column = pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)
    try:
        return column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _are_good_ids(ids: pa.Array) -> bool:
    return _are_filled(ids) and ids_are_unique(ids)


def _are_filled(ids: pa.Array) -> bool:
    return ids.null_count == 0 and pc.min(pc.binary_length(ids)).as_py() > 0


def _in_range(values: np.ndarray, allow_out_of_range: bool) -> bool:
    return bool(np.isfinite(values).all()) and (allow_out_of_range or bool(values.min() >= 0.0 and values.max() <= 1.0))


def _csv_options(path: str, target: str, columns: Sequence[str] | None) -> dict:
    if Path(path).is_file() and Path(path).stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    header = next(text_records(path), None)
    if header is None:
        raise DataError(f"{path}: the file is empty")
    chosen = select_columns(path, header[1], target, columns)
    types = {name: pa.large_string() for name in chosen} | {target: pa.float64()}
    convert = pyarrow.csv.ConvertOptions(column_types=types, include_columns=chosen, strings_can_be_null=False)
    return {"parse_options": pyarrow.csv.ParseOptions(newlines_in_values=True), "convert_options": convert}


def _values_like(path: str, target: str, like: Predictions) -> np.ndarray | None:
    """The values of a CSV whose ids are those of `like` in the same order, float64 [N]; else None.

    The file passes through in blocks and its ids are never held, which takes a fraction of the memory of a table. None
    also for a file that cannot be parsed: reading it the other way finds out why.
    """
    values, start = np.empty(len(like)), 0
    try:
        read_options = pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES)
        with pyarrow.csv.open_csv(path, read_options=read_options, **_csv_options(path, target, ())) as reader:
            for block in reader:
                stop = start + len(block)
                if stop > len(like) or not block[ID_COLUMN].equals(like.ids.slice(start, len(block))):
                    return None
                values[start:stop] = to_numpy(block[target])
                start = stop
    except pa.ArrowInvalid:
        return None
    return values if start == len(like) else None


def _read_csv(path: str, target: str, columns: Sequence[str] | None) -> pa.Table:
    options, block_size = _csv_options(path, target, columns), 1 << 20
    while True:
        try:
            return pyarrow.csv.read_csv(path, read_options=pyarrow.csv.ReadOptions(block_size=block_size), **options)
        except pa.ArrowInvalid as error:
            if "straddl" in str(error) and block_size < LARGEST_BLOCK_BYTES:  # a record is longer than a block
                block_size *= 8
                continue
            problem = first_problem(csv_rows(path, target), target, allow_out_of_range=True)
            raise DataError(f"{path}: {problem or error}") from error


def _read_parquet(path: str, target: str, columns: Sequence[str] | None) -> pa.Table:
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            table = file.read(columns=select_columns(path, file.schema_arrow.names, target, columns))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a readable Parquet file: {error}") from error
    id_type, value_type = table.schema.field(ID_COLUMN).type, table.schema.field(target).type
    if pa.types.is_floating(id_type):
        raise DataError(f"{path}: the column {ID_COLUMN!r} holds floating-point numbers; store ids as text")
    if not (pa.types.is_floating(value_type) or pa.types.is_integer(value_type)):
        raise DataError(f"{path}: the column {target!r} holds {value_type}, not numbers")
    table = table.set_column(0, ID_COLUMN, table[ID_COLUMN].cast(pa.large_string()))
    return table.set_column(1, target, table[target].cast(pa.float64()))


def _output_column(path: str, name: str, values: Sequence, ids: pa.Array) -> pa.Array:
    if len(values) != len(ids):
        raise ValueError(f"column {name!r} has {len(values)} values for {len(ids)} ids")
    if isinstance(values, np.ndarray) and values.dtype in (np.float64, np.int64):
        array = from_numpy(values)
    else:
        array = combine(values) if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values)
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        return array.cast(pa.large_string())
    array = array.cast(pa.float64()) if pa.types.is_floating(array.type) else array
    if array.null_count or not pc.all(pc.is_finite(array), min_count=0).as_py():
        row = pc.index(pc.fill_null(pc.is_finite(array), False), False).as_py()
        raise DataError(f"{path}: {name} of {ids[row].as_py()!r} is {array[row].as_py()}, not a finite number")
    return array
