"""Intact clips of every kind: the skipping loop returns the frames and times of plain sequential decoding."""

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from lmm_ecr.data.decode import probe_clip, read_clip
from lmm_ecr.data.mp4_mirror import is_mirrored
from lmm_ecr.data.sampling import FrameSampling, sample_indices
from lmm_ecr.errors import ClipError, ConfigError
from tests.data.media import plain_decode, remux, tone, write_clip

SNAPUGC = Path(__file__).resolve().parents[2] / "../shared/data/snapugc/videos"

SAMPLINGS = [
    FrameSampling(num_frames=4, fps=2.0),
    FrameSampling(num_frames=8, fps=1.0),
    FrameSampling(mode="uniform", num_frames=5),
    FrameSampling(mode="uniform", num_frames=23),
    FrameSampling(mode="fps", fps=3),
]

VARIABLE_TIMES = np.cumsum(np.random.default_rng(0).choice([1 / 60, 1 / 30, 0.013, 0.2, 0.9], 60)) - 1 / 60


def check_equals_plain_decoding(path):
    times, frames = plain_decode(path)
    for sampling in SAMPLINGS:
        clip = read_clip(path, sampling)
        assert times[-1] <= clip.duration <= times[-1] + 1.0
        expected = sample_indices(sampling, times, clip.duration)
        np.testing.assert_allclose(clip.timestamps, times[expected], atol=1e-6)
        np.testing.assert_array_equal(clip.frames, np.stack([frames[i] for i in expected]))
        assert clip.frames.dtype == np.uint8
        assert clip.damaged is None
        assert clip.audio is None
    return times, frames


KINDS = {
    "bframes.mp4": {},
    "no_bframes.mp4": {"bframes": 0},
    "pyramid.mp4": {"num_frames": 200, "options": {"x264-params": "b-pyramid=normal:bframes=6"}},
    "short_gop.mp4": {"num_frames": 150, "gop": 12},
    "open_gop.mp4": {"num_frames": 150, "gop": 12, "options": {"x264-params": "open-gop=1"}},
    "intra_refresh.mp4": {"num_frames": 150, "options": {"x264-params": "intra-refresh=1:keyint=30"}},
    "interlaced.mp4": {"options": {"x264-params": "tff=1"}},
    "faststart.mp4": {"container_options": {"movflags": "faststart"}},
    "fragmented.mp4": {"gop": 20, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    "a.mkv": {"num_frames": 100, "gop": 25},
    "a.mov": {"num_frames": 100, "gop": 25},
    "a.flv": {"num_frames": 100, "gop": 25},
    "a.ts": {"num_frames": 100, "gop": 25},
    "h264.avi": {"num_frames": 100, "gop": 25},
    "mpeg4.avi": {"codec": "mpeg4", "gop": 12, "bframes": 2},
    "mpeg4.mp4": {"codec": "mpeg4", "gop": 12, "bframes": 2},
    "mpeg2.ts": {"codec": "mpeg2video", "gop": 12, "bframes": 2},
    "vp8.webm": {
        "codec": "libvpx",
        "num_frames": 100,
        "gop": 40,
        "options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4", "b": "200k"},
    },
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8", "deadline": "realtime"}},
    "hevc.mp4": {
        "codec": "libx265",
        "num_frames": 120,
        "gop": 30,
        "options": {"x265-params": "log-level=none:bframes=4:b-pyramid=1:temporal-layers=3"},
    },
    "a.gif": {"codec": "gif", "pix_fmt": "rgb8", "fps": 10},
    "prores.mov": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "one_frame.mp4": {"num_frames": 1},
    "two_frames.mp4": {"num_frames": 2},
    "odd_size.mp4": {"size": (97, 65), "pix_fmt": "yuv444p"},
    "tiny.mp4": {"size": (16, 16)},
    "variable.mp4": {"times": VARIABLE_TIMES},
    "variable.mkv": {"times": VARIABLE_TIMES},
    "ntsc.mp4": {"num_frames": 260, "fps": 30000 / 1001},
    "delayed.mp4": {"start": 0.7, "audio": tone(440, 2)},
    "delayed.mkv": {"start": 0.7, "audio": tone(440, 2)},
    "name with 'quotes' \"ü\" 100%: #1?.mp4": {},
}


