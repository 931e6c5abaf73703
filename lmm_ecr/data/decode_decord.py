"""Frames with decord, in a process of its own.

decord 0.6.0 can spin for ever inside `get_batch` (an ordinary trimmed MP4 suffices), cannot be interrupted there, and
its `len` counts frames that do not exist. So it runs in a child with a deadline, with one thread, and is only asked for
frames that the pass over the packets has shown to exist. The start of the child costs 0.1 to 0.4 s per clip: this
backend is for comparison with systems built on decord, not for training.
"""

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import lmm_ecr

from ..errors import ClipError, ConfigError
from .decode_pyav import read_turns
from .frame_index import FrameIndex
from .media import Budget, Damage
from .sampling import FrameSampling, sample_indices

_CHILD = "from lmm_ecr.data.decode_decord import child; child()"


def decord_reader() -> Callable:
    """`read_frames` of this module. Raises ConfigError if decord is not installed."""
    if importlib.util.find_spec("decord") is None:
        raise ConfigError('backend "decord" needs the package decord (pip install decord), or choose backend "pyav"')
    return read_frames


def read_frames(
    path: str, index: FrameIndex, sampling: FrameSampling, max_pixels: int | None, budget: Budget, damage: Damage
) -> tuple[np.ndarray, np.ndarray, float]:
    """Frames, their times and the duration of the clip, as in `Clip`.

    Raises ClipError: unreadable (also for kinds of files decord is known to read wrongly), no_frames, timeout.
    """
    if not len(index.pts):
        raise ClipError(path, "no_frames", "no packet with a time stamp")
    if not index.complete or "mpegts" in index.format:
        raise ClipError(
            path, "unreadable", f'decord miscounts the frames of this {index.format} file; use backend "pyav"'
        )
    wanted = sample_indices(sampling, index.times, index.duration)
    distinct, places = np.unique(wanted, return_inverse=True)
    request = {
        "path": os.path.abspath(path),
        "indices": distinct.tolist(),
        # decord's jumps to key frames miscount hidden packets and pictures shown before a key frame that precedes them
        # in the file; reading on without jumps it counts right
        "in_order": index.hidden or index.open_gop,
        "max_pixels": max_pixels,
        "cpu_seconds": int(budget.remaining()) + 2,
    }
    frames = _ask_child(path, request, budget)
    if (
        index.mirrored
    ):  # decord turns pictures by FFmpeg's angle, which knows of no mirror: top to bottom, before the turn
        frames = frames[:, :, ::-1] if read_turns(path, budget) % 2 else frames[:, ::-1]
    return frames[places], index.times[wanted], index.duration


def _ask_child(path: str, request: dict, budget: Budget) -> np.ndarray:
    root = str(Path(lmm_ecr.__file__).resolve().parents[1])
    search_path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=budget.remaining(),
            env=os.environ | {"PYTHONPATH": search_path},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClipError(path, "timeout", f"decord did not return within {budget.seconds:g} s") from error
    if done.returncode:
        message = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ClipError(path, "unreadable", f"decord: {message[-1] if message else f'exit {done.returncode}'}")
    return np.load(io.BytesIO(done.stdout), allow_pickle=False)


def child() -> None:
    """Entry point of the child: a request as JSON on standard input, the frames as .npy on standard output."""
    import resource

    request = json.load(sys.stdin)
    # if the parent is killed while decord spins, the kernel ends the child
    resource.setrlimit(resource.RLIMIT_CPU, (request["cpu_seconds"], request["cpu_seconds"]))
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever decord prints must not end up in the array
    try:
        frames = _decode(request)
    except Exception as error:  # DECORDError derives from Exception, and opening raises a plain RuntimeError
        lines = str(error).strip().splitlines() or [""]
        print(f"{type(error).__name__}: {lines[0]}", file=sys.stderr)
        sys.exit(1)
    array = io.BytesIO()  # NumPy cannot write an array straight into a pipe
    np.save(array, frames)
    with answer:
        answer.write(array.getbuffer())


def _decode(request: dict) -> np.ndarray:
    import decord

    reader = decord.VideoReader(request["path"], ctx=decord.cpu(0), num_threads=1)
    frames = []
    position = 0
    for index in request["indices"]:
        if request["in_order"]:
            while position <= index:
                frame = reader.next()
                position += 1
            picture = frame.asnumpy()
        else:
            picture = reader.get_batch([index]).asnumpy()[0]
        frames.append(_shrink(picture, request["max_pixels"]))
    return np.stack(frames)


def _shrink(picture: np.ndarray, max_pixels: int | None) -> np.ndarray:
    from .decode_pyav import target_size

    height, width = picture.shape[:2]
    size = target_size(width, height, max_pixels)
    if size == (width, height):
        return picture
    import av

    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return frame.to_ndarray(format="rgb24", width=size[0], height=size[1], interpolation="BICUBIC", threads=1)
