"""Small media files for the tests, made with PyAV (no ffmpeg program is needed), and plain decoding to compare with."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TICKS = 90_000  # clock of the generated videos, per second


def picture(number: int, width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: a moving gradient with noise, different for every number and unlike its own turns."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:height, :width]
    shift = 3 * number
    image = np.stack([(x * 2 + shift) % 256, (y * 3 + shift) % 256, np.full_like(x, (7 * number) % 256)], axis=-1)
    image[: height // 4, : width // 4] = 255 - 4 * (number % 60)
    image = image + rng.integers(-8, 9, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def tone(frequency: float, seconds: float, rate: int = 44_100, amplitude: float = 0.5) -> np.ndarray:
    """float32 [samples] sine."""
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write_clip(
    path: str | Path,
    *,
    num_frames: int = 60,
    fps: float = 30,
    size: tuple[int, int] = (96, 64),
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 250,
    bframes: int = 3,
    options: dict[str, str] | None = None,
    times: Sequence[float] | None = None,
    start: float = 0.0,
    rotation: int = 0,
    audio: np.ndarray | None = None,
    audio_rate: int = 44_100,
    audio_codec: str = "aac",
    audio_start: float = 0.0,
    format: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Write a clip; num_frames=0 leaves the video out.

    times: presentation times in seconds instead of a constant rate. audio: float32 [samples] or [channels, samples].
    """
    reproducible = {"fflags": "+bitexact"} | (container_options or {})
    with av.open(str(path), "w", format=format, options=reproducible) as container:
        streams = []
        if num_frames:
            video = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1001))
            video.width, video.height = size
            video.pix_fmt = pix_fmt
            if Path(path).suffix != ".avi" and codec not in ("mpeg4", "mpeg2video"):  # these count in frames
                video.codec_context.time_base = Fraction(1, TICKS)
            video.codec_context.gop_size = gop
            if codec in ("libx264", "libx265", "mpeg2video", "mpeg4"):
                video.codec_context.max_b_frames = bframes
            if codec == "libx264":
                video.options = x264_options(bframes, options)
            else:
                video.options = options or {}
            if rotation:
                video.set_display_rotation(rotation)
            streams.append((video, _video_frames(num_frames, fps, times, start, size, pix_fmt)))
        if audio is not None:
            channels = np.atleast_2d(audio)
            layout = {1: "mono", 2: "stereo", 6: "5.1"}[len(channels)]
            sound = container.add_stream(audio_codec, rate=audio_rate, layout=layout)
            streams.append((sound, _audio_frames(channels, audio_rate, layout, audio_start)))
        _mux_in_time_order(container, streams)
    return Path(path)


def x264_options(bframes: int, options: dict[str, str] | None) -> dict[str, str]:
    """Without a single look-ahead thread x264 writes other bytes on each run."""
    options = dict(options or {})
    parameters = ":".join(["threads=1:lookahead-threads=1", *filter(None, [options.pop("x264-params", "")])])
    return {"preset": "veryfast", "crf": "18", "bf": str(bframes), "x264-params": parameters} | options


def _video_frames(num_frames, fps, times, start, size, pix_fmt):
    for number in range(num_frames):
        time = start + (number / fps if times is None else times[number])
        frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24").reformat(format=pix_fmt, threads=1)
        frame.pts, frame.time_base = round(time * TICKS), Fraction(1, TICKS)
        yield frame


def _audio_frames(channels, rate, layout, start):
    for position in range(0, channels.shape[1], 1024):
        block = np.ascontiguousarray(channels[:, position : position + 1024], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = position + round(start * rate)
        yield frame


def _mux_in_time_order(container, streams):
    queues = [(stream, iter(frames)) for stream, frames in streams]
    heads = [next(frames, None) for _, frames in queues]
    while any(head is not None for head in heads):
        _, which = min((head.pts * head.time_base, i) for i, head in enumerate(heads) if head is not None)
        stream, frames = queues[which]
        container.mux(stream.encode(heads[which]))
        heads[which] = next(frames, None)
    for stream, _ in queues:
        container.mux(stream.encode(None))


def remux(source: Path, target: Path, *, shift: float = 0.0, rotation: int = 0, keep=None) -> Path:
    """Copy the packets of all streams, `shift` seconds later; keep(packet) chooses.

    A negative shift gives MP4 files an edit list with hidden frames, as `ffmpeg -ss ... -c copy` does.
    """
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        streams = {stream.index: writer.add_stream_from_template(stream) for stream in reader.streams}
        if rotation:
            streams[reader.streams.video[0].index].set_display_rotation(rotation)
        for packet in reader.demux():
            if packet.dts is None or (keep is not None and not keep(packet)):
                continue
            ticks = round(shift / packet.time_base)
            packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
            packet.stream = streams[packet.stream.index]
            writer.mux(packet)
    return Path(target)


def plain_decode(path: str | Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """All frames with PyAV's own loop: seconds from the first frame, and RGB pictures turned for display."""
    times, frames = [], []
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.thread_type = "NONE"
        for frame in container.decode(video):
            times.append(float(frame.pts * video.time_base))
            frames.append(np.rot90(frame.to_ndarray(format="rgb24", threads=1), frame.rotation // 90))
    return np.sort(times) - min(times), frames
