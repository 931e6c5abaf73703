"""The first pass over a clip: which frames exist and when they are shown, without decoding a picture.

The packets tell the truth where headers do not: frame counts are absent from Matroska, WebM, FLV and MPEG-TS headers
and too large for trimmed MP4 files, and average rates say nothing about clips with a variable rate. The sound is
decoded on the same way through the file.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from .audio import AudioCollector, AudioSpec
from .media import Budget, Damage, Media, open_media, require_video, seconds
from .mp4_mirror import is_mirrored

if TYPE_CHECKING:
    import av

# Containers that store no presentation times: those FFmpeg makes up are wrong where pictures are reordered.
UNTIMED_FORMATS = {"avi"}

# Containers whose header states the duration: a file that ends earlier has been cut.
FORMATS_WITH_DURATION = {"mov", "mp4", "matroska", "webm", "flv"}

# How much earlier the data may end than the header says, in seconds and as a share, before the file counts as cut.
DURATION_SLACK = (0.5, 0.01)


@dataclass(eq=False)
class FrameIndex:
    """What a pass over the packets says about the frames of a clip.

    pts: int64 [N] sorted, distinct presentation times of the packets to be shown, in units of `time_base` seconds.
    keys: int64 [K] sorted presentation times of key frames.
    width, height: stored size in pixels (before rotation).
    last_duration: how long the last frame lasts, in units of `time_base`.
    complete: False if the list may not be what a decoder shows (missing or repeated time stamps, a start without key
        frame).
    hidden: packets that are decoded but not shown exist (edit lists, hidden reference frames).
    open_gop: some pictures follow a key frame in the file but are shown before it.
    mirrored: stored pictures are shown mirrored, top to bottom, before they are rotated.
    """

    pts: np.ndarray
    keys: np.ndarray
    time_base: Fraction
    width: int
    height: int
    last_duration: int
    fps: float
    format: str
    complete: bool
    hidden: bool
    open_gop: bool
    mirrored: bool = False

    @property
    def times(self) -> np.ndarray:
        """Seconds from the first frame, float64 [N]."""
        return to_seconds(self.pts, self.time_base, self.pts[0]) if len(self.pts) else np.zeros(0)

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        if not len(self.pts):
            return 0.0
        return float((int(self.pts[-1]) - int(self.pts[0]) + self.last_duration) * self.time_base)


def to_seconds(pts: np.ndarray, time_base: Fraction, origin: int) -> np.ndarray:
    """float64 seconds after `origin`; pts and origin in units of `time_base`."""
    return (pts - origin) * time_base.numerator / np.float64(time_base.denominator)


def index_clip(
    path: str, audio: AudioSpec | None, budget: Budget, damage: Damage
) -> tuple[FrameIndex, AudioCollector | None, float | None]:
    """Read all packets once: the frame index, and the sound if asked for (decoded on the way).

    Returns the index, the filled audio collector (None: no sound asked for or no track) and the container time of the
    first frame in seconds. Raises ClipError as `open_media` and `require_video` do.
    """
    with open_media(path) as media:
        video = require_video(media)
        collector = AudioCollector(media.audio, audio) if audio is not None and media.audio is not None else None
        listed = _PacketList(video)
        span = _Span()
        for packet in media.packets(budget=budget, damage=damage):
            span.add(packet)
            if packet.stream is video:
                listed.add(packet)
            elif collector is not None and packet.stream is media.audio and not collector.has_enough(listed.first):
                collector.add(packet)
        index = listed.index(media)
        _check_duration(media, index, span, damage)
        origin = listed.first
        if collector is not None:
            collector.flush()
    return index, collector, origin


class _PacketList:
    """Collects the video packets of one pass."""

    def __init__(self, video: "av.VideoStream"):
        self._video = video
        self._vp8 = video.codec_context.name == "vp8"
        self._pts: list[int] = []
        self._keys: list[int] = []
        self._last = (-(2**63), 0)
        self._untimed = self._hidden = self._headless = self._leading = False
        self._first_pts: int | None = None

    @property
    def first(self) -> float | None:
        return seconds(self._first_pts, self._video.time_base)

    def add(self, packet: "av.Packet") -> None:
        pts = packet.pts
        if pts is None:
            self._untimed = True
            return
        if packet.is_keyframe:
            self._keys.append(pts)
        elif not self._keys:
            self._headless = True
        elif pts < self._keys[-1]:
            self._leading = True
        if packet.is_discard or (self._vp8 and not bytes(packet)[0] & 0x10):  # RFC 6386 9.1: show_frame
            self._hidden = True
            return
        self._pts.append(pts)
        self._last = max(self._last, (pts, packet.duration or 0))
        if self._first_pts is None or pts < self._first_pts:
            self._first_pts = pts

    def index(self, media: Media) -> FrameIndex:
        video = self._video
        pts = np.unique(np.asarray(self._pts, dtype=np.int64))
        ambiguous = len(pts) < len(self._pts)
        keys = np.unique(np.asarray(self._keys, dtype=np.int64))
        last_duration = self._last[1]
        if not last_duration and len(pts) > 1:
            last_duration = round(int(pts[-1] - pts[0]) / (len(pts) - 1))
        # pictures shown before the first key frame refer to a picture that is not in the file
        headless = self._headless or (len(pts) > 0 and len(keys) > 0 and self._keys[0] > pts[0])
        return FrameIndex(
            pts=pts,
            keys=keys,
            time_base=video.time_base,
            width=video.codec_context.width,
            height=video.codec_context.height,
            last_duration=last_duration,
            fps=float(video.average_rate or 0),
            format=media.container.format.name,
            complete=not (self._untimed or headless or ambiguous or media.container.format.name in UNTIMED_FORMATS),
            hidden=self._hidden,
            open_gop=self._leading,
            mirrored="mp4" in media.container.format.name and is_mirrored(media.path, video.id),
        )


class _Span:
    """First and last time of all packets of a file, in seconds."""

    def __init__(self):
        self.start = self.end = None

    def add(self, packet: "av.Packet") -> None:
        if packet.pts is None or packet.time_base is None:
            return
        start = float(packet.pts * packet.time_base)
        end = start + float((packet.duration or 0) * packet.time_base)
        self.start = start if self.start is None else min(self.start, start)
        self.end = end if self.end is None else max(self.end, end)


def _check_duration(media: Media, index: FrameIndex, span: _Span, damage: Damage) -> None:
    stated = seconds(media.container.duration, Fraction(1, 1_000_000))
    if stated is None or span.end is None or not FORMATS_WITH_DURATION & set(media.container.format.name.split(",")):
        return
    found = span.end - span.start
    # with a variable rate the length of the last frame is not always stored with it
    longest = float(np.diff(index.pts).max() * index.time_base) if len(index.pts) > 1 else 0.0
    if stated - found > DURATION_SLACK[0] + DURATION_SLACK[1] * stated + longest:
        damage.note(f"cut: the header says {stated:.2f} s, the data end after {found:.2f} s")
