"""`prepare`: interrupted work is continued to the same bytes, wrong directories are refused, bad clips are listed."""

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmm_ecr.data.cache import PreparedReader, read_prepared_manifest
from lmm_ecr.data.manifest import Rejection, read_manifest
from lmm_ecr.data.sampling import FrameSampling
from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.files import read_json
from lmm_ecr.models.qwen2_5_vl import Qwen25VLProcessor
from lmm_ecr.prepare import PLAN_FILE, prepare, prepare_table


def contents(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def whole(tiny_manifest, tiny_processor, tmp_path_factory):
    """An uninterrupted run in this process: four shards."""
    output = tmp_path_factory.mktemp("whole") / "out"
    prepare(tiny_manifest, tiny_processor, output, num_workers=0, clips_per_shard=3)
    return output


def test_layout_and_progress(whole, tiny_manifest, tiny_processor, tmp_path):
    assert set(contents(whole)) == {
        "prepared.json",
        "plan.json",
        "manifest.parquet",
        "rejected.csv",
        *(f"shards/0000{i}.{kind}" for i in range(4) for kind in ("arrow", "json")),
    }
    info = read_json(whole / "prepared.json")
    assert (info["num_clips"], info["num_rows"], info["image_format"]) == (12, 12, "jpeg")
    assert info["clip_spec"] == tiny_processor.clip_spec()
    assert (whole / "rejected.csv").read_text() == "row,Id,reason,detail\n"
    calls = []
    prepare(
        tiny_manifest,
        tiny_processor,
        tmp_path / "out",
        num_workers=2,
        clips_per_shard=3,
        progress=lambda *a: calls.append(a),
    )
    assert calls == [(i, 12) for i in range(1, 13)]
    assert contents(tmp_path / "out") == contents(whole), "the number of workers must not show"


def test_finished_directory_is_left_alone(whole, tiny_manifest, tiny_processor):
    before = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    calls = []
    rejections = prepare(tiny_manifest, tiny_processor, whole, clips_per_shard=3, progress=lambda *a: calls.append(a))
    assert rejections == []
    assert calls[-1] == (12, 12)
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == before


def test_killed_run_is_continued_to_the_same_bytes(
    whole, tiny_manifest, tiny_clips, tiny_qwen, tiny_processor, tmp_path
):
    output = tmp_path / "out"
    code = (
        "import sys, time\n"
        "from lmm_ecr.data.manifest import read_manifest\n"
        "from lmm_ecr.models.qwen2_5_vl import Qwen25VLProcessor, Qwen25VLSpec\n"
        "from lmm_ecr.prepare import prepare\n"
        "clips, model, output = sys.argv[1:]\n"
        "manifest = read_manifest(clips + '/train.csv', clips + '/videos', targets=['ECR'])\n"
        "processor = Qwen25VLProcessor.from_backbone(model, Qwen25VLSpec(max_pixels=6 * 784, min_pixels=784))\n"
        "slow = lambda done, total: time.sleep(0.05)\n"
        "prepare(manifest, processor, output, num_workers=1, clips_per_shard=3, progress=slow)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tiny_clips), str(tiny_qwen), str(output)], start_new_session=True
    )
    deadline = time.monotonic() + 120
    while not (output / "shards" / "00001.json").is_file():
        assert process.poll() is None, "ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "prepared.json").exists()
    with pytest.raises(ConfigError, match="is not prepared"):
        read_prepared_manifest(output)
    (output / "shards" / ".00002.arrow.abc123.tmp").write_bytes(b"half a shard")

    calls = []
    prepare(
        tiny_manifest, tiny_processor, output, num_workers=0, clips_per_shard=3, progress=lambda *a: calls.append(a)
    )
    assert calls[0][0] == 3, "the finished shards are not decoded again"
    assert calls[-1] == (12, 12)
    assert contents(output) == contents(whole)


def test_a_shard_without_its_report_is_made_again(whole, tiny_manifest, tiny_processor, tmp_path):
    """The kill may come between the two files."""
    output = shutil.copytree(whole, tmp_path / "out")
    for name in ("prepared.json", "manifest.parquet", "rejected.csv", "shards/00002.json"):
        (output / name).unlink()
    (output / "shards/00002.arrow").write_bytes(b"stale")
    prepare(tiny_manifest, tiny_processor, output, num_workers=0, clips_per_shard=3)
    assert contents(output) == contents(whole)


@pytest.mark.parametrize("left", ["nothing", "half a plan"])
def test_a_run_killed_before_its_plan_was_written_is_begun_anew(whole, tiny_manifest, tiny_processor, tmp_path, left):
    """Bug: the shard folder or half a plan of such a run made the directory look like somebody else's."""
    output = tmp_path / "out"
    output.mkdir()
    if left == "half a plan":
        (output / f".{PLAN_FILE}.x1y2.tmp").write_text("{")
    few = replace(tiny_manifest, rows=tiny_manifest.rows[:2])
    assert prepare(few, tiny_processor, output, num_workers=0) == []
    assert not list(output.rglob(".*"))


def test_other_tables_and_settings_are_refused_by_name(whole, tiny_manifest, tiny_qwen, tiny_processor):
    def refusal(manifest=tiny_manifest, processor=tiny_processor, **options) -> str:
        with pytest.raises(ConfigError) as caught:
            prepare(manifest, processor, whole, **{"clips_per_shard": 3, "num_workers": 0, **options})
        message = str(caught.value)
        assert "was begun with another table or other settings: " in message
        assert message.endswith("Choose another --output, or delete the directory.")
        return message

    before = contents(whole)
    assert "image_format ('jpeg' -> 'png')" in refusal(image_format="png")
    assert "clips_per_shard (3 -> 4)" in refusal(clips_per_shard=4)
    assert "num_rows (12 -> 11)" in refusal(replace(tiny_manifest, rows=tiny_manifest.rows[1:]))
    rows = [replace(tiny_manifest[0], title="another"), *tiny_manifest.rows[1:]]
    assert "table (" in refusal(replace(tiny_manifest, rows=rows))
    assert "targets (['ECR'] -> ['NAWP'])" in refusal(replace(tiny_manifest, targets=("NAWP",)))
    spec = replace(tiny_processor.spec, sampling=FrameSampling(num_frames=4))
    assert "'num_frames': 4" in refusal(processor=Qwen25VLProcessor(tiny_processor.processor, spec))
    assert contents(whole) == before


def test_somebody_elses_directory_is_not_touched(tiny_manifest, tiny_processor, tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="is not empty and was not made by prepare"):
        prepare(tiny_manifest, tiny_processor, tmp_path, num_workers=0)
    assert list(contents(tmp_path)) == ["thesis.tex"]


@pytest.mark.parametrize("options", [{"image_format": "webp"}, {"clips_per_shard": 0}, {"num_workers": -1}])
def test_impossible_settings_are_refused_before_anything_is_written(tiny_manifest, tiny_processor, tmp_path, options):
    with pytest.raises(ConfigError, match=next(iter(options)).replace("_", "[_ ]")):
        prepare(tiny_manifest, tiny_processor, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def mixed(tiny_clips, tmp_path):
    """A table of two good clips, one empty file, one text file and one missing file."""
    good = sorted((tiny_clips / "videos").glob("*.mp4"))[:2]
    shutil.copy(good[0], tmp_path / "a.mp4")
    (tmp_path / "b.mp4").touch()
    (tmp_path / "c.mp4").write_text("not a video\n" * 100)
    shutil.copy(good[1], tmp_path / "e.mp4")
    (tmp_path / "t.csv").write_text("Id,Title,ECR\na,x,0.1\nb,,0.2\nc,,0.3\nd,,0.4\ne,,0.5\n")
    return read_manifest(tmp_path / "t.csv", targets=["ECR"], missing_files="reject")


def test_unreadable_clips_are_listed_with_reasons_and_left_out(mixed, tiny_processor, tmp_path):
    output = tmp_path / "out"
    rejections = prepare(mixed, tiny_processor, output, num_workers=1, clips_per_shard=2)
    assert {(r.row, r.id, r.reason) for r in rejections} == {
        (2, "b", "empty"),
        (3, "c", "unreadable"),
        (4, "d", "missing"),
    }
    with open(output / "rejected.csv", encoding="utf-8", newline="") as stream:
        listed = [Rejection(int(r["row"]), r["Id"], r["reason"], r["detail"]) for r in csv.DictReader(stream)]
    assert listed == rejections
    manifest = read_prepared_manifest(output, ["ECR"])
    assert [(r.row, r.id, r.labels) for r in manifest] == [(1, "a", (0.1,)), (5, "e", (0.5,))]
    reader = PreparedReader(output, tiny_processor.clip_spec())
    first, second = (reader(row) for row in manifest)
    assert not np.array_equal(first.frames, second.frames)
    assert prepare(mixed, tiny_processor, output, clips_per_shard=2) == rejections


def test_a_table_without_one_readable_clip_says_so(mixed, tiny_processor, tmp_path):
    """Bug: training then failed on an empty table somewhere else."""
    broken = replace(mixed, rows=[row for row in mixed if row.id in "bc"])
    rejections = prepare(broken, tiny_processor, tmp_path / "out", num_workers=0)
    assert [r.id for r in rejections] == ["b", "c", "d"]
    with pytest.raises(DataError, match=r"holds no clips: none could be read, see .*rejected.csv"):
        read_prepared_manifest(tmp_path / "out", ["ECR"])


@pytest.mark.parametrize("options", [{"decoder": "opencv"}, {"on_error": "zzz"}])
def test_unknown_choices_are_refused_before_anything_is_loaded(tmp_path, options):
    with pytest.raises(ConfigError, match=r"must be .*, got '(opencv|zzz)'|got 'opencv'"):
        prepare_table("nothing.csv", tmp_path / "out", model="nothing", **options)
    assert not (tmp_path / "out").exists()


def test_repaired_and_restored_clips_are_read_by_the_next_run(mixed, tiny_clips, tiny_processor, tmp_path):
    """Bug: a rejected row counted as finished for ever, and a restored file as another table."""
    output = tmp_path / "out"
    prepare(mixed, tiny_processor, output, num_workers=0, clips_per_shard=2)
    first = contents(output)
    good = sorted((tiny_clips / "videos").glob("*.mp4"))
    shutil.copy(good[2], tmp_path / "b.mp4")
    shutil.copy(good[3], tmp_path / "d.mp4")
    again = read_manifest(tmp_path / "t.csv", targets=["ECR"], missing_files="reject")
    calls = []
    rejections = prepare(
        again, tiny_processor, output, num_workers=0, clips_per_shard=2, progress=lambda *a: calls.append(a)
    )
    assert [(r.id, r.reason) for r in rejections] == [("c", "unreadable")]
    assert calls[-1] == (5, 5)
    manifest = read_prepared_manifest(output, ["ECR"])
    assert [row.id for row in manifest] == ["a", "b", "d", "e"]
    reader = PreparedReader(output, tiny_processor.clip_spec())
    assert len({reader(row).frames.tobytes() for row in manifest}) == 4
    fresh = tmp_path / "fresh"
    prepare(again, tiny_processor, fresh, num_workers=0, clips_per_shard=2)
    assert contents(output) == contents(fresh) != first


@pytest.mark.parametrize("finished", [True, False])
def test_other_videos_of_the_same_ids_are_refused(tiny_clips, tiny_processor, tmp_path, finished):
    """Bug: another --video-dir was ignored by a resumed or finished run."""
    good = sorted((tiny_clips / "videos").glob("*.mp4"))
    (tmp_path / "t.csv").write_text("Id\na\nb\n")
    for folder, (one, two) in {"A": good[:2], "B": good[2:4], "copy": good[:2]}.items():
        (tmp_path / folder).mkdir()
        shutil.copyfile(one, tmp_path / folder / "a.mp4")
        shutil.copyfile(two, tmp_path / folder / "b.mp4")
    output = tmp_path / "out"
    prepare(read_manifest(tmp_path / "t.csv", tmp_path / "A"), tiny_processor, output, num_workers=0, clips_per_shard=1)
    if not finished:
        for name in ("prepared.json", "shards/00001.json"):
            (output / name).unlink()
    other = read_manifest(tmp_path / "t.csv", tmp_path / "B")
    with pytest.raises(ConfigError, match=r"was prepared from other video files: .*B/a\.mp4\. Choose another --output"):
        prepare(other, tiny_processor, output, num_workers=0, clips_per_shard=1)
    copy = read_manifest(tmp_path / "t.csv", tmp_path / "copy")
    assert prepare(copy, tiny_processor, output, num_workers=0, clips_per_shard=1) == [], "the same content elsewhere"
    shutil.rmtree(tmp_path / "copy")
    gone = replace(copy, rows=[], missing=copy.rows, rejections=[Rejection(r.row, r.id, "missing") for r in copy])
    assert prepare(gone, tiny_processor, output, num_workers=0, clips_per_shard=1) == [], "prepared clips need no file"


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_damaged_records_of_a_run(whole, tiny_manifest, tiny_processor, tmp_path, damage):
    """A damaged plan is refused with what to do; a shard with a damaged report is made again."""
    output = shutil.copytree(whole, tmp_path / "out")
    (output / "shards/00001.json").write_text(damage)
    (output / "prepared.json").write_text(damage)
    prepare(tiny_manifest, tiny_processor, output, num_workers=0, clips_per_shard=3)
    assert contents(output) == contents(whole)
    (output / PLAN_FILE).write_text(damage)
    with pytest.raises(ConfigError, match=r"plan\.json is damaged.*; delete the directory .*out, and prepare again"):
        prepare(tiny_manifest, tiny_processor, output, num_workers=0, clips_per_shard=3)


@pytest.mark.parametrize("recipe", ["qwen2_5_vl_7b", "qwen2_5_vl_7b_lora"])
def test_a_recipe_for_gpus_is_prepared_on_any_machine(tiny_manifest, tiny_clips, tiny_qwen, tmp_path, recipe):
    """Bug: "Your setup doesn't support bf16/gpu", although preparing needs none."""
    text = (Path(__file__).resolve().parents[1] / "recipes/configs" / f"{recipe}.yaml").read_text(encoding="utf-8")
    assert "bf16: true" in text
    config = tmp_path / "recipe.yaml"
    config.write_text(
        re.sub("(?m)^(model|max_pixels|num_frames):.*$", "", text) + f"\nmodel: {tiny_qwen}\nmax_pixels: 4704\n"
    )
    options = {"video_dir": tiny_clips / "videos", "num_workers": 0}
    result = prepare_table(str(tiny_clips / "eval.csv"), tmp_path / "out", config=config, **options)
    assert "6 of 6 clips are ready" in result.describe()
    assert read_json(tmp_path / "out/prepared.json")["clip_spec"]["max_pixels"] == 4704
    config.write_text(config.read_text() + "bf_16: true\n")
    with pytest.raises(ConfigError, match=r"unknown argument 'bf_16'.*did you mean 'bf16'"):
        prepare_table(str(tiny_clips / "eval.csv"), tmp_path / "other", config=config, **options)
