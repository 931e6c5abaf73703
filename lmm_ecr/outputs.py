"""Where a command may write: never over its own inputs, over an existing file only when told to, and only where it
can, which is found out before the work and not after it."""

import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from .errors import ConfigError, DataError
from .files import is_special, same_file, writing

COMPRESSIONS = (".bz2", ".xz", ".zst", ".zip", ".lz4", ".br", ".7z", ".lzma", ".snappy", ".z")
"""Suffixes of compressed files that are not written; `.gz` is."""

STARTS = {
    ".json": (b"{", b"["),
    ".html": (b"<",),
    ".htm": (b"<",),
    ".svg": (b"<",),
    ".png": (b"\x89PNG",),
    ".pdf": (b"%PDF",),
}
"""What a file of a kind begins with, behind white space."""


def check_output(
    output: str | os.PathLike,
    *,
    inputs: Iterable[str | os.PathLike] = (),
    force: bool = False,
    flag: str = "--output",
) -> None:
    """Refuse an output that is one of `inputs` (by whatever name), or that exists while `force` is off.

    `-`, devices and pipes are always fine. A file name must be one that can be written there, with no compression but
    `.gz`. flag: the option's name for messages.

    Raises:
        DataError: naming the file and what to do.
    """
    output = os.fspath(output)
    if output == "-":
        return
    if is_special(output):
        if not os.access(output, os.W_OK):
            raise DataError(f"{output}: cannot be written: no permission")
        return
    if any(same_file(path, output) for path in inputs):
        raise DataError(f"{output}: the output is also one of the inputs; give another {flag}")
    check_compression(output)
    real = os.path.realpath(output)
    if os.path.isdir(real):
        raise DataError(f"{output}: is a directory; give the name of a file")
    if os.path.exists(real) and not force:
        raise DataError(f"{output}: exists already; give another {flag}, or --force to replace it")
    parent = next(folder for folder in Path(real).parents if folder.exists())  # what lies between is made
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f"{output}: cannot be written: no permission to write in {parent}")
    with writing(output), tempfile.TemporaryFile(dir=parent):  # permissions do not tell all: /proc, read-only disks
        pass


def check_side_output(
    output: str | os.PathLike | None,
    flag: str,
    kinds: Sequence[str],
    *,
    inputs: Iterable[str | os.PathLike] = (),
    force: bool = False,
    stdout: bool = False,
) -> None:
    """Check an output that replaces an older one of its kind without `--force` (a report, a plot, metrics as JSON).

    Without `force` the name must end as one of `kinds` (such as ".json"), and an existing file must be of that kind by
    its first bytes. None is fine, `-` only with `stdout`; otherwise as `check_output`. flag: the option's name.

    Raises:
        ConfigError: `-` for something that is only written to a file.
        DataError: naming the file and what to do.
    """
    if output is None:
        return
    if os.fspath(output) == "-":
        if not stdout:
            raise ConfigError(f"{flag} - : a file is written and not standard output; give a file name")
        return
    check_output(output, inputs=inputs, force=True, flag=flag)
    if force or is_special(output):
        return
    suffix = Path(output).suffix.lower()
    if suffix not in kinds:
        raise DataError(
            f"{output}: {flag} writes {' or '.join(kinds)}; give a file name that ends so, "
            "or --force to write it there all the same"
        )
    if not _is_of_kind(output, suffix):
        raise DataError(f"{output}: exists and is not a {suffix} file; give another {flag}, or --force to replace it")


def check_compression(output: str | os.PathLike) -> None:
    """Raise DataError for a name whose suffix promises a compression that is not written."""
    suffixes = [suffix.lower() for suffix in Path(output).suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        raise DataError(f"{output}: {suffixes[-1]} is not written; give a name that ends in .csv.gz or .csv")
    if suffixes[-2:] in ([".parquet", ".gz"], [".pq", ".gz"]):
        raise DataError(f"{output}: Parquet compresses inside; give a name that ends in .parquet")


def _is_of_kind(path: str | os.PathLike, suffix: str) -> bool:
    """Whether a file is absent, empty or begins as its suffix says."""
    try:
        with open(path, "rb") as stream:
            start = stream.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except FileNotFoundError:
        return True
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return not start or start.startswith(STARTS.get(suffix, (b"",)))
