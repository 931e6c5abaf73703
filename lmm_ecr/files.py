"""Files that are written whole or not at all."""

import io
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from .errors import DataError


@contextmanager
def atomic_write(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Open a temporary file beside `path` for writing; rename it to `path` when the block ends without an error.

    Text is UTF-8 with line ends as written (no translation, so that CSV writers stay in charge). Readers see the old
    file or the new one, never half of it. Parent directories are made. On an error the temporary file is removed and
    `path` is untouched. A link stays: what it points to is written. What is not a regular file (a device, a pipe such as
    `>(command)`) is never replaced but written straight through.

    mode: "w" or "wb".

    Raises:
        DataError: the system does not let the file be written ("cannot be written: No space left on device"). A reader
            of a pipe that has gone away stays a BrokenPipeError, and what the block itself raises stays what it is.
    """
    if os.fspath(path) == "-":
        raise DataError("-: this cannot go to standard output; give the name of a file")
    if is_special(path):
        with _opened(path, mode, path) as stream:
            yield stream
        return
    target = Path(os.path.realpath(path))
    with writing(path):
        if target.is_dir():
            raise DataError(f"{path}: cannot be written: Is a directory")
        target.parent.mkdir(parents=True, exist_ok=True)
        # Part of the name only: a name may be as long as the system allows.
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:40]}.", suffix=".tmp")
    try:
        with _opened(handle, mode, path) as stream:
            yield stream
            stream.flush()
            with writing(path):
                os.fsync(stream.fileno())
        with writing(path):
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, whole or not at all. NaN and infinity are refused (they are not JSON)."""
    with atomic_write(path) as stream:
        stream.write(json_text(value))


def json_text(value: Any) -> str:
    """`value` as indented JSON that ends with its line. ValueError for NaN and infinity, which are not JSON."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: str | os.PathLike) -> Any:
    """The value in a UTF-8 JSON file. Raises DataError naming the file if it is none (empty, cut off, binary)."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise DataError(f"{path} is damaged or incomplete: no valid JSON ({error})") from error


def is_special(path: str | os.PathLike) -> bool:
    """Whether `path` is there and neither a regular file nor a directory: a device, a pipe, a socket; links followed.

    Raises:
        DataError: the system refuses the name (too long, a file where a directory should be, a loop of links).
    """
    with writing(path):
        try:
            mode = os.stat(path).st_mode
        except FileNotFoundError:
            return False
        return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def same_file(one: str | os.PathLike, other: str | os.PathLike) -> bool:
    """Whether two names lead to one file: through links, hard links and `..`; also for files that are not there yet."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return os.path.realpath(one) == os.path.realpath(other)


@contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """An OSError of the block, which only writes `path`, as a DataError; a reader that went away stays what it is."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}") from error


class _Target(io.FileIO):
    """An open file whose failures to write are DataErrors, and not those of other files used meanwhile."""

    def __init__(self, file: str | os.PathLike | int, path: str | os.PathLike):
        with writing(path):
            super().__init__(file, "w")
        self.path = path

    def write(self, content) -> int:
        with writing(self.path):
            return super().write(content)


def _opened(file: str | os.PathLike | int, mode: str, path: str | os.PathLike) -> IO:
    stream = io.BufferedWriter(_Target(file, path))
    return stream if "b" in mode else io.TextIOWrapper(stream, encoding="utf-8", newline="")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
