"""Reading many clips: no leak, and the same clips from dataloader workers however they are started."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
from torch.utils.data import DataLoader, Dataset

from lmm_ecr.data.audio import AudioSpec
from lmm_ecr.data.decode import probe_clip, read_clip
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.errors import ClipError
from tests.data.media import tone, write_clip


class Clips(Dataset):
    """Frames and sound of each path; the reason where a clip is refused."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int):
        try:
            clip = read_clip(self.paths[row], FrameSampling(), audio=AudioSpec())
        except ClipError as error:
            return error.reason
        return clip.frames, clip.audio


def first(batch: list):
    return batch[0]


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    files = [write_clip(tmp_path / f"{n}.mp4", num_frames=30 + n, audio=tone(300 + 50 * n, 1)) for n in range(6)]
    (tmp_path / "empty.mp4").write_bytes(b"")
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(files[0].read_bytes()[:2000])
    return [*files, tmp_path / "empty.mp4", cut]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_dataloader_workers(paths, method):
    here = [Clips(paths)[row] for row in range(len(paths))]  # PyAV has been used in the parent before the fork
    loader = DataLoader(
        Clips(paths), num_workers=2, multiprocessing_context=method, batch_size=1, collate_fn=first, timeout=120
    )
    there = list(loader)
    assert there[6:] == here[6:] == ["empty", "unreadable"]
    for (frames, audio), (worker_frames, worker_audio) in zip(here[:6], there[:6], strict=True):
        np.testing.assert_array_equal(worker_frames, frames)
        np.testing.assert_array_equal(worker_audio, audio)


def test_no_leak(tmp_path):
    """400 openings of good clips and as many of broken ones: memory, descriptors and threads stay."""
    good = write_clip(tmp_path / "good.mp4", num_frames=12, size=(320, 240), audio=tone(440, 1))
    damaged = tmp_path / "damaged.mkv"
    data = bytearray(write_clip(tmp_path / "a.mkv", num_frames=30, audio=tone(440, 1)).read_bytes())
    data[len(data) // 2 : len(data) * 2 // 3] = bytes(len(data) * 2 // 3 - len(data) // 2)
    damaged.write_bytes(data)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(good.read_bytes()[:3000])

    def read_all():
        assert read_clip(good, FrameSampling(num_frames=4), audio=AudioSpec()).damaged is None
        assert probe_clip(good).has_audio
        assert read_clip(damaged, FrameSampling(num_frames=4), audio=AudioSpec()).damaged
        with pytest.raises(ClipError):
            read_clip(broken, FrameSampling())

    process = psutil.Process()
    usage = []
    for _ in range(3):
        for _ in range(67):
            read_all()
        gc.collect()
        usage.append((process.memory_info().rss / 2**20, len(os.listdir("/proc/self/fd")), process.num_threads()))
    assert usage[2][0] - usage[0][0] < 20  # MiB; an unclosed container keeps 0.1 MiB, 270 of them 30
    assert usage[2][1:] == usage[0][1:]


def test_importing_does_not_import_pyav():
    modules = "lmm_ecr.data.decode, lmm_ecr.data.audio"
    program = f"import sys, {modules}; assert not {{'av', 'torch', 'decord', 'librosa'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).resolve().parents[2])


def test_closed_after_use(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    before = len(os.listdir("/proc/self/fd"))
    read_clip(path, FrameSampling())
    with pytest.raises(ClipError):
        read_clip(path, FrameSampling(), timeout_seconds=1e-6)
    assert len(os.listdir("/proc/self/fd")) == before
    assert av.logging.get_level() is None


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc, which Linux has")
@pytest.mark.parametrize("max_pixels", [None, 600])
def test_reading_leaves_no_thread_that_a_forked_worker_would_wait_for(tmp_path, max_pixels):
    """FFmpeg's conversions have threads by default: freed in a forked process, they are waited for without end."""
    path = write_clip(tmp_path / "a.mp4", num_frames=60)
    code = f"""
import gc, os
gc.disable()  # frames may lie in cycles until they are collected, in the forked process perhaps
from lmm_ecr.data.decode import read_clip
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.data.synthetic import SyntheticSpec, draw_clips, write_clip
write_clip({str(tmp_path / "b.mp4")!r}, draw_clips(SyntheticSpec(num_train=1, num_eval=0))[0][0])
before = len(os.listdir("/proc/self/task"))
for _ in range(3):
    kept = read_clip({str(path)!r}, FrameSampling(), max_pixels={max_pixels})
assert len(os.listdir("/proc/self/task")) == before
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[2])
