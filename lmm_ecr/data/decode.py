"""From a video file to frames, their times and the sound: `read_clip` and `probe_clip`.

A clip that cannot be read ends in `ClipError` with one of these reasons:

    missing      no such file
    not_a_file   a directory, pipe or device
    empty        zero bytes
    unreadable   not a media file, header damaged, no decoder for it, or a kind the chosen backend cannot read
    no_video     sound only, a cover picture, or an image file
    too_large    pictures larger than any real video format
    no_frames    a video stream of which not one picture can be decoded
    damaged      partly readable, and the caller does not allow that
    timeout      not read in the time allowed

A model family's processor may refuse a clip that was read, with a reason of its own:

    aspect_ratio frames too long and narrow (Qwen2.5-VL: more than 200 to 1)
"""

import os
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..errors import ClipError
from .audio import AudioSpec
from .decode_decord import decord_reader
from .decode_pyav import FrameStore, decode_by_order, decode_frames, survey
from .frame_index import FrameIndex, index_clip, to_seconds
from .media import Budget, Damage, decode, open_media, require_video, seconds
from .sampling import FrameSampling, check_choice, check_positive, sample_indices

BACKENDS = ("pyav", "decord")


@dataclass(frozen=True)
class ClipInfo:
    """What a file says about itself.

    width, height: pixels as displayed, after rotation (pixels that are not square are left as stored).
    duration: seconds; 0.0 if unknown. num_frames: exact, or None if only the header was read.
    fps: average frames per second; 0.0 if unknown.
    rotation: degrees counter-clockwise by which the stored picture is turned: 0, 90, 180 or 270.
    has_audio: whether there is a sound track.
    """

    width: int
    height: int
    duration: float
    num_frames: int | None
    fps: float
    rotation: int
    has_audio: bool


@dataclass(eq=False)
class Clip:
    """What a model sees and hears of a clip.

    frames: uint8 [T, H, W, 3], RGB, mirrored and rotated for display as the `ffmpeg` program does.
    timestamps: float64 [T], seconds from the first frame of the clip to each of `frames`.
    audio: float32 [S] in [-1, 1], mono, 16 kHz, starting at the first frame of the clip; None: no sound track or not
        asked for.
    duration: seconds from the first frame to the end of the last readable one.
    damaged: None for an intact file, else what could not be read. Every frame is a true picture of its time stamp;
        where a wanted picture could not be decoded, the nearest earlier one stands in (before the first readable
        picture: that one), with its own time, and this text says so.
    """

    frames: np.ndarray
    timestamps: np.ndarray
    audio: np.ndarray | None
    duration: float
    damaged: str | None


def probe_clip(path: str | os.PathLike, count_frames: bool = False, *, timeout_seconds: float = 60.0) -> ClipInfo:
    """Size, duration and rate from the header; the rotation from the first picture, the only one that is decoded.

    count_frames: read all packets (without decoding them), for an exact number of frames and duration.
    Raises ClipError: see the module's list; no_frames if no picture can be decoded.
    """
    path = os.fspath(path)
    budget, damage = Budget(path, timeout_seconds), Damage()
    with open_media(path) as media:
        video = require_video(media)
        frame = _first_frame(media, video, budget, damage)
        turns = round(frame.rotation / 90) % 4
        size = (video.codec_context.width or frame.width, video.codec_context.height or frame.height)
        duration = seconds(video.duration, video.time_base)
        if duration is None and media.container.duration is not None:
            duration = media.container.duration / 1_000_000
        fps = float(video.average_rate or 0)
        has_audio = media.audio is not None
    num_frames = None
    if count_frames:
        index, _, _ = index_clip(path, None, budget, damage)
        num_frames, duration = len(index.pts), index.duration
        if not index.complete:
            pts, _ = survey(path, index, budget, damage)
            num_frames, duration = len(pts), _end(pts, index)
    width, height = size if turns % 2 == 0 else size[::-1]
    return ClipInfo(width, height, duration or 0.0, num_frames, fps, 90 * turns, has_audio)