@pytest.mark.parametrize("name", KINDS)
def test_kind_of_file(tmp_path, name):
    settings = KINDS[name]
    times, _ = check_equals_plain_decoding(write_clip(tmp_path / name, **settings))
    assert len(times) == settings.get("num_frames", 60)


@pytest.mark.parametrize("gop", [1000, 50])
def test_trimmed_by_an_edit_list(tmp_path, gop):
    whole = write_clip(tmp_path / "whole.mp4", num_frames=420, gop=gop)
    path = remux(whole, tmp_path / "trimmed.mp4", shift=-4.37)
    times, frames = check_equals_plain_decoding(path)
    assert len(times) < 420  # some frames are hidden
    clip = read_clip(path, FrameSampling(mode="uniform", num_frames=len(times)))
    np.testing.assert_array_equal(clip.frames[-1], frames[-1])
    assert probe_clip(path, count_frames=True).num_frames == len(times)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_stream_joined_in_the_middle(tmp_path, codec):
    # leading packets refer to pictures that were cut off: the first frame is the first one that can be shown
    options = {"x264-params": "open-gop=1:keyint=12:min-keyint=12"} if codec == "libx264" else None
    whole = write_clip(tmp_path / "whole.ts", codec=codec, num_frames=150, gop=12, bframes=2, options=options)
    path = remux(whole, tmp_path / "middle.ts", keep=lambda packet: packet.dts * packet.time_base > 3)
    times, _ = check_equals_plain_decoding(path)
    assert probe_clip(path, count_frames=True).num_frames == len(times)


