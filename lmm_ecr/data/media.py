"""Opening media files with PyAV: early refusals, choice of streams, and loops that survive damaged packets.

PyAV must be closed explicitly and used with one thread next to torch; the containers here are context managers and
nothing outlives them, so everything works in forked and spawned dataloader workers.

FFmpeg answers damaged files with nearly any exception PyAV can translate an error into (InvalidDataError, EOFError,
BlockingIOError, MemoryError, UnicodeDecodeError, IndexError were all seen on randomly damaged files). That is why the
four calls that reach into a file (open, demux, decode, seek) catch `Exception`; each is alone in its `try`.
"""

import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import ClipError

if TYPE_CHECKING:
    import av

# Largest picture that is decoded, in pixels: DCI 8K, the largest format sold. A decoder may hold 16 reference pictures,
# at this size 0.85 GB; a header that claims more is damage or an attack on the memory of a training machine.
MAX_SOURCE_PIXELS = 8192 * 4320

# A container that keeps failing does not recover; this many failures are forgiven.
MAX_CONTAINER_FAILURES = 16

# Demuxers that are no single video: playlists open other files, the others turn text or devices into pictures.
REFUSED_FORMATS = {"hls", "dash", "concat", "tty", "sdp", "rtsp", "imf", "lavfi", "image2"}


@dataclass
class Damage:
    """What could not be read in one pass over a file."""

    packets: int = 0
    first_error: str = ""
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def add(self, other: "Damage") -> None:
        """Take over what another pass over the same packets found."""
        self.packets = max(self.packets, other.packets)
        self.first_error = self.first_error or other.first_error
        for text in other.notes:
            self.note(text)


class Budget:
    """Wall-clock limit for one clip. PyAV returns to Python after every packet, so checking there cannot be missed."""

    def __init__(self, path: str | os.PathLike, seconds: float):
        self.path = path
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds

    def check(self) -> None:
        if time.monotonic() > self.deadline:
            raise ClipError(self.path, "timeout", f"not read within {self.seconds:g} s")

    def remaining(self) -> float:
        return max(0.0, self.deadline - time.monotonic())


@dataclass(eq=False)
class Media:
    """An open file with the streams in use; `video` and `audio` are None where the file has none."""

    path: str
    container: "av.container.InputContainer"
    video: "av.VideoStream | None"
    audio: "av.AudioStream | None"

    def packets(self, *streams, budget: Budget, damage: Damage) -> Iterator["av.Packet"]:
        """Packets with content, in file order, going on after damaged ones. No stream named: those of all streams.

        Decoders must be flushed by the caller at the end (`decode(stream, None)`).
        """
        failures = 0
        source = self.container.demux(*streams)
        while failures < MAX_CONTAINER_FAILURES:
            budget.check()
            try:
                packet = next(source)
            except StopIteration:
                return
            except Exception as error:
                failures += 1
                damage.note(f"container: {describe(error)}")
                source = self.container.demux(*streams)
                continue
            if packet.size:
                yield packet


def decode(stream, packet, damage: Damage) -> list:
    """Frames that come out of the decoder after `packet`; None flushes it. A packet that fails is counted."""
    try:
        return stream.codec_context.decode(packet)
    except Exception as error:
        damage.packets += 1
        damage.first_error = damage.first_error or describe(error)
        return []


def seek(media: Media, stream, pts: int) -> bool:
    """Go to the last key frame at or before `pts`; False if the container cannot."""
    try:
        media.container.seek(pts, stream=stream)
    except Exception:
        return False
    return True


@contextmanager
def open_media(path: str | os.PathLike) -> Iterator[Media]:
    """Open a file; one decoder thread per stream. Raises ClipError: missing, not_a_file, empty, unreadable."""
    import av

    av.logging.set_level(None)  # the log callback needs the GIL and has crashed with several threads
    path = os.fspath(path)
    _check_file(path)
    try:
        # "file:" keeps names with a colon from being read as a protocol, the white list keeps a disguised playlist
        # away from the network
        container = av.open(f"file:{path}", metadata_errors="replace", options={"protocol_whitelist": "file"})
    except Exception as error:
        raise ClipError(path, "unreadable", describe(error)) from error
    with container:
        name = container.format.name
        if name in REFUSED_FORMATS:
            raise ClipError(path, "unreadable", f"a {name} file is not a video file")
        # pictures (png_pipe, jpeg_pipe, ...) decode as a video of one frame, which is never what was meant
        picture = name.endswith("_pipe")
        yield Media(path, container, None if picture else _video_stream(container), _audio_stream(container))


def require_video(media: Media) -> "av.VideoStream":
    """The video stream, one thread. Raises ClipError: no_video, unreadable (no decoder), too_large."""
    stream = media.video
    if stream is None:
        kinds = sorted({stream.type for stream in media.container.streams})
        raise ClipError(
            media.path, "no_video", f"{media.container.format.name} with {', '.join(kinds) or 'no streams'}"
        )
    context = stream.codec_context
    if context is None:
        raise ClipError(media.path, "unreadable", "no decoder for this kind of video")
    check_size(media.path, context.width, context.height)
    context.thread_type = "NONE"
    context.thread_count = 1
    return stream


def check_size(path: str, width: int, height: int) -> None:
    if width * height > MAX_SOURCE_PIXELS:
        raise ClipError(path, "too_large", f"{width}x{height} pixels, the limit is {MAX_SOURCE_PIXELS} in all")


def seconds(ticks: int | None, time_base: Fraction | None) -> float | None:
    return None if ticks is None or time_base is None else float(ticks * time_base)


def describe(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _check_file(path: str) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise ClipError(path, "missing", "no such file") from error
    except (OSError, ValueError) as error:
        raise ClipError(path, "unreadable", describe(error)) from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device could block for ever
        raise ClipError(path, "not_a_file", "a directory" if stat.S_ISDIR(status.st_mode) else "not a regular file")
    if status.st_size == 0:
        raise ClipError(path, "empty", "zero bytes")


def _video_stream(container) -> "av.VideoStream | None":
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    return best if best in streams else next(iter(streams), None)


def _audio_stream(container) -> "av.AudioStream | None":
    """The track the ffmpeg program would take: a default track before others, then the one with most channels."""
    from av.stream import Disposition

    def rank(stream) -> tuple[bool, int]:
        context = stream.codec_context
        return bool(stream.disposition & Disposition.default), context.channels if context is not None else 0

    return max(container.streams.audio, key=rank, default=None)
