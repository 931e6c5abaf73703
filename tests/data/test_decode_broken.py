"""Broken and unusual files: each is read as far as it can be, and says so, or is refused with the right reason."""

import os

import av
import numpy as np
import pytest

from lmm_ecr.data.audio import AudioSpec
from lmm_ecr.data.decode import probe_clip, read_clip
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.errors import ClipError
from tests.data.media import picture, plain_decode, remux, tone, write_clip

FASTSTART = {"movflags": "faststart"}
SAMPLINGS = [FrameSampling(), FrameSampling(mode="uniform", num_frames=5)]


def make_clip(path, **changes):
    settings = {"num_frames": 240, "size": (160, 120), "audio": tone(440, 8), "container_options": FASTSTART}
    return write_clip(path, **(settings | changes))


def cut(path, share: float):
    data = path.read_bytes()
    target = path.with_name(f"cut_{path.name}")
    target.write_bytes(data[: int(len(data) * share)])
    return target


def overwrite(path, start: float, end: float, content):
    """Replace the bytes between two shares of the file by `content(count)`."""
    data = bytearray(path.read_bytes())
    first, last = int(len(data) * start), int(len(data) * end)
    data[first:last] = content(last - first)
    target = path.with_name(f"overwritten_{path.name}")
    target.write_bytes(data)
    return target


def tolerant_decode(path) -> dict[float, np.ndarray]:
    """Plain sequential decoding that goes on after damaged packets: frames by seconds from the first packet."""
    frames = {}
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.thread_type = "NONE"
        first = None
        for packet in container.demux(video):
            if packet.pts is not None:
                first = packet.pts if first is None else min(first, packet.pts)
            try:
                decoded = packet.decode()
            except av.FFmpegError:
                continue
            for frame in decoded:
                if frame.pts is None:
                    continue
                frames[frame.pts] = frame.to_ndarray(format="rgb24", threads=1)
        return {round(float((pts - first) * video.time_base), 4): frame for pts, frame in frames.items()}


def check_true_frames(path, clip):
    """Every frame is the picture that plain decoding shows at its time stamp."""
    frames = tolerant_decode(path)
    for time, frame in zip(clip.timestamps, clip.frames, strict=True):
        np.testing.assert_array_equal(frame, frames[round(float(time), 4)])


def reason(path, **arguments) -> str:
    with pytest.raises(ClipError) as caught:
        read_clip(path, FrameSampling(), **arguments)
    assert str(path) in str(caught.value)
    with pytest.raises(ClipError) as probed:
        probe_clip(path)
    assert probed.value.reason == caught.value.reason
    return caught.value.reason


def write_bytes(path, data: bytes):
    path.write_bytes(data)
    return path


REFUSED = {
    "missing": lambda d: (d / "missing.mp4", "missing"),
    "file in a file": lambda d: (write_bytes(d / "a.mp4", b"x") / "b.mp4", "unreadable"),
    "NUL in the name": lambda d: ("a\0b.mp4", "unreadable"),
    "directory": lambda d: (d, "not_a_file"),
    "empty": lambda d: (write_bytes(d / "a.mp4", b""), "empty"),
    "one byte": lambda d: (write_bytes(d / "a.mp4", b"\0"), "unreadable"),
    "random bytes": lambda d: (write_bytes(d / "a.mp4", np.random.default_rng(0).bytes(50_000)), "unreadable"),
    "text": lambda d: (write_bytes(d / "a.mp4", b"This is not a video.\n" * 100), "unreadable"),
    "web page": lambda d: (write_bytes(d / "a.mp4", b"<!DOCTYPE html><html><body>404</body></html>"), "unreadable"),
    "playlist": lambda d: (
        write_bytes(d / "a.mp4", f"#EXTM3U\n#EXTINF:8,\n{make_clip(d / 'b.ts')}\n#EXT-X-ENDLIST\n".encode()),
        "unreadable",
    ),
    "list of files": lambda d: (
        write_bytes(d / "a.mp4", f"ffconcat version 1.0\nfile {make_clip(d / 'b.mp4').name}\n".encode()),
        "unreadable",
    ),
    "sound only": lambda d: (write_clip(d / "a.mp4", num_frames=0, audio=tone(440, 1)), "no_video"),
    "wav": lambda d: (write_clip(d / "a.wav", num_frames=0, audio=tone(440, 1), audio_codec="pcm_s16le"), "no_video"),
    "png": lambda d: (write_picture(d / "a.mp4", "png", "rgb24"), "no_video"),
    "jpeg": lambda d: (write_picture(d / "a.mp4", "mjpeg", "yuvj420p"), "no_video"),
    "half, header at the end": lambda d: (cut(make_clip(d / "a.mp4", container_options={}), 0.5), "unreadable"),
    "half a header": lambda d: (cut(make_clip(d / "a.mp4"), 0.02), "no_frames"),
    "no key frame": lambda d: (
        remux(make_clip(d / "b.mp4"), d / "a.mp4", keep=lambda p: p.stream.type == "audio" or not p.is_keyframe),
        "no_frames",
    ),
}


