"""The numbers of a log line."""

import time

import pytest

from lmm_ecr.training.meter import ThroughputMeter, peak_memory_gb


def test_interval_is_measured_and_then_begun_anew():
    meter = ThroughputMeter()
    meter.add_clips(3)
    meter.add_clips(2)
    meter.add_wait(0.01)
    start = time.perf_counter()
    time.sleep(0.05)
    numbers = meter.read()
    elapsed = time.perf_counter() - start
    assert set(numbers) == {"clips_per_s", "data_wait", "peak_memory_gb"}
    assert 5 / (elapsed + 0.05) < numbers["clips_per_s"] <= 5 / 0.05
    assert 0 < numbers["data_wait"] <= 0.01 / 0.05
    time.sleep(0.01)
    assert meter.read()["clips_per_s"] == 0
    assert meter.read()["data_wait"] == 0


def test_waiting_never_exceeds_the_whole_time():
    meter = ThroughputMeter()
    meter.add_wait(1e6)
    assert meter.read()["data_wait"] == 1.0


def test_peak_memory_is_that_of_a_python_process_with_torch():
    """Between 50 MB and 100 GB: a wrong unit is off by a factor of 1024."""
    assert 0.05 < peak_memory_gb() < 100
    before = peak_memory_gb()
    block = bytearray(300_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert peak_memory_gb() >= before
    assert peak_memory_gb() == pytest.approx(before, abs=0.5)
