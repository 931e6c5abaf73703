"""Which frames of a clip are looked at: pure functions of presentation times.

"The frame at t seconds" is the one on the screen at that moment: the last frame whose presentation time is not later
than t. It needs no frame rate, so clips with a variable rate are treated like all others; on clips with a constant rate
`first_n_seconds` and `uniform` give the indices of the published VideoLLaMA2 baseline.
"""

import difflib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError

MODES = ("first_n_seconds", "uniform", "fps")
SHORT_CLIPS = ("spread", "fewer")

# Presentation times are rounded to the container's clock (1 ms in Matroska): without a tolerance the frame meant for
# t = 1 s would be missed when it is stored as 1.0004 s. Half of the coarsest clock in use never takes in another frame.
TIME_TOLERANCE_SECONDS = 0.5e-3
FLOAT_TOLERANCE_SECONDS = 1e-9

# What `mean_frame_interval` says where no interval exists, see there.
SINGLE_FRAME_INTERVAL_SECONDS = 1.0
SHORTEST_INTERVAL_SECONDS = 1e-3


@dataclass(frozen=True)
class FrameSampling:
    """Which instants of a clip become frames.

    mode:
        "first_n_seconds": one frame every 1/fps seconds from the start, `num_frames` of them.
        "uniform": `num_frames` frames at equal distances over the whole clip, each in the middle of its share.
        "fps": one frame every 1/fps seconds over the whole clip, at most `max_frames`.
    num_frames: number of frames ("first_n_seconds" and "uniform").
    fps: frames per second of clip ("first_n_seconds" and "fps").
    max_frames: upper limit of "fps"; a clip that would need more gives exactly `max_frames` frames, the first at 0 and
        the others at equal distances over the whole clip.
    short_clips: "first_n_seconds" on a clip shorter than num_frames/fps seconds. "spread": num_frames frames from the
        first to the last one of the clip, evenly by frame number, repeated where the clip has fewer (the rule of the
        published baseline). "fewer": only the instants inside the clip, so fewer frames.

    Raises ConfigError naming the field.
    """

    mode: str = "first_n_seconds"
    num_frames: int = 8
    fps: float = 1.0
    max_frames: int = 32
    short_clips: str = "spread"

    def __post_init__(self):
        check_choice("FrameSampling.mode", self.mode, MODES)
        check_choice("FrameSampling.short_clips", self.short_clips, SHORT_CLIPS)
        for name in ("num_frames", "max_frames"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"FrameSampling.{name} must be a whole number of at least 1, got {value!r}")
        check_positive("FrameSampling.fps", self.fps)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "FrameSampling":
        """Inverse of `to_dict`; absent keys take their defaults, unknown keys raise ConfigError."""
        check_keys("FrameSampling", values, cls)
        return cls(**values)


def sample_indices(sampling: FrameSampling, timestamps: np.ndarray, duration: float | None = None) -> np.ndarray:
    """Indices of the sampled frames, int64 [T], never decreasing, each in 0..N-1.

    timestamps: float64 [N], presentation times in seconds from the first frame, sorted.
    duration: seconds from the first frame to the end of the last one; None: the last frame is taken to last as long as
        the others do on average.

    Raises DataError if there is no frame, or the times are not sorted and finite.
    """
    timestamps = np.asarray(timestamps, dtype=np.float64)
    if timestamps.ndim != 1 or len(timestamps) == 0:
        raise DataError(f"no frames to sample from (timestamps of shape {timestamps.shape})")
    if not np.isfinite(timestamps).all() or (np.diff(timestamps) < 0).any():
        raise DataError("frame times must be finite and sorted")
    if duration is None or not math.isfinite(duration) or duration < timestamps[-1]:
        duration = _duration(timestamps)
    tolerance = _clock_tolerance(timestamps)
    if sampling.mode == "uniform":
        return _uniform(len(timestamps), sampling.num_frames)
    if sampling.mode == "fps":
        return _frames_at(timestamps, _instants(duration, sampling, tolerance), tolerance)
    if duration >= sampling.num_frames / sampling.fps - tolerance:
        return _frames_at(timestamps, np.arange(sampling.num_frames) / sampling.fps, tolerance)
    if sampling.short_clips == "spread":
        return np.trunc(np.linspace(0, len(timestamps) - 1, sampling.num_frames)).astype(np.int64)
    instants = np.arange(_count_instants(duration, sampling.fps, tolerance)) / sampling.fps
    return _frames_at(timestamps, instants, tolerance)


