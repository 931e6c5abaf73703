"""What exactly is wrong with a table of ids and numbers: a slow second look that names line, id and value."""

import math
from collections.abc import Iterable, Iterator

import pyarrow as pa

from .errors import DataError
from .tables import ID_COLUMN, text_records


def csv_rows(path: str, target: str) -> Iterator[tuple[str, str, object]]:
    """(place, id, value as text) of every row; DataError at the first row whose fields do not fit the header."""
    records = text_records(path)
    header = next(records)[1]
    id_at, value_at = header.index(ID_COLUMN), header.index(target)
    for line, fields in records:
        if len(fields) != len(header):
            name = f" ({ID_COLUMN} {fields[id_at][:80]!r})" if len(fields) > id_at else ""
            raise DataError(
                f"{path}: line {line}{name}: {len(fields)} fields where the header has {len(header)}; "
                "text with commas, quotes or line breaks must be in double quotes"
            )
        yield f"line {line}", fields[id_at], fields[value_at]


def parquet_rows(ids: pa.Array, values: pa.Array) -> Iterator[tuple[str, str, object]]:
    """(place, id, value) of every row."""
    for row, (name, value) in enumerate(zip(ids, values, strict=True), start=1):
        yield f"row {row}", name.as_py() or "", value.as_py()


def first_problem(rows: Iterable[tuple[str, str, object]], target: str, allow_out_of_range: bool) -> str | None:
    """The first row that breaks a rule of prediction tables, in words; None if all are good."""
    seen: dict[str, str] = {}
    for place, name, value in rows:
        if not name:
            return f"{place}: the {ID_COLUMN} is empty"
        if name in seen:
            return f"{place}: the {ID_COLUMN} {name!r} appears a second time (first: {seen[name]})"
        seen[name] = place
        if value is None or (isinstance(value, str) and not value.strip()):
            return f"{place}: {target} of {name!r} is empty"
        try:
            if isinstance(value, str) and ("_" in value or not value.isascii()):
                raise ValueError("Python reads 1_0 and ０ as numbers, a CSV does not")
            number = float(value)
        except ValueError:
            return f"{place}: {target} of {name!r} is {value!r}, not a number"
        if not math.isfinite(number):
            return f"{place}: {target} of {name!r} is {value}, not a finite number"
        if not (allow_out_of_range or 0.0 <= number <= 1.0):
            hint = "; divide scores in percent by 100" if 1.0 < number <= 100.0 else ""
            return f"{place}: {target} of {name!r} is {value}, outside [0, 1]{hint}"
    return None
