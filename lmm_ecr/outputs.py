"""Where a command may write: never over its own inputs, over an existing file only when told to, and only where it
can, which is found out before the work and not after it."""

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import DataError


def check_output(output: str | os.PathLike, *, inputs: Iterable[str | os.PathLike] = (), force: bool = False) -> None:
    """Refuse an output that is one of `inputs` (by real path), or that exists while `force` is off; `-` is always fine.

    Raises:
        DataError: naming the file and what to do.
    """
    output = os.fspath(output)
    if output == "-":
        return
    real = os.path.realpath(output)
    for path in inputs:
        if os.path.realpath(path) == real:
            raise DataError(f"{output}: the output is also one of the inputs; give another --output")
    if os.path.isdir(real):
        raise DataError(f"{output}: is a directory; give the name of a file")
    if os.path.exists(real) and not force:
        raise DataError(f"{output}: exists already; give another --output, or --force to replace it")
    parent = next(folder for folder in Path(real).parents if folder.exists())  # what lies between is made
    if not parent.is_dir():
        raise DataError(f"{output}: cannot be written: {parent} is a file, not a directory")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DataError(f"{output}: cannot be written: no permission to write in {parent}")
