"""Frames of a clip with PyAV: list the presentation times first, then decode as little as possible.

The cost of H.264 is decoding everything since the last key frame, and most short clips have a single one, so seeking to
each frame is slow. Instead `decode_frames` reads the file once, drops frames nobody refers to before they are decoded
(`skip_frame` NONREF), and jumps only to key frames further ahead. The pictures are those of plain sequential decoding.

Where the packets do not tell which pictures exist (no time stamps, a stream joined in the middle, damage), `survey`
decodes everything once to find out and `decode_by_order` picks from a second sequential pass.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ClipError
from .frame_index import UNTIMED_FORMATS, FrameIndex
from .media import Budget, Damage, check_size, decode, open_media, require_video, seek

if TYPE_CHECKING:
    import av

# A key frame nearer than this is reached faster by decoding on than by a seek.
MIN_JUMP_SECONDS = 0.5

# Decoders whose NONREF frames are truly never referred to. (HEVC frames can be "non-reference" in their own temporal
# layer only; the newer codecs ignore the setting.)
SKIPPING_CODECS = {"h264", "mpeg4", "mpeg2video", "mpeg1video", "vp8", "msmpeg4v3", "h263", "flv1", "vc1", "wmv3"}

# Source pictures above this multiple of the caller's target area are scaled down to it while decoding. Bicubic
# resizing from there to the target still sees about two source pixels per target pixel in each direction.
OVERSIZE = 4


class FrameStore:
    """Receives the wanted frames as RGB arrays of one size, mirrored and rotated for display.

    places: for each key (a presentation time or an order number) where in the result its picture goes.
    """

    def __init__(self, path: str, keys: Sequence[int], index: FrameIndex, max_pixels: int | None):
        self.path = path
        self.places: dict[int, list[int]] = {}
        for place, key in enumerate(keys):
            self.places.setdefault(int(key), []).append(place)
        self.missing = set(self.places)
        self.corrupt = 0
        self.frames: np.ndarray | None = None
        self._mirrored = index.mirrored
        self._count = len(keys)
        self._size = target_size(index.width, index.height, max_pixels) if index.width and index.height else None
        self._max_pixels = max_pixels

    def add(self, key: int, frame: "av.VideoFrame") -> None:
        if key not in self.missing:
            return
        check_size(self.path, frame.width, frame.height)
        turns = round(frame.rotation / 90) % 4
        if self.frames is None:
            self._size = self._size or target_size(frame.width, frame.height, self._max_pixels)
            width, height = self._size if turns % 2 == 0 else self._size[::-1]
            self.frames = np.empty((self._count, height, width, 3), dtype=np.uint8)
        height, width = self.frames.shape[1:3]
        picture = rgb(frame, *((height, width) if turns % 2 else (width, height)))
        self.frames[self.places[key]] = np.rot90(picture[::-1] if self._mirrored else picture, turns)
        self.corrupt += bool(frame.is_corrupt)
        self.missing.discard(key)


def read_turns(path: str, budget: Budget) -> int:
    """By how many quarters, counter-clockwise, the first picture of a file is turned."""
    for frame in _sequential(path, budget, Damage()):
        return round(frame.rotation / 90) % 4
    return 0


def rgb(frame: "av.VideoFrame", width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]; the conversion without scaling is FFmpeg's default, the same as decord's.

    In one thread: a conversion that has threads of its own cannot be freed in a process forked from this one.
    """
    if (frame.width, frame.height) == (width, height):
        return frame.to_ndarray(format="rgb24", threads=1)
    return frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC", threads=1)


