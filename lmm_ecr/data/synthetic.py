"""Generated clips for the embedded default runs: real MP4 files (H.264 and AAC) whose engagement can be learned.

Each clip is a portrait video of 6 to 9 s: a textured background, a disk whose colour runs from blue to orange, a bright curtain
that rises or falls at constant speed, a title of a few words, and a tone that beats slowly or quickly. Four independent
signals in [-1, 1] control these, and the ECR is the rank of their weighted sum:

- look: colour of the disk (visible in any single frame);
- motion: signed speed of the curtain (its height averaged over the clip says nothing: only the order of frames does);
- words: exciting minus dull words in the title;
- sound: beats per second of the tone.
"""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..files import atomic_write, write_json

GENERATOR_VERSION = 3  # part of the cache key: raise it when the clips change
WIDTH, HEIGHT, FPS, SAMPLE_RATE = 112, 168, 10, 44100
# Same clip, same bytes: one thread, and no macroblock tree, whose vector code reads memory it never wrote at this size
# (x264 core 165: up to 5 different files from 40 runs over the same frames, 1 without it or with no-asm).
X264_OPTIONS = {"preset": "veryfast", "crf": "20", "threads": "1", "x264-params": "mbtree=0"}
EXCITING = ("amazing", "funny", "wow", "best", "crazy", "cute")
DULL = ("boring", "slow", "ordinary", "plain", "quiet", "old")
NEUTRAL = ("video", "today", "my", "dog", "garden", "street", "music", "with", "friends", "weekend", "school", "city")
PROMPT_TEXTS = (" ".join(EXCITING + DULL + NEUTRAL),)


