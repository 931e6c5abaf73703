"""`Predictor` and `lmm-ecr predict`: order, reproducibility, bad clips, kills in the middle."""

import csv
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from lmm_ecr import Predictor
from lmm_ecr.data.manifest import read_manifest
from lmm_ecr.errors import ClipError, ConfigError
from lmm_ecr.predict import predict_table
from lmm_ecr.prepare import prepare
from tests.data.media import remux, tone, write_clip
from tests.predicting import predict, read, write_model


@pytest.fixture(scope="session")
def run_dir(tiny_qwen, tiny_processor, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), tiny_qwen, tiny_processor)


@pytest.fixture(scope="session")
def expected(run_dir, tiny_manifest) -> dict[str, float]:
    """Scores of the twelve clips, one at a time."""
    predictor = Predictor.from_pretrained(run_dir)
    clips = [{"video": r.video, "title": r.title, "description": r.description} for r in tiny_manifest]
    scores = [predictor.predict([clip])[0, 0] for clip in clips]
    assert np.std(scores) > 1e-3
    assert all(0 <= s <= 1 for s in scores)
    return {row.id: score for row, score in zip(tiny_manifest, scores, strict=True)}


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (5, 2), (64, 1)])
def test_table_in_input_order_whatever_the_batches(run_dir, tiny_clips, tmp_path, expected, batch_size, workers):
    output = tmp_path / "out.csv"
    status, text = predict(
        "--model", run_dir, "--data", tiny_clips / "train.csv", "--video-dir", tiny_clips / "videos", "--output", output,
        "--batch-size", batch_size, "--num-workers", workers,
    )  # fmt: skip
    assert status == 0
    assert "12 of 12 rows scored" in text
    scores = read(output)
    assert list(scores) == list(expected)
    np.testing.assert_allclose(list(scores.values()), list(expected.values()), rtol=0, atol=1e-5)
    assert not (tmp_path / "out.csv.partial").exists()


def test_python_interface(run_dir, tiny_manifest, expected):
    scores = Predictor.from_pretrained(run_dir).predict(
        [{"video": str(r.video), "title": r.title, "description": r.description} for r in tiny_manifest], batch_size=5
    )
    assert scores.dtype == np.float64
    assert scores.shape == (12, 1)
    np.testing.assert_allclose(scores[:, 0], list(expected.values()), rtol=0, atol=1e-5)
    assert Predictor.from_pretrained(run_dir).predict([]).shape == (0, 1)


def test_an_unreadable_clip_in_python(run_dir, tiny_manifest, tmp_path):
    predictor = Predictor.from_pretrained(run_dir)
    clips = [{"video": tiny_manifest[0].video}, {"video": tmp_path / "nothing.mp4"}]
    with pytest.raises(ClipError, match="missing"):
        predictor.predict(clips)
    scores = predictor.predict(clips, on_error="skip")
    assert np.isfinite(scores[0, 0])
    assert np.isnan(scores[1, 0])


def test_prepared_clips_score_like_files(run_dir, tiny_manifest, tiny_processor, tmp_path, expected):
    prepare(tiny_manifest, tiny_processor, tmp_path / "prepared", image_format="png", num_workers=0)
    predict_table(run_dir, str(tmp_path / "prepared"), tmp_path / "out.csv", num_workers=0)
    np.testing.assert_allclose(list(read(tmp_path / "out.csv").values()), list(expected.values()), rtol=0, atol=1e-6)


def test_ablations_change_scores_reproducibly(run_dir, tiny_clips, tmp_path, expected):
    for name in ("blank-text", "shuffle-frames"):
        results = []
        for attempt in ("a", "b"):
            output = tmp_path / f"{name}-{attempt}.csv"
            predict_table(
                run_dir, str(tiny_clips / "train.csv"), output, video_dir=str(tiny_clips / "videos"), ablations=[name],
                num_workers=0,
            )  # fmt: skip
            results.append(read(output))
        assert results[0] == results[1]
        assert max(abs(results[0][k] - expected[k]) for k in expected) > 1e-4
    with pytest.raises(ConfigError, match="blank-text, shuffle-frames, mute"):
        predict_table(run_dir, str(tiny_clips / "train.csv"), tmp_path / "x.csv", ablations=["blank"])


