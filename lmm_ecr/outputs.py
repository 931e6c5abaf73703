"""Where a command may write: never over its own inputs, and over an existing file only when told to."""

import os
from collections.abc import Iterable

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