def write_picture(path, codec: str, pix_fmt: str):
    encoder = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 96, 64, pix_fmt, 1
    frame = av.VideoFrame.from_ndarray(picture(0, 96, 64), format="rgb24").reformat(format=pix_fmt, threads=1)
    packets = [*encoder.encode(frame), *encoder.encode(None)]
    return write_bytes(path, b"".join(bytes(packet) for packet in packets))


@pytest.mark.parametrize("kind", REFUSED)
def test_refused(tmp_path, kind):
    path, expected = REFUSED[kind](tmp_path)
    assert reason(path, audio=AudioSpec()) == expected


def test_pipe_does_not_block(tmp_path):
    path = tmp_path / "pipe.mp4"
    os.mkfifo(path)
    assert reason(path) == "not_a_file"


def test_pictures_larger_than_the_header_says(tmp_path):
    path = write_clip(tmp_path / "a.mov", codec="mjpeg", pix_fmt="yuvj420p", num_frames=1)
    data = path.read_bytes()
    at = data.index(b"\xff\xc0") + 5  # height and width in the frame header of JPEG (ITU-T T.81, B.2.2)
    assert data[at : at + 4] == bytes([0, 64, 0, 96])
    path.write_bytes(data[:at] + (9000).to_bytes(2, "big") * 2 + data[at + 4 :])
    with pytest.raises(ClipError) as caught:
        read_clip(path, FrameSampling())
    assert caught.value.reason in ("too_large", "no_frames")