@pytest.fixture(scope="session")
def broken_dir(tmp_path_factory):
    """A folder of unusual and broken files: Id -> what must happen ("scored" or the reason of the rejection)."""
    folder = tmp_path_factory.mktemp("broken")
    sound = tone(440, 2)
    fine = write_clip(folder / "fine.mp4", num_frames=50, size=(64, 96), audio=sound)
    data = fine.read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "half.mp4").write_bytes(data[: len(data) // 2])
    (folder / "text.mp4").write_text("this is no video\n" * 50)
    (folder / "random.mp4").write_bytes(np.random.default_rng(0).bytes(20_000))
    (folder / "folder.mp4").mkdir()
    remux(fine, folder / "audio_only.mp4", keep=lambda packet: packet.stream.type == "audio")
    remux(fine, folder / "no_audio.mp4", keep=lambda packet: packet.stream.type == "video")
    remux(fine, folder / "rotated.mp4", rotation=90)
    write_clip(folder / "one_frame.mp4", num_frames=1, size=(64, 96))
    write_clip(folder / "odd.mp4", num_frames=30, size=(66, 98))
    for suffix in ("mkv", "mov", "webm"):
        codecs = {"codec": "libvpx-vp9"} if suffix == "webm" else {}
        write_clip(folder / f"container.{suffix}", num_frames=30, size=(64, 96), **codecs)
    outcome = dict.fromkeys(("fine", "no_audio", "rotated", "one_frame", "odd", "mkv", "mov", "webm"), "scored")
    outcome |= {"half": "unreadable", "text": "unreadable", "random": "unreadable", "empty": "empty"}
    outcome |= {"audio_only": "no_video", "folder": "not_a_file", "gone": "missing"}
    with open(folder / "table.csv", "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["Id", "Title", "Video"])
        for name in outcome:
            writer.writerow([name, "a title", f"container.{name}" if name in ("mkv", "mov", "webm") else ""])
    return folder, outcome


def test_every_broken_file_is_scored_or_rejected_with_its_reason(run_dir, broken_dir, tmp_path):
    folder, outcome = broken_dir
    output = tmp_path / "out.csv"
    words = ["--model", run_dir, "--data", folder / "table.csv", "--video-dir", folder, "--output", output]
    status, text = predict(*words, "--num-workers", 2)
    assert status == 1
    assert not output.exists(), "an incomplete table must not look complete"
    assert "was not written" in text
    with open(f"{output}.rejected.csv", newline="") as stream:
        rejected = {row["Id"]: row["reason"] for row in csv.DictReader(stream)}
    assert rejected == {k: v for k, v in outcome.items() if v != "scored"}
    status, text = predict(*words, "--on-error", "skip")
    assert status == 0
    scores = read(output)
    assert list(scores) == [k for k, v in outcome.items() if v == "scored"]
    assert all(0 <= s <= 1 for s in scores.values())
    assert f"{len(scores)} of {len(outcome)} rows scored" in text


def test_real_clips(run_dir, shared_dir, tmp_path):
    clips = shared_dir / "data/snapugc"
    results = []
    for attempt in range(2):
        output = tmp_path / f"{attempt}.csv"
        predict_table(run_dir, str(clips / "clips.csv"), output, video_dir=str(clips / "videos"), num_workers=2)
        results.append(read(output))
    assert list(results[0]) == [row.id for row in read_manifest(clips / "clips.csv", clips / "videos")]
    assert results[0] == results[1]
    assert all(0 <= s <= 1 for s in results[0].values())


@pytest.mark.slow
def test_kill_and_resume(run_dir, tiny_clips, tmp_path, expected):
    """kill -9 after the first finished batch; the second run scores only what is missing, with equal results."""
    output = tmp_path / "out.csv"
    table, videos = tiny_clips / "train.csv", tiny_clips / "videos"
    words = [
        sys.executable, "-m", "lmm_ecr.cli", "predict", "--model", run_dir, "--data", table, "--video-dir", videos,
        "--output", output, "--batch-size", "1", "--num-workers", "0",
    ]  # fmt: skip
    process = subprocess.Popen([str(w) for w in words], stderr=subprocess.DEVNULL)
    journal = tmp_path / "out.csv.partial" / "part-00000.jsonl"
    deadline = time.monotonic() + 300
    while not (journal.exists() and journal.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    finished = len(journal.read_text().splitlines())
    assert 1 <= finished < 12, "the kill came too late to test anything"
    assert not output.exists()
    with open(journal, "a") as stream:
        stream.write('{"row": 3, "scor')  # what a kill in the middle of a write leaves
    report = predict_table(run_dir, str(table), output, video_dir=str(videos), num_workers=0)
    assert report.num_resumed == finished
    scores = read(output)
    assert list(scores) == list(expected)
    np.testing.assert_allclose(list(scores.values()), list(expected.values()), rtol=0, atol=1e-6)


def test_calibration_and_interval(run_dir, tiny_clips, tmp_path, expected):
    from lmm_ecr.calibration import Calibration

    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, 400)
    calibration = Calibration.fit(values, np.clip(values * 0.5 + rng.normal(0, 0.05, 400), 0, 1), method="logistic")
    calibration.save(tmp_path / "calibration.json")
    output = tmp_path / "out.csv"
    status, _ = predict(
        "--model", run_dir, "--data", tiny_clips / "train.csv", "--video-dir", tiny_clips / "videos", "--output", output,
        "--calibrate", tmp_path / "calibration.json", "--interval", 0.9, "--num-workers", 0,
    )  # fmt: skip
    assert status == 0
    with open(output, newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["Id", "ECR", "ECR_lo", "ECR_hi"]
    calibrated = calibration.apply(np.array(list(expected.values())))
    np.testing.assert_allclose([float(r["ECR"]) for r in rows], calibrated, rtol=0, atol=1e-4)
    assert all(float(r["ECR_lo"]) <= float(r["ECR"]) <= float(r["ECR_hi"]) for r in rows)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--interval", "0.9"], "needs --calibrate"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--on-error", "ignore"], "fail or skip"),
        (["--decoder", "opencv"], "pyav, decord; got 'opencv'"),
        (["--dtype", "float16"], "auto, float32 or bfloat16"),
    ],
)
def test_contradictions_are_said_before_anything_is_loaded(run_dir, tiny_clips, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        predict(
            "--model", run_dir, "--data", tiny_clips / "train.csv", "--video-dir", tiny_clips / "videos",
            "--output", tmp_path / "out.csv", *words,
        )  # fmt: skip


def test_no_model_directory(tmp_path, run_dir):
    with pytest.raises(ConfigError, match="no such model directory"):
        Predictor.from_pretrained(tmp_path / "nothing")
    incomplete = tmp_path / "incomplete"
    shutil.copytree(run_dir, incomplete)
    (incomplete / "preprocessing.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessing\.json is missing"):
        Predictor.from_pretrained(incomplete)


def test_bfloat16_scores_are_close_and_not_tied(run_dir, tiny_manifest, expected):
    predictor = Predictor.from_pretrained(run_dir, dtype="bfloat16")
    clips = [{"video": r.video, "title": r.title, "description": r.description} for r in tiny_manifest]
    scores = predictor.predict(clips)[:, 0]
    np.testing.assert_allclose(scores, list(expected.values()), rtol=0, atol=0.1)
    assert len(set(scores)) == len(scores)
