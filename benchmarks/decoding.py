"""CPU time of `read_clip` against plain sequential decoding of the same frames, on your own clips.

    python benchmarks/decoding.py VIDEO_DIR [--repeats 7]

The plain loop knows which frames are wanted, decodes with one thread and stops at the last of them. Both ways alternate
in one process; printed are medians over the repetitions, added up over the clips, and their ratio.
"""

import argparse
import statistics
import time
from pathlib import Path

import av
import numpy as np

from lmm_ecr.data.decode import read_clip
from lmm_ecr.data.sampling import FrameSampling


def plain(path: Path, last: float) -> int:
    """Decode up to the frame at `last` seconds after the first; returns the number of frames converted to RGB."""
    count, first = 0, None
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        for frame in container.decode(video=0):
            first = frame.time if first is None else first
            if frame.time - first >= count:  # one frame per second, as the default sampling asks for
                frame.to_ndarray(format="rgb24", threads=1)
                count += 1
            if frame.time - first >= last:
                break
    return count


def cpu_seconds(run) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video_dir", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    sampling, totals = FrameSampling(), np.zeros(2)
    paths = sorted(options.video_dir.glob("*.mp4"))
    for path in paths:
        last = read_clip(path, sampling).timestamps[-1]
        pairs = [
            (cpu_seconds(lambda: read_clip(path, sampling)), cpu_seconds(lambda: plain(path, last)))  # noqa: B023
            for _ in range(options.repeats)
        ]
        totals += [statistics.median(times) for times in zip(*pairs, strict=True)]
    ours, theirs = totals / len(paths) * 1e3
    print(
        f"{len(paths)} clips: read_clip {ours:.0f} ms, plain {theirs:.0f} ms of CPU per clip; ratio {ours / theirs:.2f}"
    )


if __name__ == "__main__":
    main()