def read_clip(
    path: str | os.PathLike,
    sampling: FrameSampling,
    *,
    audio: AudioSpec | None = None,
    max_pixels: int | None = None,
    backend: Literal["pyav", "decord"] = "pyav",
    timeout_seconds: float = 60.0,
    allow_damaged: bool = True,
) -> Clip:
    """Read the frames `sampling` asks for, and the sound `audio` asks for (None: no sound).

    max_pixels: the area (width * height) to which the caller will resize. Sources of more than four times that area are
        scaled down to four times it while decoding, which bounds the memory; other frames keep their size.
    backend: "pyav", or "decord" in a process of its own (slower by the start of a process, no tolerance for damage; the
        same frames, but for colours at the edges of odd-sized and interlaced pictures and of scaled ones; raises
        ConfigError if decord is not installed).
    timeout_seconds: for the whole clip. A read that the file system never answers is not interrupted.
    allow_damaged: False turns every damage into ClipError "damaged".

    Raises ClipError: see the module's list.
    """
    check_choice("backend", backend, BACKENDS)
    check_positive("timeout_seconds", timeout_seconds)
    if max_pixels is not None:
        check_positive("max_pixels", max_pixels)
    path = os.fspath(path)
    if backend == "decord":
        read_frames = decord_reader()
    else:
        read_frames = _read_frames
    budget, damage = Budget(path, timeout_seconds), Damage()
    index, collector, origin = index_clip(path, audio, budget, damage)
    frames, timestamps, duration = read_frames(path, index, sampling, max_pixels, budget, damage)
    samples = None
    if collector is not None:
        samples = collector.finish(origin)
        _report_audio(collector.damage, samples, damage)
    text = _describe(damage)
    if text and not allow_damaged:
        raise ClipError(path, "damaged", text)
    return Clip(frames, timestamps, samples, duration, text)


def check_decoder(name: str) -> None:
    """Raise ConfigError for a backend that is not known or not installed."""
    check_choice("decoder", name, BACKENDS)
    if name == "decord":
        decord_reader()


def _read_frames(
    path: str, index: FrameIndex, sampling: FrameSampling, max_pixels: int | None, budget: Budget, damage: Damage
) -> tuple[np.ndarray, np.ndarray, float]:
    """Frames, their times and the duration of the clip, as in `Clip`."""
    if index.complete and len(index.pts):
        wanted = index.pts[sample_indices(sampling, index.times, index.duration)]
        frames = decode_frames(path, index, wanted, max_pixels, budget, damage)
        if frames is not None:
            return frames, to_seconds(wanted, index.time_base, index.pts[0]), index.duration
    found = Damage()
    pts, order = survey(path, index, budget, found)
    damage.add(found)
    return _read_surveyed(path, index, pts, order, sampling, max_pixels, budget, damage)


def _read_surveyed(
    path: str,
    index: FrameIndex,
    pts: np.ndarray,
    order: np.ndarray,
    sampling: FrameSampling,
    max_pixels: int | None,
    budget: Budget,
    damage: Damage,
) -> tuple[np.ndarray, np.ndarray, float]:
    """`_read_frames` once it is known which pictures the decoder shows: those at `pts`, given out in `order`."""
    known = index.pts if index.complete and len(index.pts) else pts
    duration = _end(known, index)
    wanted = known[sample_indices(sampling, to_seconds(known, index.time_base, known[0]), duration)]
    positions = np.maximum(np.searchsorted(pts, wanted, side="right") - 1, 0)
    store = FrameStore(path, order[positions], index, max_pixels)
    decode_by_order(path, store, budget, Damage())
    if store.missing:
        raise ClipError(path, "no_frames", "the decoder did not repeat what it showed before")
    _report_corrupt(store, damage)
    shown = pts[positions]
    replaced = np.unique(wanted[shown != wanted])
    if len(replaced):
        times = ", ".join(f"{time:.2f}" for time in to_seconds(replaced, index.time_base, known[0]))
        damage.note(f"the frames at {times} s cannot be decoded, the nearest earlier ones stand in")
    return store.frames, to_seconds(shown, index.time_base, known[0]), duration


def _first_frame(media, video, budget, damage):
    for packet in media.packets(video, budget=budget, damage=damage):
        for frame in decode(video, packet, damage):
            return frame
    for frame in decode(video, None, damage):
        return frame
    raise ClipError(media.path, "no_frames", damage.first_error or "the decoder shows no picture")


def _end(pts: np.ndarray, index: FrameIndex) -> float:
    last = index.last_duration or round(int(pts[-1] - pts[0]) / max(1, len(pts) - 1))
    return float((int(pts[-1] - pts[0]) + last) * index.time_base)


def _report_corrupt(store: FrameStore, damage: Damage) -> None:
    if store.corrupt:
        damage.note(f"the decoder marks {store.corrupt} of the frames as corrupt")


def _report_audio(found: Damage, samples: np.ndarray | None, damage: Damage) -> None:
    if found.packets:
        what = "nothing can be decoded" if samples is None else f"{found.packets} packets left out"
        damage.note(f"sound: {what} ({found.first_error})")
    for note in found.notes:
        damage.note(f"sound: {note}")


def _describe(damage: Damage) -> str | None:
    notes = list(damage.notes)
    if damage.packets:
        notes.insert(0, f"errors in {damage.packets} video packets ({damage.first_error})")
    return "; ".join(notes) or None
