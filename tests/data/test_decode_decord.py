"""The decord backend: the same frames as PyAV, a deadline that works, and refusals where decord is known to be wrong."""

import importlib.util
import time

import numpy as np
import pytest

from lmm_ecr.data import decode_decord
from lmm_ecr.data.audio import AudioSpec
from lmm_ecr.data.decode import read_clip
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.errors import ClipError, ConfigError
from tests.data.media import remux, tone, write_clip

needs_decord = pytest.mark.skipif(importlib.util.find_spec("decord") is None, reason="decord is not installed")

KINDS = {
    "bframes.mp4": {},
    "short_gop.mp4": {"num_frames": 150, "gop": 12},
    "open_gop.mp4": {"num_frames": 150, "gop": 12, "options": {"x264-params": "open-gop=1"}},
    "fragmented.mp4": {"gop": 20, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mkv": {"num_frames": 100, "gop": 25},
    "a.mov": {"rotation": 90},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "vp8.webm": {
        "codec": "libvpx",
        "num_frames": 100,
        "gop": 40,
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4", "b": "200k"},
    },
    "one_frame.mp4": {"num_frames": 1},
    "two_frames.mp4": {"num_frames": 2},
    "variable.mp4": {"times": np.cumsum(np.random.default_rng(0).choice([1 / 60, 0.013, 0.2], 60)) - 1 / 60},
    "delayed.mp4": {"start": 0.7, "audio": tone(440, 2)},
    "it's: ü.mp4": {},
}


def check_same(path):
    for sampling in (FrameSampling(num_frames=4, fps=2.0), FrameSampling(mode="uniform", num_frames=17)):
        ours = read_clip(path, sampling, audio=AudioSpec())
        theirs = read_clip(path, sampling, audio=AudioSpec(), backend="decord")
        np.testing.assert_array_equal(theirs.frames, ours.frames)
        np.testing.assert_array_equal(theirs.timestamps, ours.timestamps)
        assert theirs.duration == ours.duration
        assert (theirs.audio is None) == (ours.audio is None)


@needs_decord
@pytest.mark.parametrize("name", KINDS)
def test_same_frames(tmp_path, name):
    check_same(write_clip(tmp_path / name, **KINDS[name]))


@needs_decord
@pytest.mark.parametrize("gop", [1000, 50])
def test_same_frames_of_a_trimmed_file(tmp_path, gop):
    # decord's own frame count is too large here, and asking for its last frame can spin for ever
    whole = write_clip(tmp_path / "whole.mp4", num_frames=420, gop=gop)
    path = remux(whole, tmp_path / "trimmed.mp4", shift=-4.37)
    check_same(path)
    frames = [
        read_clip(path, FrameSampling(mode="uniform", num_frames=300), backend=backend).frames[-1]
        for backend in ("pyav", "decord")
    ]
    np.testing.assert_array_equal(*frames)


@needs_decord
def test_scaled_down(tmp_path):
    path = write_clip(tmp_path / "large.mp4", size=(640, 480), num_frames=10)
    ours, theirs = (
        read_clip(path, FrameSampling(), max_pixels=80 * 60, backend=backend).frames for backend in ("pyav", "decord")
    )
    assert theirs.shape == ours.shape == (8, 120, 160, 3)
    # not equal: decord's frames are scaled after the conversion to RGB, with colours in full resolution
    assert np.abs(theirs.astype(int) - ours).mean() < 5


@needs_decord
def test_wrong_frames_are_refused(tmp_path):
    for name in ("a.ts", "a.avi"):
        with pytest.raises(ClipError, match="pyav") as caught:
            read_clip(write_clip(tmp_path / name), FrameSampling(), backend="decord")
        assert caught.value.reason == "unreadable"


@needs_decord
def test_damage_is_an_error(tmp_path):
    path = write_clip(tmp_path / "a.mp4", num_frames=240, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ClipError, match="decord") as caught:
        read_clip(path, FrameSampling(), backend="decord")
    assert caught.value.reason == "unreadable"


@needs_decord
@pytest.mark.parametrize("forever", ["while True: pass", "import time; time.sleep(100)"])
def test_deadline(tmp_path, monkeypatch, forever):
    monkeypatch.setattr(decode_decord, "_CHILD", forever)
    started = time.monotonic()
    with pytest.raises(ClipError) as caught:
        read_clip(write_clip(tmp_path / "a.mp4"), FrameSampling(), backend="decord", timeout_seconds=2)
    assert caught.value.reason == "timeout"
    assert time.monotonic() - started < 10


def test_missing_package(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install decord"):
        read_clip(tmp_path / "a.mp4", FrameSampling(), backend="decord")