def frame_interval(sampling: FrameSampling, timestamps: np.ndarray, duration: float) -> float:
    """Seconds between the frames that `sampling` took of a clip of `duration` seconds: what a model is told of time.

    timestamps: float64 [T], presentation times of the sampled frames. Where one frame every 1/fps seconds was taken, that
    is the interval: the frames on the screen at those instants began a little earlier, each by another amount. Elsewhere
    (spread over a short clip, "uniform", a limited "fps") it is `mean_frame_interval`.
    """
    timestamps = np.asarray(timestamps, dtype=np.float64)
    step = 1 / sampling.fps
    regular = False
    if sampling.mode == "first_n_seconds":
        regular = sampling.short_clips == "fewer" or duration >= sampling.num_frames * step - TIME_TOLERANCE_SECONDS
    elif sampling.mode == "fps":
        regular = _count_instants(duration, sampling.fps, TIME_TOLERANCE_SECONDS) <= sampling.max_frames
    if regular and len(timestamps) > 1 and timestamps[-1] <= (len(timestamps) - 1) * step + TIME_TOLERANCE_SECONDS:
        return step
    return mean_frame_interval(timestamps)


def mean_frame_interval(timestamps: np.ndarray) -> float:
    """Mean distance in seconds between sampled frames: (last - first) / (T - 1).

    A single frame gives 1.0 (no distance exists and none is used). Frames that all show the same instant (a clip of one
    frame, repeated) give 0.001, the smallest value ever returned: 1/interval stays finite, and temporal positions
    derived from it stay together, as they do for two frames spread over eight places.

    Raises DataError if there is no frame.
    """
    timestamps = np.asarray(timestamps, dtype=np.float64)
    if timestamps.size == 0:
        raise DataError("no frames to measure the distance between")
    if timestamps.size == 1:
        return SINGLE_FRAME_INTERVAL_SECONDS
    return max(float(timestamps[-1] - timestamps[0]) / (timestamps.size - 1), SHORTEST_INTERVAL_SECONDS)


def _duration(timestamps: np.ndarray) -> float:
    if len(timestamps) == 1:
        return 0.0
    return float(timestamps[-1]) * len(timestamps) / (len(timestamps) - 1)


def _uniform(num_available: int, num_frames: int) -> np.ndarray:
    share = (num_available - 1) / num_frames
    # the 1e-6 is the baseline's: without it the middle of the clip would be rounded to the even neighbour
    return np.round(share * (np.arange(num_frames) + 0.5) + 1e-6).astype(np.int64)


def _clock_tolerance(timestamps: np.ndarray) -> float:
    """How far a stored time may be off, in seconds: twice the largest distance from a constant rate, at most half of the
    coarsest clock in use. On exact times of a constant rate next to nothing, so that 29.99 frames per second do not count
    as 30; on a variable rate the distance says nothing about the clock, and the limit holds."""
    even = np.linspace(timestamps[0], timestamps[-1], len(timestamps))
    return min(2 * float(np.abs(timestamps - even).max()) + FLOAT_TOLERANCE_SECONDS, TIME_TOLERANCE_SECONDS)


def _count_instants(duration: float, fps: float, tolerance: float) -> int:
    """How many of 0, 1/fps, 2/fps, ... lie inside the clip; 0 always does."""
    return max(1, math.ceil((duration - tolerance) * fps))


def _instants(duration: float, sampling: FrameSampling, tolerance: float) -> np.ndarray:
    count = _count_instants(duration, sampling.fps, tolerance)
    if count > sampling.max_frames:
        return np.arange(sampling.max_frames) * (duration / sampling.max_frames)
    return np.arange(count) / sampling.fps


def _frames_at(timestamps: np.ndarray, instants: np.ndarray, tolerance: float) -> np.ndarray:
    after = np.searchsorted(timestamps, instants + tolerance, side="right")
    return np.maximum(after - 1, 0).astype(np.int64)


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a finite number above 0, got {value!r}")


def check_keys(name: str, values: Mapping[str, Any], cls: type) -> None:
    """Refuse keys that are not fields of the dataclass `cls`, naming the closest one."""
    known = [field.name for field in fields(cls)]
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
            raise ConfigError(f"{name} has no field {key!r}; {hint}")