def test_no_time_stamps_at_all(tmp_path):
    path = write_clip(tmp_path / "a.h264", format="h264")
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24", threads=1) for frame in container.decode(video=0)]
    clip = read_clip(path, FrameSampling(mode="uniform", num_frames=60))
    np.testing.assert_array_equal(clip.frames, np.stack(frames))
    np.testing.assert_allclose(np.diff(clip.timestamps), 1 / 25)  # the rate FFmpeg takes where none is known


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation(tmp_path, rotation):
    source = write_clip(tmp_path / "upright.mp4")
    upright = read_clip(source, FrameSampling())
    path = remux(source, tmp_path / "rotated.mp4", rotation=rotation)
    clip = read_clip(path, FrameSampling())
    np.testing.assert_array_equal(clip.frames, np.rot90(upright.frames, rotation // 90, axes=(1, 2)))
    info = probe_clip(path)
    assert info.rotation == rotation
    assert (info.height, info.width) == clip.frames.shape[1:3]


def test_size_changes_in_the_middle(tmp_path):
    first = write_clip(tmp_path / "first.ts", size=(96, 64))
    second = write_clip(tmp_path / "second.ts", size=(192, 128), start=3.0)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    times, frames = plain_decode(path)
    assert {frame.shape for frame in frames} == {(64, 96, 3), (128, 192, 3)}
    clip = read_clip(path, FrameSampling(mode="uniform", num_frames=8))
    wanted = sample_indices(FrameSampling(mode="uniform", num_frames=8), times)
    assert clip.frames.shape == (8, 64, 96, 3)
    np.testing.assert_allclose(clip.timestamps, times[wanted], atol=1e-6)
    for found, index in zip(clip.frames, wanted, strict=True):
        expected = frames[index].reshape(64, -1, 96, frames[index].shape[1] // 96, 3).mean(axis=(1, 3))
        assert np.abs(found - expected).mean() < 5
    np.testing.assert_array_equal(clip.frames[0], frames[wanted[0]])


def test_large_sources_are_scaled_down_while_decoding(tmp_path):
    path = write_clip(tmp_path / "large.mp4", size=(640, 480), num_frames=10, rotation=90)
    native = read_clip(path, FrameSampling(), max_pixels=640 * 480 // 4)
    assert native.frames.shape == (8, 640, 480, 3)
    scaled = read_clip(path, FrameSampling(), max_pixels=80 * 60)
    assert scaled.frames.shape == (8, 160, 120, 3)  # four times the area asked for, aspect kept
    blocks = native.frames.reshape(8, 160, 4, 120, 4, 3).mean(axis=(2, 4))
    assert np.abs(blocks - scaled.frames).mean() < 4


def test_probe(tmp_path):
    path = write_clip(tmp_path / "a.mp4", num_frames=45, fps=25, audio=tone(440, 1.8))
    info = probe_clip(path)
    assert (info.width, info.height, info.fps, info.rotation, info.has_audio) == (96, 64, 25.0, 0, True)
    assert info.num_frames is None
    assert info.duration == pytest.approx(1.8, abs=0.01)
    assert probe_clip(path, count_frames=True).num_frames == 45
    assert not probe_clip(write_clip(tmp_path / "silent.mkv")).has_audio


def test_timeout(tmp_path):
    path = write_clip(tmp_path / "a.mp4")
    with pytest.raises(ClipError, match="timeout") as caught:
        read_clip(path, FrameSampling(), timeout_seconds=1e-6)
    assert caught.value.reason == "timeout"


@pytest.mark.parametrize(
    ("name", "value"), [("backend", "opencv"), ("max_pixels", 0), ("timeout_seconds", -1), ("max_pixels", "big")]
)
def test_bad_arguments(tmp_path, name, value):
    with pytest.raises(ConfigError, match=name):
        read_clip(tmp_path / "a.mp4", FrameSampling(), **{name: value})


@pytest.mark.skipif(not SNAPUGC.is_dir(), reason="the SnapUGC clips are not on this machine")
def test_real_clips():
    paths = sorted(SNAPUGC.glob("*.mp4"))
    assert paths
    for path in paths:
        times, frames = plain_decode(path)
        for sampling in (FrameSampling(), FrameSampling(mode="uniform", num_frames=16)):
            clip = read_clip(path, sampling)
            wanted = sample_indices(sampling, times)
            np.testing.assert_array_equal(clip.frames, np.stack([frames[i] for i in wanted]))
            assert clip.damaged is None


# 2 x 2 of a display matrix (16.16 fixed point, row by row) -> the picture shown for a stored one [T, H, W, 3], as the
# transpose, hflip and vflip filters of ffmpeg's automatic rotation make it.
MIRRORS = {
    "hflip": ((-1, 0, 0, 1), lambda frames: frames[:, :, ::-1]),
    "vflip": ((1, 0, 0, -1), lambda frames: frames[:, ::-1]),
    "transpose": ((0, 1, 1, 0), lambda frames: frames.swapaxes(1, 2)),
    "anti-transpose": ((0, -1, -1, 0), lambda frames: frames.swapaxes(1, 2)[:, ::-1, ::-1]),
}


@pytest.mark.parametrize("backend", ["pyav", "decord"])
@pytest.mark.parametrize("size", [(96, 64), (64, 64)])
@pytest.mark.parametrize("name", MIRRORS)
def test_mirrored_files(tmp_path, name, backend, size):
    """Bug: a mirrored picture was shown as a turned one."""
    if backend == "decord":
        pytest.importorskip("decord")
    source = write_clip(tmp_path / "upright.mp4", size=size)
    upright = read_clip(source, FrameSampling())
    matrix, shown = MIRRORS[name]
    data = bytearray(remux(source, tmp_path / "mirrored.mp4", rotation=90).read_bytes())
    place = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0 box: times, ids and duration; layer, volume, reserved
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path = tmp_path / "mirrored.mp4"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_clip(path, FrameSampling(), backend=backend).frames, shown(upright.frames))
    info = probe_clip(path)
    assert (info.height, info.width) == shown(upright.frames).shape[1:3]


def test_a_mirror_is_looked_for_in_any_bytes(tmp_path):
    """Damaged headers say nothing; they raise nothing and end."""
    data = remux(write_clip(tmp_path / "a.mp4", num_frames=5), tmp_path / "b.mp4", rotation=90).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.mp4"
    for _ in range(100):
        bad = bytearray(data[: rng.integers(0, len(data) + 1)])
        for place in rng.integers(0, max(1, len(bad)), 40 if bad else 0):
            bad[place] = rng.integers(0, 256)
        path.write_bytes(bad)
        assert is_mirrored(path, 1) in (True, False)
    path.write_bytes(data)
    assert not is_mirrored(path, 1)
