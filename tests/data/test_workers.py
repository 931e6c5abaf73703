"""Processes that read clips: signals meant for the whole job leave them to their parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from lmm_ecr.data.workers import one_thread_worker

REPO = Path(__file__).resolve().parents[2]


class _Slow(Dataset):
    """24 items, each the process that made it, 50 ms apart."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> int:
        time.sleep(0.05)
        return os.getpid()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_whole_job_does_not_end_the_workers(method, number):
    """Bug: training died of "DataLoader worker is killed by signal" before it could save."""
    loader = DataLoader(
        _Slow(),
        batch_size=None,
        num_workers=2,
        worker_init_fn=one_thread_worker,
        multiprocessing_context=method,
        timeout=60,
    )
    items = iter(loader)
    found = [next(items), next(items)]
    for pid in set(found):  # from outside, as a batch system sends it
        subprocess.run(["kill", f"-{number.name[3:]}", str(pid)], check=True)
    found += list(items)
    assert len(found) == 24
    assert len(set(found)) == 2


class _Stuck(Dataset):
    """The first item comes at once, the second never."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        time.sleep(600 * index)
        return os.getpid()


def test_the_parent_can_end_a_worker_that_is_stuck():
    loader = DataLoader(_Stuck(), batch_size=None, num_workers=1, worker_init_fn=one_thread_worker)
    worker = psutil.Process(next(iter_ := iter(loader)))
    worker.terminate()
    psutil.wait_procs([worker], timeout=20)
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    del iter_


def test_workers_end_with_a_parent_that_was_killed():
    program = (
        "import time\n"
        "from torch.utils.data import DataLoader\n"
        "from lmm_ecr.data.workers import one_thread_worker\n"
        "from tests.data.test_workers import _Slow\n"
        "items = iter(DataLoader(_Slow(), batch_size=None, num_workers=2, worker_init_fn=one_thread_worker))\n"
        "print(next(items), next(items), flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, cwd=REPO, text=True) as parent:
        workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
