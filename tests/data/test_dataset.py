"""From rows to batches: every sample keeps its place, whatever happens to its clip."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lmm_ecr.data.ablation import ABLATIONS, ablate
from lmm_ecr.data.dataset import BOOKKEEPING, ClipDataset, Collator, FileReader, estimate_lengths, split_batch
from lmm_ecr.data.decode import Clip
from lmm_ecr.data.manifest import Manifest, ManifestRow, Rejection, read_manifest
from lmm_ecr.errors import ClipError, ConfigError
from lmm_ecr.prepare import prepare
from tests.data.media import write_clip

NAN = float("nan")


@pytest.fixture
def with_broken(tiny_manifest, tmp_path) -> Manifest:
    """Rows: good, empty file, good, missing file; the first row's title is long; two targets."""
    empty = tmp_path / "empty.mp4"
    empty.touch()
    first, second, third, fourth = tiny_manifest.rows[:4]
    rows = [
        replace(first, title="word " * 200, labels=(0.25, NAN)),
        replace(second, video=empty, labels=(0.5, 0.5)),
        replace(third, title=None, description="short", labels=(NAN, 0.75)),
        replace(fourth, video=tmp_path / "gone.mp4", labels=(0.1, 0.2)),
    ]
    return Manifest("t.csv", rows, ("ECR", "NAWP"))


def test_item_is_the_row_encoded(tiny_manifest, tiny_processor):
    dataset = ClipDataset(tiny_manifest, tiny_processor)
    assert len(dataset) == 12
    row = tiny_manifest[3]
    clip = FileReader(tiny_processor)(row)
    expected = tiny_processor.encode(clip, row.title, row.description)
    sample = dataset[3]
    assert (sample["row_index"], sample["labels"], sample["damaged"]) == (3, row.labels, None)
    assert set(sample["encoded"]) == set(expected)
    for _ in range(2):
        assert all(torch.equal(dataset[3]["encoded"][name], expected[name]) for name in expected)


def test_unreadable_clips_keep_their_place_and_say_why(with_broken, tiny_processor):
    dataset = ClipDataset(with_broken, tiny_processor)
    batch = Collator(tiny_processor)([dataset[i] for i in (3, 2, 1, 0)])
    assert batch["row_index"].tolist() == [3, 2, 1, 0]
    assert batch["readable"].tolist() == [False, True, False, True]
    torch.testing.assert_close(batch["labels"], torch.tensor([[NAN, 0.75], [0.25, NAN]]), equal_nan=True)
    assert batch["labels"].dtype == torch.float32
    assert batch["num_truncated"] == 1
    assert [(index, r.row, r.id, r.reason) for index, r in batch["rejections"]] == [
        (3, with_broken[3].row, with_broken[3].id, "missing"),
        (1, with_broken[1].row, with_broken[1].id, "empty"),
    ]
    inputs, notes = split_batch(batch)
    assert set(notes) == set(BOOKKEEPING)
    assert not set(inputs) & set(BOOKKEEPING)
    alone = split_batch(Collator(tiny_processor)([dataset[2], dataset[0]]))[0]
    assert set(inputs) == set(alone)
    assert all(torch.equal(inputs[name].nan_to_num(), alone[name].nan_to_num()) for name in alone)


def test_batch_without_a_readable_clip_is_bookkeeping_only(with_broken, tiny_processor):
    dataset = ClipDataset(with_broken, tiny_processor)
    inputs, notes = split_batch(Collator(tiny_processor)([dataset[1], dataset[3]]))
    assert inputs == {}
    assert notes["readable"].tolist() == [False, False]
    assert len(notes["rejections"]) == 2


def test_batch_without_targets_has_no_labels(tiny_manifest, tiny_processor):
    rows = [replace(row, labels=()) for row in tiny_manifest.rows[:2]]
    dataset = ClipDataset(Manifest("t.csv", rows), tiny_processor)
    assert "labels" not in Collator(tiny_processor)([dataset[0], dataset[1]])


def test_damage_of_a_clip_that_could_be_read_is_reported(tiny_manifest, tiny_processor):
    def reader(row):
        clip = FileReader(tiny_processor)(row)
        return replace(clip, damaged="errors in 2 video packets") if row.id == tiny_manifest[1].id else clip

    dataset = ClipDataset(tiny_manifest, tiny_processor, reader)
    batch = Collator(tiny_processor)([dataset[0], dataset[1]])
    assert batch["damaged"] == [(1, "errors in 2 video packets")]
    assert batch["readable"].tolist() == [True, True]


def test_errors_that_are_not_about_the_clip_are_not_swallowed(tiny_manifest, tiny_processor):
    def reader(row):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError):
        ClipDataset(tiny_manifest, tiny_processor, reader)[0]


def test_workers_give_the_same_batches_in_the_same_order(with_broken, tiny_processor):
    dataset, collate = ClipDataset(with_broken, tiny_processor), Collator(tiny_processor)
    batches = [list(DataLoader(dataset, batch_size=2, num_workers=workers, collate_fn=collate)) for workers in (0, 2)]
    for a, b in zip(*batches, strict=True):
        assert a["rejections"] == b["rejections"]
        assert torch.equal(a["row_index"], b["row_index"])
        assert torch.equal(a["pixel_values_videos"], b["pixel_values_videos"])


