"""Throughput of a training run since the last log line."""

import resource
import sys
import time

import torch


class ThroughputMeter:
    """Counts clips and waiting time; `read` gives the numbers of a log line and starts the next interval."""

    def __init__(self):
        self._start = time.perf_counter()
        self._clips = 0
        self._wait = 0.0

    def add_clips(self, count: int) -> None:
        self._clips += count

    def add_wait(self, seconds: float) -> None:
        self._wait += seconds

    def read(self) -> dict[str, float]:
        """clips_per_s (all processes), data_wait (share of the time this process waited for data, 0 to 1) and
        peak_memory_gb (of the accelerator, or of this process without one)."""
        now = time.perf_counter()
        elapsed = max(now - self._start, 1e-9)
        numbers = {
            "clips_per_s": self._clips / elapsed,
            "data_wait": min(self._wait / elapsed, 1.0),
            "peak_memory_gb": peak_memory_gb(),
        }
        self._start, self._clips, self._wait = now, 0, 0.0
        return numbers


def peak_memory_gb() -> float:
    """Peak memory in GB (1e9 bytes): allocated on the accelerator, or resident for a run on the CPU."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes on macOS, in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
