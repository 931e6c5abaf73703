"""Processes that read clips."""

import os


def default_num_workers() -> int:
    """One process per core this process may use, at most 4: a worker decodes about 5 clips per second."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(4, cores)


def one_thread_worker(_worker_id: int) -> None:
    """Dataloader worker initialisation: one thread each, so that workers do not fight over the cores."""
    import torch

    torch.set_num_threads(1)
