"""Progress bars of the long-running commands."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def progress_bar(description: str, unit: str = "clips", delay: float = 0) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error with rate and remaining time, driven by calls of `update(done, total)`.

    Nothing is drawn if nothing is left to do at the first call, or before `delay` seconds have passed. Off a terminal
    tqdm writes few, plain lines.
    """
    from tqdm.auto import tqdm

    bar = None

    def update(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            if done >= total:
                return
            bar = tqdm(total=total, initial=done, desc=description, unit=f" {unit}", dynamic_ncols=True, delay=delay)
        bar.update(done - bar.n)

    try:
        yield update
    finally:
        if bar is not None:
            bar.close()