def target_size(width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
    """Width and height in which frames are kept: the source's, or for large sources `OVERSIZE` times `max_pixels`."""
    if max_pixels is None or width * height <= OVERSIZE * max_pixels:
        return width, height
    scale = (OVERSIZE * max_pixels / (width * height)) ** 0.5
    return max(1, round(width * scale)), max(1, round(height * scale))


def decode_frames(
    path: str, index: FrameIndex, wanted: np.ndarray, max_pixels: int | None, budget: Budget, damage: Damage
) -> np.ndarray | None:
    """The frames at the presentation times `wanted`, uint8 [T, H, W, 3], decoding only what they depend on.

    None if one is missing or anything on the way was damaged. A decoder patches damaged places with the picture it
    showed last, which is another one when frames are skipped, so then the caller has to decode sequentially.
    """
    for may_jump in (True, False):  # not every "key frame" is a clean start (intra refresh), so try without jumps too
        store, found = FrameStore(path, wanted, index, max_pixels), Damage()
        jumped = _decode_wanted(path, index, store, may_jump, budget, found)
        if not (store.missing or store.corrupt or found.packets):
            return store.frames
        if not jumped:
            break
    damage.add(found)
    return None


def _decode_wanted(
    path: str, index: FrameIndex, store: FrameStore, may_jump: bool, budget: Budget, damage: Damage
) -> bool:
    """Fill `store`, keyed by presentation time, until it is full or something is damaged; True if it jumped."""
    wanted = sorted(store.missing)
    with open_media(path) as media:
        video = require_video(media)
        context = video.codec_context
        context.options = {"err_detect": "explode"}  # report damage instead of patching it
        can_skip = context.name in SKIPPING_CODECS
        min_jump = MIN_JUMP_SECONDS / video.time_base
        last_jump = None
        position = 0
        for packet in media.packets(video, budget=budget, damage=damage):
            while wanted[position] not in store.missing:
                position += 1
            key = _key_before(index.keys, wanted[position]) if may_jump and packet.pts is not None else None
            # a target is tried once: a seek that falls short would repeat for ever
            if key is not None and key - packet.pts > min_jump and (last_jump is None or key > last_jump):
                last_jump = key
                if seek(media, video, key):
                    continue
            if last_jump is not None and packet.pts is not None and packet.pts < last_jump:
                continue  # refers to pictures before the key frame, which were jumped over
            if can_skip:
                context.skip_frame = "DEFAULT" if packet.pts in store.missing else "NONREF"
            for frame in decode(video, packet, damage):
                store.add(frame.pts, frame)
            if damage.packets or store.corrupt or not store.missing:
                return last_jump is not None
        for frame in decode(video, None, damage):
            store.add(frame.pts, frame)
    return last_jump is not None


def _key_before(keys: np.ndarray, pts: int) -> int | None:
    position = int(np.searchsorted(keys, pts, side="right")) - 1
    return int(keys[position]) if position >= 0 else None


def survey(path: str, index: FrameIndex, budget: Budget, damage: Damage) -> tuple[np.ndarray, np.ndarray]:
    """Decode everything once, to learn which pictures the decoder shows.

    Returns their presentation times, int64 [M] sorted, and for each the order in which the decoder gave it out, int64
    [M]. Without any time stamps the average frame rate counts (25 if the file has none). In containers that store none
    (AVI) FFmpeg makes them up, in the wrong order; there the order of the decoder is the order of presentation.
    Raises ClipError no_frames if nothing can be decoded.
    """
    pts: list[int | None] = []
    for frame in _sequential(path, budget, damage):
        pts.append(frame.pts)
    if not pts:
        raise ClipError(path, "no_frames", damage.first_error or "the decoder shows no picture")
    if all(value is None for value in pts):
        step = 1 / (Fraction(index.fps).limit_denominator(100_000) or 25) / index.time_base
        pts = [round(number * step) for number in range(len(pts))]
    first = next(value for value in pts if value is not None)
    for number, value in enumerate(pts):  # a lost time stamp in a damaged file: with the picture before it
        if value is None:
            pts[number] = pts[number - 1] if number else first
    times = np.asarray(pts, dtype=np.int64)
    if index.format in UNTIMED_FORMATS:
        return np.sort(times), np.arange(len(times))
    order = np.argsort(times, kind="stable")
    return times[order], order


def decode_by_order(path: str, store: FrameStore, budget: Budget, damage: Damage) -> None:
    """Fill `store`, keyed by the order in which the decoder gives pictures out, with plain sequential decoding."""
    for number, frame in enumerate(_sequential(path, budget, damage)):
        store.add(number, frame)
        if not store.missing:
            return


def _sequential(path: str, budget: Budget, damage: Damage) -> Iterator["av.VideoFrame"]:
    with open_media(path) as media:
        video = require_video(media)
        for packet in media.packets(video, budget=budget, damage=damage):
            yield from decode(video, packet, damage)
        yield from decode(video, None, damage)
