"""Sound of a clip as 16 kHz mono float32, with time 0 at the first video frame.

The default equals `ffmpeg -ac 1 -ar 16000 -f s16le` to one step of 16 bits: swresample is asked for 16-bit mono, where
it normalises the mix (stereo = mean of the channels); asked for float it adds 3 dB and leaves peaks of 1.4.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ClipError
from .media import Budget, Damage, decode, describe, open_media, seconds
from .sampling import check_choice, check_keys, check_positive

if TYPE_CHECKING:
    import av

SAMPLE_RATE = 16_000  # Hz

MODES = ("first_n_seconds", "whole")
RESAMPLERS = ("swresample", "soxr_hq")

# Sound decoded beyond the asked end, so that the resampling filter sees what follows and not the end of the signal.
MARGIN_SECONDS = 0.1

# Where sound is missing in the middle (lost packets, or a recorder that paused) for longer than this, silence is put
# in, so that what follows stays in time with the pictures. Below it are the rounding errors of time stamps.
GAP_SECONDS = 0.1

# A track that starts this much away from the first frame has broken time stamps; it is taken to start with the video.
MAX_OFFSET_SECONDS = 600.0


@dataclass(frozen=True)
class AudioSpec:
    """Which part of the sound is heard, and how it is brought to 16 kHz.

    mode: "first_n_seconds" (the first `seconds` of the clip) or "whole".
    seconds: length of "first_n_seconds".
    resampler: "swresample" (what FFmpeg-based pipelines use) or "soxr_hq" (less alias near 8 kHz, needs librosa).

    Raises ConfigError naming the field.
    """

    mode: str = "first_n_seconds"
    seconds: float = 8.0
    resampler: str = "swresample"

    def __post_init__(self):
        check_choice("AudioSpec.mode", self.mode, MODES)
        check_choice("AudioSpec.resampler", self.resampler, RESAMPLERS)
        check_positive("AudioSpec.seconds", self.seconds)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AudioSpec":
        """Inverse of `to_dict`; absent keys take their defaults, unknown keys raise ConfigError."""
        check_keys("AudioSpec", values, cls)
        return cls(**values)


def read_audio(path: str | os.PathLike, spec: AudioSpec, *, timeout_seconds: float = 60.0) -> np.ndarray | None:
    """Sound of a clip, float32 [S] in [-1, 1], mono, 16 kHz; None if the file has no audio track (or an empty one).

    Time 0 is the first video frame (the first sample if there is no video): sound that starts later is preceded by
    silence, earlier sound is cut, gaps are filled with silence. A track shorter than asked stays short.

    Raises ClipError: missing, not_a_file, empty, unreadable, timeout, and damaged if a track exists of which nothing
    can be decoded.
    """
    budget, damage = Budget(path, timeout_seconds), Damage()
    with open_media(path) as media:
        if media.audio is None:
            return None
        collector = AudioCollector(media.audio, spec)
        streams = [stream for stream in (media.video, media.audio) if stream is not None]
        origin = None
        for packet in media.packets(*streams, budget=budget, damage=damage):
            if packet.stream.type == "audio":
                collector.add(packet)
            elif packet.pts is not None and not packet.is_discard:
                time = seconds(packet.pts, packet.time_base)
                origin = time if origin is None else min(origin, time)
            if collector.has_enough(origin if media.video is not None else collector.start):
                break
        collector.flush()
    samples = collector.finish(origin)
    if samples is None and collector.damage.packets:
        raise ClipError(path, "damaged", f"audio: {collector.damage.first_error}")
    return samples


class AudioCollector:
    """Collects the packets of one audio stream until `has_enough`, then gives the samples of the asked span."""

    def __init__(self, stream: "av.AudioStream", spec: AudioSpec):
        self.spec = spec
        self.damage = Damage()
        self.start: float | None = None
        self._stream = stream
        self._rate = SAMPLE_RATE
        self._resampler = None
        self._kind: tuple | None = None
        self._blocks: list[np.ndarray] = []
        self._num_samples = 0
        self._next: float | None = None  # when the next frame should start, in container time
        self._silence = 0.0
        if stream.codec_context is None:
            self.damage.note("no decoder for this kind of audio")
        else:
            stream.codec_context.thread_type = "NONE"
            stream.codec_context.thread_count = 1

    def add(self, packet: "av.Packet | None") -> None:
        """Decode one packet; None flushes the decoder."""
        if self._stream.codec_context is None:
            return
        for frame in decode(self._stream, packet, self.damage):
            if self.start is None:
                self.start = seconds(frame.pts, self._stream.time_base)
            self._resample(frame)

    def flush(self) -> None:
        """Take what the decoder still holds; call it once, while the file is open."""
        self.add(None)

    def has_enough(self, origin: float | None) -> bool:
        """True once nothing after this point can matter. origin: container time of the first video frame."""
        if self.spec.mode == "whole" or origin is None or self.start is None:
            return False
        needed = origin + self.spec.seconds + MARGIN_SECONDS - self.start
        return self._num_samples >= needed * self._rate

    def finish(self, origin: float | None) -> np.ndarray | None:
        """Samples from `origin` (container time in seconds; None: the track's own start) as `read_audio` gives them."""
        self._flush_resampler()
        if self._silence:
            self.damage.note(f"{self._silence:.2f} s are missing in the middle, filled with silence")
        if not self._num_samples:
            return None
        samples = np.concatenate(self._blocks).astype(np.float32) / 32768
        if self._rate != SAMPLE_RATE:
            import librosa

            samples = librosa.resample(samples, orig_sr=self._rate, target_sr=SAMPLE_RATE, res_type="soxr_hq")
            samples = np.clip(samples, -1.0, 1.0).astype(np.float32)
        samples = _align(samples, self._offset(origin))
        if self.spec.mode == "first_n_seconds":
            samples = samples[: round(self.spec.seconds * SAMPLE_RATE)]
        return np.ascontiguousarray(samples) if len(samples) else None

    def _offset(self, origin: float | None) -> float:
        if origin is None or self.start is None:
            return 0.0
        offset = self.start - origin
        if abs(offset) > MAX_OFFSET_SECONDS:
            self.damage.note(f"the track starts {offset:.0f} s from the first frame, taken as 0")
            return 0.0
        return offset

    def _resample(self, frame: "av.AudioFrame") -> None:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if kind != self._kind:  # the first frame, or a track that changes its format on the way
            self._flush_resampler()
            if self._kind is None and self.spec.resampler == "soxr_hq":
                self._rate = frame.sample_rate
            self._kind = kind
            self._resampler = self._new_resampler()
        self._fill_gap(frame)
        frame.pts = None  # gaps and jumps in the time stamps are for the caller, the resampler must not act on them
        self._take(frame)

    def _fill_gap(self, frame: "av.AudioFrame") -> None:
        start = seconds(frame.pts, self._stream.time_base)
        if self._next is None:
            self._next = start
        if self._next is None:
            return
        gap = 0.0 if start is None else start - self._next
        if GAP_SECONDS < gap < MAX_OFFSET_SECONDS:
            self._take(None)
            self._resampler = self._new_resampler()
            self._append(np.zeros(round(gap * self._rate), dtype=np.int16))
            self._silence += gap
            self._next = start
        self._next += frame.samples / frame.sample_rate

    def _new_resampler(self) -> "av.AudioResampler":
        import av

        return av.AudioResampler(format="s16", layout="mono", rate=self._rate)

    def _flush_resampler(self) -> None:
        if self._resampler is not None:
            self._take(None)
            self._resampler = None

    def _take(self, frame: "av.AudioFrame | None") -> None:
        try:
            blocks = self._resampler.resample(frame)
        except Exception as error:  # impossible rates or layouts of damaged frames end in any FFmpeg error
            self.damage.packets += 1
            self.damage.first_error = self.damage.first_error or describe(error)
            return
        for block in blocks:
            self._append(block.to_ndarray().reshape(-1))

    def _append(self, samples: np.ndarray) -> None:
        self._blocks.append(samples)
        self._num_samples += len(samples)


def _align(samples: np.ndarray, offset_seconds: float) -> np.ndarray:
    shift = math.floor(offset_seconds * SAMPLE_RATE + 0.5)
    if shift > 0:
        return np.concatenate([np.zeros(shift, dtype=np.float32), samples])
    return samples[-shift:]
