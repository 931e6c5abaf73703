"""The generated clips: real files, deterministic, and built so that each signal is where it is said to be."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import av
import numpy as np
import pytest

from lmm_ecr.data.audio import AudioSpec
from lmm_ecr.data.decode import probe_clip, read_clip
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.data.synthetic import (
    DULL,
    EXCITING,
    HEIGHT,
    WIDTH,
    SyntheticClip,
    SyntheticSpec,
    draw_clips,
    generate_dataset,
    write_clip,
)

SAMPLING = FrameSampling(num_frames=6)


def clip(**changes) -> SyntheticClip:
    return replace(SyntheticClip("x", 0.0, 0.0, 0.0, 0.0, "", "", 6.0, 7), **changes)


def pictures(tmp_path, **changes) -> np.ndarray:
    write_clip(tmp_path / "x.mp4", clip(**changes))
    return read_clip(tmp_path / "x.mp4", SAMPLING).frames.astype(float)


def test_files_are_what_the_docs_say(tiny_clips):
    texts = [(tiny_clips / f"{name}.csv").read_text(encoding="utf-8").splitlines() for name in ("train", "eval")]
    rows = [row for lines in texts for row in csv.DictReader(lines)]
    assert len(rows) == 18
    assert list(rows[0]) == ["Id", "Title", "Description", "ECR"]
    assert sorted(float(r["ECR"]) for r in rows) == pytest.approx(np.arange(18) / 17)
    for row in rows[::5]:
        path = tiny_clips / "videos" / f"{row['Id']}.mp4"
        info = probe_clip(path, count_frames=True)
        assert (info.width, info.height, info.has_audio) == (WIDTH, HEIGHT, True)
        assert 5.9 <= info.duration <= 9.1
        with av.open(str(path)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert container.streams.audio[0].codec_context.name == "aac"
        sound = read_clip(path, SAMPLING, audio=AudioSpec()).audio
        assert 0.05 < np.abs(sound).max() < 0.5


def test_signals_are_independent_and_make_the_score():
    spec = SyntheticSpec(num_train=1500, num_eval=500)
    clips, ecr = draw_clips(spec)
    assert len({c.id for c in clips}) == 2000
    np.testing.assert_allclose(np.sort(ecr), np.arange(2000) / 1999)
    signals = np.array([[c.look, c.motion, c.words, c.sound] for c in clips])
    assert np.abs(signals).max() <= 1
    correlations = np.corrcoef(signals.T)
    assert np.abs(correlations - np.eye(4)).max() < 0.1
    latent = signals @ [spec.weight_look, spec.weight_motion, spec.weight_words, spec.weight_sound]
    assert np.corrcoef(latent.argsort().argsort(), ecr)[0, 1] > 0.99


def test_words_of_the_title_are_the_signal():
    for c in draw_clips(SyntheticSpec(num_train=200, num_eval=1))[0]:
        words = c.title.split()
        assert 3 * c.words == pytest.approx(sum(w in EXCITING for w in words) - sum(w in DULL for w in words))


def test_look_is_in_every_frame(tmp_path):
    """The disk in the middle is blue at -1 and orange at 1."""
    for look, difference in ((-1.0, -150), (1.0, 150)):
        middle = pictures(tmp_path, look=look)[:, HEIGHT // 2 - 8 : HEIGHT // 2 + 8, WIDTH // 2 - 8 : WIDTH // 2 + 8]
        red_minus_blue = (middle[..., 0] - middle[..., 2]).mean((1, 2))
        assert (np.sign(difference) * red_minus_blue > abs(difference)).all()


def test_motion_is_in_the_order_of_the_frames_only(tmp_path):
    """Up and down have the same brightness over the clip, opposite brightness over time."""
    up, down = (pictures(tmp_path, motion=m)[:, :, :20].mean((1, 2, 3)) for m in (1.0, -1.0))
    assert (np.diff(up) > 0).all()
    assert (np.diff(down) < 0).all()
    write_clip(tmp_path / "whole.mp4", clip(motion=1.0))
    write_clip(tmp_path / "back.mp4", clip(motion=-1.0))
    every = FrameSampling(mode="uniform", num_frames=60)
    means = [read_clip(tmp_path / n, every).frames[:, :, :20].mean() for n in ("whole.mp4", "back.mp4")]
    assert means[0] == pytest.approx(means[1], abs=1.5)


def test_sound_beats_with_the_signal(tmp_path):
    for value, beats in ((-1.0, 1.0), (1.0, 6.0)):
        write_clip(tmp_path / "x.mp4", clip(sound=value))
        loudness = np.abs(read_clip(tmp_path / "x.mp4", SAMPLING, audio=AudioSpec(seconds=6)).audio)
        loudness = loudness[: len(loudness) // 160 * 160].reshape(-1, 160).mean(1)  # 100 per second
        spectrum = np.abs(np.fft.rfft(loudness - loudness.mean()))
        assert spectrum.argmax() / (len(loudness) / 100) == pytest.approx(beats, abs=0.2)


def test_same_clip_same_bytes_whatever_memory_holds(tmp_path):
    """Bug: x264's macroblock tree read memory it had not written, so that two runs gave different files."""
    shown = draw_clips(SyntheticSpec(20, 4))[0][4]
    rng, files = np.random.default_rng(0), set()
    for _ in range(12):
        write_clip(tmp_path / "x.mp4", shown)
        files.add((tmp_path / "x.mp4").read_bytes())
        dirty = [rng.bytes(int(size)) for size in rng.integers(1, 60_000, 400)]
        del dirty[::2]
    assert len(files) == 1


def test_same_seed_same_bytes_other_seed_other_clips(tmp_path):
    spec = SyntheticSpec(num_train=2, num_eval=1)
    first, second = (generate_dataset(tmp_path / n, spec, num_workers=1) for n in "ab")
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert len(names) == 3 + 3
    assert all((first / n).read_bytes() == (second / n).read_bytes() for n in names)
    other = generate_dataset(tmp_path / "a", replace(spec, seed=1), num_workers=1)
    assert other != first
    assert (other / "train.csv").read_text() != (first / "train.csv").read_text()


def test_finished_set_is_used_as_it_is(tiny_clips, tmp_path):
    calls = []
    before = {p: p.stat().st_mtime_ns for p in tiny_clips.rglob("*")}
    spec = SyntheticSpec(**json.loads((tiny_clips / "dataset.json").read_text())["spec"])
    assert generate_dataset(tiny_clips.parent, spec, progress=lambda *a: calls.append(a)) == tiny_clips
    assert calls == []
    assert {p: p.stat().st_mtime_ns for p in tiny_clips.rglob("*")} == before


def test_killed_generation_is_continued_to_the_same_bytes(tmp_path):
    code = (
        "import sys\nfrom lmm_ecr.data.synthetic import *\n"
        "if __name__ == '__main__':\n    generate_dataset(sys.argv[1], SyntheticSpec(12, 2), num_workers=1)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "a")], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("a/*/videos/clip*.mp4"))) < 3:
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("a/*/dataset.json"))

    spec, counts = SyntheticSpec(12, 2), []
    resumed = generate_dataset(tmp_path / "a", spec, num_workers=1, progress=lambda *a: counts.append(a))
    whole = generate_dataset(tmp_path / "b", spec, num_workers=2)
    assert counts[0][0] >= 3
    assert counts[-1] == (14, 14)
    for path in whole.rglob("*.*"):
        assert (resumed / path.relative_to(whole)).read_bytes() == path.read_bytes()