@dataclass(frozen=True)
class SyntheticSpec:
    """A generated data set.

    weights: share of each signal in the latent score; noise: standard deviation of what no model can know, relative to a
    signal's (about 0.58). num_train, num_eval: clips. seed: everything follows from it.
    """

    num_train: int = 512
    num_eval: int = 128
    weight_look: float = 0.8
    weight_motion: float = 1.0
    weight_words: float = 1.0
    weight_sound: float = 0.0
    noise: float = 0.05
    seed: int = 0

    def fingerprint(self) -> str:
        text = json.dumps({**asdict(self), "version": GENERATOR_VERSION}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class SyntheticClip:
    """What one generated clip shows; the four signals lie in [-1, 1]."""

    id: str
    look: float
    motion: float
    words: float
    sound: float
    title: str
    description: str
    duration: float
    seed: int


def draw_clips(spec: SyntheticSpec) -> tuple[list[SyntheticClip], np.ndarray]:
    """The clips (training first) and their ECR, float64 [clips]: the rank of the latent score, scaled to [0, 1]."""
    rng = np.random.default_rng(spec.seed)
    total = spec.num_train + spec.num_eval
    clips = []
    for index in range(total):
        look, motion, sound = rng.uniform(-1, 1, 3)
        title, words = _title(rng)
        clips.append(
            SyntheticClip(
                id=f"clip{index:05d}",
                look=look,
                motion=motion,
                words=words,
                sound=sound,
                title=title,
                description=" ".join(rng.choice(NEUTRAL, 4)) if rng.random() < 0.5 else "",
                duration=float(rng.uniform(6.0, 9.0)),
                seed=int(rng.integers(2**31)),
            )
        )
    latent = sum(
        getattr(spec, f"weight_{name}") * np.array([getattr(clip, name) for clip in clips])
        for name in ("look", "motion", "words", "sound")
    )
    latent = latent + rng.normal(0, spec.noise, total)
    return clips, np.argsort(np.argsort(latent)) / (total - 1)


def generate_dataset(
    root: str | Path,
    spec: SyntheticSpec | None = None,
    *,
    num_workers: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `train.csv`, `eval.csv` and `videos/` below `root/<fingerprint>`; returns that directory.

    Generated once: a finished directory is used as it is, an interrupted one is continued. progress(done, total) is called
    as clips are written.
    """
    spec = spec or SyntheticSpec()
    directory = Path(root) / spec.fingerprint()
    finished = directory / "dataset.json"
    if finished.is_file():
        return directory
    videos = directory / "videos"
    videos.mkdir(parents=True, exist_ok=True)
    clips, ecr = draw_clips(spec)
    todo = [clip for clip in clips if not (videos / f"{clip.id}.mp4").is_file()]
    if progress:
        progress(len(clips) - len(todo), len(clips))
    with ProcessPoolExecutor(max_workers=num_workers) as pool:
        jobs = pool.map(write_clip, [videos / f"{c.id}.mp4" for c in todo], todo, chunksize=8)
        for done, _ in enumerate(jobs, start=len(clips) - len(todo) + 1):
            if progress:
                progress(done, len(clips))
    for name, rows in (("train", slice(0, spec.num_train)), ("eval", slice(spec.num_train, None))):
        _write_table(directory / f"{name}.csv", clips[rows], ecr[rows])
    write_json(finished, {"spec": asdict(spec), "generator_version": GENERATOR_VERSION})
    return directory


def write_clip(path: str | Path, clip: SyntheticClip) -> None:
    """Encode one clip as MP4 (H.264, 4:2:0; AAC, mono, 44.1 kHz)."""
    import av

    with atomic_write(path, "wb") as stream, av.open(stream, "w", format="mp4") as container:
        video = container.add_stream("libx264", rate=FPS, options=X264_OPTIONS)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        for image in _draw_frames(clip):
            # Converted here in one thread: threads of a conversion must not be there when workers are forked.
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", threads=1)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(_sound(clip)[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        container.mux(audio.encode(frame))
        container.mux(audio.encode())


def _title(rng: np.random.Generator) -> tuple[str, float]:
    """A title of up to 7 words and its signal: (exciting - dull) / 3. One title in eight is empty (signal 0)."""
    if rng.random() < 1 / 8:
        return "", 0.0
    balance = int(rng.integers(-3, 4))
    words = list(rng.choice(NEUTRAL, int(rng.integers(2, 5)), replace=False))
    words += list(rng.choice(EXCITING if balance > 0 else DULL, abs(balance), replace=False))
    rng.shuffle(words)
    return " ".join(words), balance / 3


def _draw_frames(clip: SyntheticClip):
    """Yield uint8 [HEIGHT, WIDTH, 3] frames."""
    rng = np.random.default_rng(clip.seed)
    texture = np.kron(rng.uniform(60, 100, (HEIGHT // 14, WIDTH // 14)), np.ones((14, 14)))
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    share = (clip.look + 1) / 2
    colour = np.array([40 + 200 * share, 90 + 40 * share, 220 - 190 * share])
    radius = rng.uniform(26, 32)
    centre = np.array([HEIGHT / 2, WIDTH / 2]) + rng.uniform(-10, 10, 2)
    wobble, phase = rng.uniform(0.3, 0.8), rng.uniform(0, 2 * math.pi)
    # The curtain's edge passes the middle of the frame in the middle of the first 8 s (or of a shorter clip), so that its
    # average height is the same for every speed and direction.
    middle = min(clip.duration, 8.0) / 2
    for index in range(round(clip.duration * FPS)):
        t = index / FPS
        image = np.repeat(texture[..., None], 3, axis=2)
        edge = HEIGHT * (0.5 - 0.11 * clip.motion * (t - middle))
        image[rows > edge] += 110
        y, x = centre + 6 * np.array([math.sin(wobble * t + phase), math.cos(wobble * t + phase)])
        image[(rows - y) ** 2 + (columns - x) ** 2 < radius**2] = colour
        yield np.clip(image, 0, 255).astype(np.uint8)


def _sound(clip: SyntheticClip) -> np.ndarray:
    """float32 [samples]: a tone whose loudness beats 1 to 6 times per second, by the sound signal."""
    rng = np.random.default_rng(clip.seed + 1)
    t = np.arange(round(clip.duration * SAMPLE_RATE)) / SAMPLE_RATE
    beats = 3.5 + 2.5 * clip.sound
    envelope = 0.5 - 0.5 * np.cos(2 * math.pi * beats * t + rng.uniform(0, 2 * math.pi))
    tone = np.sin(2 * math.pi * rng.uniform(300, 500) * t)
    return (0.3 * envelope * tone + rng.normal(0, 0.003, t.size)).astype(np.float32)


def _write_table(path: Path, clips: Sequence[SyntheticClip], ecr: np.ndarray) -> None:
    with atomic_write(path) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["Id", "Title", "Description", "ECR"])
        writer.writerows(
            [clip.id, clip.title, clip.description, repr(float(value))] for clip, value in zip(clips, ecr, strict=True)
        )
