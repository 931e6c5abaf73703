"""`lmm-ecr predict` called again: finished work is recognised, nothing is replaced by surprise, missing rows are caught up."""

import csv
import json
import shutil

import pytest

from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.journal import Journal
from lmm_ecr.predict import load_table, predict_table, run_identity
from lmm_ecr.predictor import Predictor
from tests.predicting import predict, read, write_model


@pytest.fixture(scope="module")
def model(tiny_qwen, tiny_processor, tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), tiny_qwen, tiny_processor)


@pytest.fixture
def job(model, tiny_clips, tmp_path):
    """A function that scores four clips in a folder of their own into `out.csv`; words are added to the command."""
    (tmp_path / "videos").mkdir()
    with open(tiny_clips / "train.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))[:4]
    with open(tmp_path / "table.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, ["Id", "Title", "Description"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        shutil.copy(tiny_clips / "videos" / f"{row['Id']}.mp4", tmp_path / "videos")

    def call(*words, **options):
        options = {
            "model": model,
            "data": tmp_path / "table.csv",
            "video-dir": tmp_path / "videos",
            "output": tmp_path / "out.csv",
            **options,
        }
        return predict(*(w for k, v in options.items() for w in (f"--{k}", v)), "--num-workers", 0, *words)

    call.ids = [row["Id"] for row in rows]
    call.clip = lambda i: tmp_path / "videos" / f"{call.ids[i]}.mp4"
    return call


@pytest.fixture
def loads(monkeypatch):
    """Counts how often a model was loaded for scoring."""
    counted = []
    original = Predictor.from_pretrained.__func__

    def from_pretrained(cls, directory, **options):
        counted.append(directory)
        return original(cls, directory, **options)

    monkeypatch.setattr(Predictor, "from_pretrained", classmethod(from_pretrained))
    return counted


def test_the_table_itself_is_never_the_output(job, tmp_path, loads):
    table = (tmp_path / "table.csv").read_text()
    for words in ([], ["--force"]):
        with pytest.raises(DataError, match="also one of the inputs"):
            job(*words, output=tmp_path / "table.csv")
    assert (tmp_path / "table.csv").read_text() == table
    shutil.copy(tmp_path / "table.csv", tmp_path / "x.csv.rejected.csv")
    with pytest.raises(DataError, match="also one of the inputs"):
        job(data=tmp_path / "x.csv.rejected.csv", output=tmp_path / "x.csv")
    assert not loads


def test_a_file_of_someone_else_needs_force(job, tmp_path, loads):
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(DataError, match=r"exists already.*--force"):
        job()
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert not loads
    assert job("--force")[0] == 0
    assert list(read(tmp_path / "out.csv")) == job.ids


def test_a_directory_as_output_is_noticed_before_the_work(job, tmp_path, loads):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="is a directory"):
        job("--force", output=tmp_path / "folder")
    assert not loads
    assert not (tmp_path / "folder.partial").exists()


def test_a_pipe_is_no_output(job):
    for output in ("-", "/dev/null"):
        with pytest.raises(ConfigError, match="give the name of a file"):
            job(output=output)


def test_a_link_stays_a_link(job, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.csv").symlink_to(tmp_path / "elsewhere" / "scores.csv")
    assert job()[0] == 0
    assert (tmp_path / "out.csv").is_symlink()
    assert list(read(tmp_path / "elsewhere" / "scores.csv")) == job.ids
    assert "already complete" in job()[1]


def test_finished_work_is_recognised_and_not_repeated(job, model, tmp_path, loads):
    assert job()[0] == 0
    before = (tmp_path / "out.csv").stat().st_mtime_ns
    for path in model.iterdir():
        path.touch()  # a training that is started again after its end writes the same model once more
    status, text = job()
    assert status == 0
    assert "already complete: 4 of 4 rows" in text
    assert len(loads) == 1
    assert (tmp_path / "out.csv").stat().st_mtime_ns == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.csv.done.json", "table.csv", "videos"]
    assert job("--force")[0] == 0
    assert len(loads) == 2


def test_finished_work_of_another_run_needs_force(job, tmp_path, tiny_qwen, tiny_processor, loads):
    from lmm_ecr.calibration import Calibration

    job()
    with pytest.raises(ConfigError, match=r"different: ablations \(\[\] there, \['blank-text'\] now\)\).*--force"):
        job("--ablate", "blank-text")
    with pytest.raises(ConfigError, match=r"different: dtype \('float32' there, 'bfloat16' now\)"):
        job("--dtype", "bfloat16")
    other = write_model(tmp_path / "other", tiny_qwen, tiny_processor, seed=1)
    with pytest.raises(ConfigError, match=r"different: model \("):
        job(model=other)
    shutil.copytree(tmp_path / "videos", tmp_path / "videos2")
    with pytest.raises(ConfigError, match=r"different: videos \("):
        job(**{"video-dir": tmp_path / "videos2"})
    Calibration.fit([i / 100 for i in range(100)], [i / 100 for i in range(100)]).save(tmp_path / "c.json")
    with pytest.raises(ConfigError, match=r"different: calibration \("):
        job("--calibrate", tmp_path / "c.json")
    with open(tmp_path / "table.csv", "a") as stream:
        stream.write("another,title,\n")
    with pytest.raises(ConfigError, match=r"different: table \('4 rows [0-9a-f]+' there, '5 rows [0-9a-f]+' now\)"):
        job("--on-error", "skip")
    assert len(loads) == 1
    first = read(tmp_path / "out.csv")
    assert job("--force", model=other)[0] == 1  # the row that was added has no clip
    assert read(tmp_path / "out.csv") == first, "an incomplete run replaces nothing"
    assert job("--force", "--on-error", "skip", model=other)[0] == 0
    assert read(tmp_path / "out.csv") != first


def test_a_changed_output_is_not_taken_for_finished(job, tmp_path):
    job()
    with open(tmp_path / "out.csv", "a") as stream:
        stream.write("z,0.5\n")
    with pytest.raises(ConfigError, match="changed since"):
        job()


def test_a_repaired_clip_is_read_again(job, tmp_path):
    """What the command advises: repair the clips and run the same command again."""
    sound = job.clip(1).read_bytes()
    job.clip(1).write_bytes(b"")
    moved = tmp_path / "elsewhere.mp4"
    job.clip(3).rename(moved)
    status, text = job()
    assert status == 1
    assert "2 of 4 rows scored (" in text
    assert "repair the clips and run the same command again" in " ".join(text.split())
    assert not (tmp_path / "out.csv").exists()
    status, text = job()
    assert status == 1
    assert "2 of 4 rows scored, 2 of them by an earlier run" in text

    job.clip(1).write_bytes(sound)
    status, text = job()
    assert status == 1
    assert "3 of 4 rows scored, 2 of them by an earlier run" in text
    with open(tmp_path / "out.csv.rejected.csv", newline="") as stream:
        assert [(r["row"], r["Id"], r["reason"]) for r in csv.DictReader(stream)] == [("4", job.ids[3], "missing")]

    moved.rename(job.clip(3))
    status, text = job()
    assert status == 0
    assert "4 of 4 rows scored, 3 of them by an earlier run" in text
    assert not (tmp_path / "out.csv.rejected.csv").exists()
    assert not (tmp_path / "out.csv.partial").exists()
    repaired = read(tmp_path / "out.csv")
    job(output=tmp_path / "whole.csv")
    assert list(repaired) == job.ids
    assert repaired == pytest.approx(read(tmp_path / "whole.csv"), abs=1e-6)


def test_a_clip_skipped_and_repaired_is_added(job, tmp_path, loads):
    sound = job.clip(0).read_bytes()
    job.clip(0).write_bytes(b"")
    assert job("--on-error", "skip")[0] == 0
    assert list(read(tmp_path / "out.csv")) == job.ids[1:]
    assert job()[0] == 1, "rows are missing, and skipping was not asked for this time"
    assert list(read(tmp_path / "out.csv")) == job.ids[1:]
    job.clip(0).write_bytes(sound)
    status, text = job("--on-error", "skip")
    assert status == 0
    assert "4 of 4 rows scored, 3 of them by an earlier run" in text
    assert list(read(tmp_path / "out.csv")) == job.ids
    assert "already complete" in job()[1]
    assert len(loads) == 3


def test_a_scored_clip_may_go_away(job, tmp_path):
    sound = job.clip(2).read_bytes()
    job.clip(2).write_bytes(b"")
    assert job()[0] == 1
    job.clip(0).unlink()
    job.clip(2).write_bytes(sound)
    status, text = job()
    assert status == 0
    assert "4 of 4 rows scored, 3 of them by an earlier run" in text
    assert list(read(tmp_path / "out.csv")) == job.ids


def test_scores_of_other_videos_are_not_taken_over(job, tmp_path):
    shutil.copytree(tmp_path / "videos", tmp_path / "v3")
    job.clip(1).write_bytes(b"")
    assert job()[0] == 1
    with pytest.raises(ConfigError, match=r"unfinished results of another run \(different: videos \("):
        job(**{"video-dir": tmp_path / "v3"})
    (tmp_path / "link").symlink_to(tmp_path / "videos")  # another name of the same folder
    assert job(**{"video-dir": tmp_path / "link"})[0] == 1
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / "v3")
    with pytest.raises(ConfigError, match="different: videos"):
        job(**{"video-dir": tmp_path / "link"})


def test_auto_is_resolved_before_it_identifies_a_run(job, tmp_path):
    """On a CPU "auto" is float32: a run on a GPU, where it is bfloat16, must not go on from these scores."""
    job()
    assert json.loads((tmp_path / "out.csv.done.json").read_text())["identity"]["dtype"] == "float32"
    assert "already complete" in job("--dtype", "float32")[1]


def test_a_kill_after_the_last_row_costs_nothing(job, model, tmp_path, loads):
    """Everything was scored, and the output not written: the next run only writes."""
    job()
    scores = read(tmp_path / "out.csv")
    identity = json.loads((tmp_path / "out.csv.done.json").read_text())["identity"]
    for name in ("out.csv", "out.csv.done.json"):
        (tmp_path / name).unlink()
    journal = Journal(tmp_path / "out.csv", {k: v for k, v in identity.items() if k not in ("calibration", "interval")})
    journal.open()
    journal.append(0, [{"row": i + 1, "scores": [scores[name]]} for i, name in enumerate(job.ids)])
    status, text = job()
    assert status == 0
    assert "4 of 4 rows scored, 4 of them by an earlier run" in text
    assert len(loads) == 1
    assert read(tmp_path / "out.csv") == scores


def test_prepared_clips_identify_themselves(model, tiny_manifest, tiny_processor, tmp_path):
    from lmm_ecr.prepare import prepare

    found = []
    for image_format in ("png", "jpeg"):
        prepare(tiny_manifest, tiny_processor, tmp_path / "clips", image_format=image_format, num_workers=0)
        dataset = load_table(str(tmp_path / "clips"), None, tiny_processor, "pyav", ())
        found.append(run_identity(model, dataset, (), "float32")["videos"])
        shutil.rmtree(tmp_path / "clips")
    assert found[0] != found[1]


def test_force_goes_on_after_a_kill(job, model, tmp_path):
    """A job with --force in its command that is put back into the queue must come to an end."""
    job()
    job.clip(1).write_bytes(b"")
    assert job("--force")[0] == 1
    status, text = job("--force")
    assert status == 1
    assert "3 of 4 rows scored, 3 of them by an earlier run" in text
    with pytest.raises(DataError, match=r"exists already.*--force"):
        job()
    report = predict_table(
        model, str(tmp_path / "table.csv"), tmp_path / "out.csv", video_dir=str(tmp_path / "videos"), num_workers=0,
        on_error="skip", force=True,
    )  # fmt: skip
    assert (report.num_resumed, report.num_scored, report.written) == (3, 3, True)
