"""Processes that read clips."""

import os
import signal
import threading
from collections.abc import Iterable, Iterator

from ..errors import DataError


def default_num_workers() -> int:
    """One process per core this process may use, at most 4: a worker decodes about 5 clips per second."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def one_thread_worker(_worker_id: int) -> None:
    """Dataloader worker initialisation: one thread each, and signals that ask the job to stop are left to the parent.

    A batch system, `timeout` or a terminal signals all processes of a job. PyTorch's workers would die of SIGTERM, and
    the parent of the lost worker before it could save. A worker ends when its parent ends it or is gone.
    """
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS, where a worker that is stuck outlives its parent's SIGTERM
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, daemon=True).start()


def explain_lost_workers(loader: Iterable) -> Iterator:
    """The items of a `DataLoader`. Raises DataError with what to do where a worker was lost."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader" not in str(error):
            raise
        raise DataError(
            f"a process that reads clips was lost ({error}). It may have been killed for memory (lower --num-workers or "
            "--batch-size) or the file system does not answer. What is finished is kept."
        ) from error


def _obey_parent() -> None:
    """End the process at once when SIGTERM comes from the parent, which is how multiprocessing ends a worker."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
