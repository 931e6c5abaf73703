"""Opening the files of tables: `-`, compressed CSV, and what can only be read once."""

import gzip
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from .errors import DataError
from .files import atomic_write, writing
from .outputs import check_compression

STANDARD_OUTPUT = "standard output"


@contextmanager
def table_stream(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary stream for a table: standard output for `-`, else a file that appears whole or not at all.

    A name that ends in `.gz` is compressed; equal contents give equal bytes (no time, no name inside).

    Raises:
        DataError: a suffix of another compression; the system does not let it be written.
    """
    if os.fspath(path) == "-":
        with standard_output() as stream:
            yield stream
        return
    check_compression(path)
    with atomic_write(path, "wb") as stream:
        if os.fspath(path).lower().endswith(".gz"):
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=stream, mtime=0) as compressed:
                yield compressed
        else:
            yield stream


@contextmanager
def standard_output() -> Iterator[IO[bytes]]:
    """The byte stream of standard output; an error of the system is a DataError, a reader that went away is not."""
    with writing(STANDARD_OUTPUT):
        sys.stdout.flush()
        stream = getattr(sys.stdout, "buffer", None)
        if stream is not None:
            yield stream
        else:  # a captured stdout without a byte stream below it
            captured = io.BytesIO()
            yield captured
            sys.stdout.write(captured.getvalue().decode("utf-8"))
        sys.stdout.flush()


def check_readable_twice(path: str | os.PathLike) -> None:
    """Raise DataError for `-`, a pipe or a device: a table is read once for its header and once for its rows."""
    if os.fspath(path) == "-":
        raise DataError("-: tables are not read from standard input; give the name of a file")
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return  # who reads it says what is wrong
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise DataError(
            f"{os.fspath(path)}: a pipe or device can be read only once, and a table is read twice; save it to a file "
            "first (.csv.gz is read as it is)"
        )