def test_limit_on_size(tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", num_frames=1)
    monkeypatch.setattr("lmm_ecr.data.media.MAX_SOURCE_PIXELS", 96 * 64)
    assert read_clip(path, FrameSampling()).frames.shape == (8, 64, 96, 3)
    monkeypatch.setattr("lmm_ecr.data.media.MAX_SOURCE_PIXELS", 96 * 64 - 1)
    assert reason(path) == "too_large"


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(
    ("name", "share"), [("a.mp4", 0.5), ("a.mp4", 0.9), ("a.mkv", 0.5), ("a.mkv", 0.9), ("a.flv", 0.5)]
)
def test_cut_file(tmp_path, name, share, sampling):
    whole = make_clip(tmp_path / name, container_options=FASTSTART if name == "a.mp4" else {}, gop=30)
    path = cut(whole, share)
    clip = read_clip(path, sampling, audio=AudioSpec())
    assert "cut: the header says 8.0" in clip.damaged
    assert 8 * share - 1 < clip.duration < 8 * share + 0.5
    assert clip.timestamps[-1] < clip.duration
    assert len(clip.audio) / 16_000 == pytest.approx(clip.duration, abs=0.5)
    check_true_frames(path, clip)
    with pytest.raises(ClipError) as caught:
        read_clip(path, sampling, allow_damaged=False)
    assert caught.value.reason == "damaged"
    assert "the header says" in caught.value.detail


def test_half_of_a_fragmented_file(tmp_path):
    whole = make_clip(tmp_path / "a.mp4", gop=30, container_options={"movflags": "frag_keyframe+empty_moov"})
    path = cut(whole, 0.5)
    clip = read_clip(path, FrameSampling(mode="uniform", num_frames=100))
    assert 3.5 < clip.duration < 4.5
    check_true_frames(path, clip)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_flipped_bytes(tmp_path, name, seed, sampling):
    path = make_clip(tmp_path / name, container_options=FASTSTART if name == "a.mp4" else {}, gop=30)
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for at in rng.integers(len(data) // 5, len(data), 200):
        data[at] = rng.integers(256)
    path.write_bytes(data)
    clip = read_clip(path, sampling, audio=AudioSpec())
    assert clip.damaged
    assert len(clip.frames) == sampling.num_frames
    assert (np.diff(clip.timestamps) >= 0).all()
    check_true_frames(path, clip)
    assert len(clip.audio) / 16_000 == pytest.approx(8.0, abs=0.5)  # what is lost is silence, the rest stays in place


def test_nearest_earlier_frame_stands_in_for_a_lost_one(tmp_path):
    path = overwrite(make_clip(tmp_path / "a.mp4", gop=30), 0.4, 0.6, bytes)
    clip = read_clip(path, FrameSampling())
    frames = tolerant_decode(path)
    for wanted, (time, frame) in enumerate(zip(clip.timestamps, clip.frames, strict=True)):
        expected = max(t for t in frames if t <= wanted + 5e-4)
        assert time == pytest.approx(expected, abs=1e-4)
        np.testing.assert_array_equal(frame, frames[expected])
    lost = [wanted for wanted, time in enumerate(clip.timestamps) if abs(time - wanted) > 0.02]
    assert lost
    assert all(f"{wanted:.2f}" in clip.damaged for wanted in lost)
    with pytest.raises(ClipError, match="stand in"):
        read_clip(path, FrameSampling(), allow_damaged=False)


@pytest.mark.parametrize("seed", range(30))
def test_random_damage_never_escapes(tmp_path, seed):
    """Any damage ends in frames or in ClipError, soon, never in another exception."""
    rng = np.random.default_rng(seed)
    suffix = ["mp4", "mkv", "ts", "flv", "webm", "avi"][seed % 6]
    codec = {"webm": {"codec": "libvpx-vp9", "audio_codec": "libopus", "audio_rate": 48_000}}.get(suffix, {})
    path = write_clip(tmp_path / f"a.{suffix}", num_frames=40, gop=15, audio=tone(440, 1.3), **codec)
    data = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        at, count = int(rng.integers(len(data))), int(rng.integers(1, 400))
        match rng.integers(4):
            case 0:
                data[at : at + count] = bytes(min(count, len(data) - at))
            case 1:
                data[at : at + count] = rng.bytes(min(count, len(data) - at))
            case 2:
                del data[at : at + count]
            case 3:
                data[at:at] = data[max(0, at - count) : at]
    path.write_bytes(data)
    outcomes = set()
    for sampling in SAMPLINGS:
        try:
            clip = read_clip(path, sampling, audio=AudioSpec(), timeout_seconds=20)
        except ClipError as error:
            outcomes.add(error.reason)
        else:
            outcomes.add("read")
            assert clip.frames.shape[0] == sampling.num_frames
            assert np.isfinite(clip.timestamps).all()
    assert outcomes <= {"read", "unreadable", "no_video", "no_frames", "too_large"}


def test_intact_neighbours_are_not_called_damaged(tmp_path):
    clip = read_clip(make_clip(tmp_path / "a.mp4"), FrameSampling(), audio=AudioSpec(), allow_damaged=False)
    assert clip.damaged is None
    assert clip.audio.shape == (128_000,)
    short = write_clip(tmp_path / "b.mp4", num_frames=240, audio=tone(440, 2))  # sound ends early, nothing is damaged
    clip = read_clip(short, FrameSampling(), audio=AudioSpec(), allow_damaged=False)
    assert len(clip.audio) == pytest.approx(32_000, abs=1100)
    long = write_clip(tmp_path / "c.mp4", num_frames=30, audio=tone(440, 4))  # and so if it goes on
    times, _ = plain_decode(long)
    clip = read_clip(long, FrameSampling(mode="uniform", num_frames=2), audio=AudioSpec(), allow_damaged=False)
    assert clip.duration == pytest.approx(times[-1] + 1 / 30)
    assert len(clip.audio) == pytest.approx(64_000, abs=1100)