def made_clip(num_frames: int = 8) -> Clip:
    frames = np.arange(num_frames, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    return Clip(frames, np.arange(num_frames) / 1.0, np.ones(5, np.float32), float(num_frames), None)


def made_row(clip_id: str = "x") -> ManifestRow:
    return ManifestRow(1, clip_id, Path("x.mp4"), "a title", "a description")


def test_no_ablation_changes_nothing():
    clip = made_clip()
    assert ablate((), clip, made_row()) == (clip, "a title", "a description")


def test_blank_text_removes_title_and_description_only():
    clip = made_clip()
    assert ablate(("blank-text",), clip, made_row()) == (clip, None, None)


def test_shuffled_frames_are_the_same_frames_in_an_order_of_the_id():
    clip = made_clip()
    orders = {}
    for clip_id in (f"clip{i}" for i in range(50)):
        shuffled, title, _ = ablate(("shuffle-frames",), clip, made_row(clip_id))
        again, _, _ = ablate(("shuffle-frames",), made_clip(), made_row(clip_id))
        assert np.array_equal(shuffled.frames, again.frames)
        orders[clip_id] = tuple(shuffled.frames[:, 0, 0, 0].tolist())
        assert sorted(orders[clip_id]) == list(range(8))
        assert np.array_equal(shuffled.timestamps, clip.timestamps)
        assert shuffled.audio is clip.audio
        assert title == "a title"
    assert len(set(orders.values())) > 45
    firsts = np.array(list(orders.values())).mean(0)
    assert np.abs(firsts - 3.5).max() < 1.6, "every place is as likely for every frame"
    assert clip.frames[:, 0, 0, 0].tolist() == list(range(8)), "the clip itself is not changed"


def test_mute_removes_the_sound_only():
    clip = made_clip()
    muted, title, description = ablate(("mute",), clip, made_row())
    assert muted.audio is None
    assert muted.frames is clip.frames
    assert (title, description) == ("a title", "a description")


def test_ablations_add_up_and_reach_the_dataset(tiny_manifest, tiny_processor):
    clip, title, description = ablate(ABLATIONS, made_clip(), made_row())
    assert (clip.audio, title, description) == (None, None, None)
    row = tiny_manifest[0]
    dataset = ClipDataset(tiny_manifest, tiny_processor, ablations=["blank-text", "shuffle-frames"])
    clip, _, _ = ablate(["shuffle-frames"], FileReader(tiny_processor)(row), row)
    expected = tiny_processor.encode(clip, None, None)
    assert all(torch.equal(dataset[0]["encoded"][name], expected[name]) for name in expected)


def test_unknown_ablations_are_refused_at_the_start(tiny_manifest, tiny_processor):
    with pytest.raises(ConfigError, match="'shuffle' is unknown; choose from blank-text, shuffle-frames, mute"):
        ClipDataset(tiny_manifest, tiny_processor, ablations=["shuffle"])


def test_lengths_are_near_the_truth_and_survive_broken_files(with_broken, tiny_manifest, tiny_processor, tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("not a video")
    rows = [*tiny_manifest, *with_broken, replace(tiny_manifest[0], video=text)]
    manifest = replace(tiny_manifest, rows=rows)
    lengths = estimate_lengths(manifest, tiny_processor)
    assert len(lengths) == len(rows)
    assert all(isinstance(n, int) and n > 0 for n in lengths)
    dataset = ClipDataset(tiny_manifest, tiny_processor)
    true = [len(dataset[i]["encoded"]["input_ids"]) for i in range(12)]
    ratios = np.array(lengths[:12]) / true
    assert ratios.max() / ratios.min() < 2
    assert lengths[12] > max(lengths[:12]), "the long title counts"
    assert lengths[13] < max(lengths[:12]), "an unreadable clip counts as its text"


def test_clip_errors_cross_process_borders():
    import pickle

    error = pickle.loads(pickle.dumps(ClipError("a.mp4", "empty", "zero bytes")))
    assert (error.path, error.reason, error.detail, str(error)) == (
        "a.mp4",
        "empty",
        "zero bytes",
        "a.mp4: empty (zero bytes)",
    )


def test_a_clip_too_long_and_narrow_is_a_rejection(tiny_processor, tmp_path):
    """Bug: the library's ValueError ended training, prediction and preparation, even with --on-error skip."""
    write_clip(tmp_path / "strip.mp4", num_frames=3, size=(850, 4))
    write_clip(tmp_path / "limit.mp4", num_frames=3, size=(800, 4))
    (tmp_path / "t.csv").write_text("Id\nstrip\nlimit\n")
    manifest = read_manifest(tmp_path / "t.csv")
    dataset = ClipDataset(manifest, tiny_processor)
    detail = "850x4 pixels; one side may be at most 200 times the other"
    assert dataset[0]["rejection"] == Rejection(1, "strip", "aspect_ratio", detail)
    assert "encoded" in dataset[1]
    narrow = tiny_processor.resize(np.zeros((2, 4, 800, 3), np.uint8))
    assert narrow.shape == (2, 28, 168, 3), "within max_pixels, so that a prepared clip is not resized again"
    assert tiny_processor.resize(narrow) is narrow
    assert min(estimate_lengths(manifest, tiny_processor)) > 0
    assert [r.reason for r in prepare(manifest, tiny_processor, tmp_path / "out", num_workers=0)] == ["aspect_ratio"]
