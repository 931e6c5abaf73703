"""Prepared clips: what comes back, in which process, and what is refused."""

import json
import multiprocessing
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lmm_ecr.data.cache import (
    INFO_FILE,
    PreparedReader,
    check_clip_spec,
    decode_image,
    encode_image,
    is_prepared,
    pack_clip,
    read_prepared_manifest,
    read_shard,
    shard_path,
    unpack_clip,
    write_shard,
)
from lmm_ecr.data.decode import Clip
from lmm_ecr.data.manifest import ManifestRow
from lmm_ecr.errors import ConfigError, DataError
from lmm_ecr.files import read_json, write_json
from lmm_ecr.prepare import prepare

RNG = np.random.default_rng(0)


def smooth_frame(height: int, width: int, phase: float) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width] / 16
    return (127 + 60 * np.stack([np.sin(x + phase), np.cos(y), np.sin(x + y)], -1)).astype(np.uint8)


def made_clip(audio="sound", damaged=None) -> Clip:
    frames = np.stack([smooth_frame(84, 56, t) for t in range(4)])
    sound = RNG.integers(-32768, 32768, 1000).astype(np.float32) / 32768 if isinstance(audio, str) else audio
    return Clip(frames, np.array([0.0, 1 / 3, 0.1 + 0.2, 2.0000000000000004]), sound, 2.75, damaged)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((a.astype(float) - b.astype(float)) ** 2)))


@pytest.fixture(scope="module")
def prepared(tiny_manifest, tiny_processor, tmp_path_factory):
    """The 12 training clips in three shards, lossless."""
    output = tmp_path_factory.mktemp("prepared") / "train"
    assert prepare(tiny_manifest, tiny_processor, output, image_format="png", num_workers=1, clips_per_shard=5) == []
    return output


@pytest.mark.parametrize("damaged", [None, "errors in 3 video packets"])
def test_png_gives_the_same_clip_to_the_bit(damaged):
    clip = made_clip(damaged=damaged)
    again = unpack_clip(pack_clip(clip, "png"))
    assert again.frames.dtype == np.uint8
    assert np.array_equal(again.frames, clip.frames)
    assert again.timestamps.dtype == np.float64
    assert np.array_equal(again.timestamps, clip.timestamps)
    assert again.audio.dtype == np.float32
    assert np.array_equal(again.audio, clip.audio)
    assert (again.duration, again.damaged) == (2.75, damaged)


def test_jpeg_is_close_and_small():
    clip = made_clip()
    again = unpack_clip(pack_clip(clip, "jpeg"))
    assert psnr(again.frames, clip.frames) > 38
    noise = RNG.integers(0, 256, (84, 56, 3), dtype=np.uint8)
    assert len(encode_image(clip.frames[0], "jpeg")) < len(encode_image(noise, "png")) / 3
    assert np.array_equal(decode_image(encode_image(noise, "png")), noise)


def test_sound_beyond_full_scale_is_limited_and_absent_sound_stays_absent():
    again = unpack_clip(pack_clip(made_clip(np.array([-1.5, -1.0, 0.0, 1.0, 2.0], np.float32)), "png"))
    assert again.audio.tolist() == [-1.0, -1.0, 0.0, 32767 / 32768, 32767 / 32768]
    assert unpack_clip(pack_clip(made_clip(None), "png")).audio is None
    assert len(unpack_clip(pack_clip(made_clip(np.zeros(0, np.float32)), "png")).audio) == 0


def test_clips_from_disk_equal_those_from_the_video_files(prepared, tiny_manifest, tiny_processor):
    from lmm_ecr.data.dataset import FileReader

    files, cached = FileReader(tiny_processor), PreparedReader(prepared, tiny_processor.clip_spec())
    for row in list(tiny_manifest)[::-1]:
        expected, found = files(row), cached(row)
        assert np.array_equal(found.frames, tiny_processor.resize(expected.frames))
        assert np.array_equal(found.timestamps, expected.timestamps)
        assert found.duration == expected.duration
    for name, value in tiny_processor.encode(expected, row.title, row.description).items():
        assert torch.equal(tiny_processor.encode(found, row.title, row.description)[name], value)


def test_manifest_comes_back(prepared, tiny_manifest):
    manifest = read_prepared_manifest(prepared, ["ECR"])
    assert [replace(r, video=None) for r in manifest] == [replace(r, video=None) for r in tiny_manifest]
    assert all(r.video.is_file() for r in manifest)
    assert read_prepared_manifest(prepared).labels.shape == (12, 0)
    with pytest.raises(DataError, match="column 'NAWP' is missing; prepare the table again with --target NAWP"):
        read_prepared_manifest(prepared, ["NAWP"])


class _Sums(Dataset):
    """One number per clip, read in a worker."""

    def __init__(self, reader, rows):
        self.reader, self.rows = reader, rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index].id, int(self.reader(self.rows[index]).frames.astype(np.int64).sum())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_reader_works_in_dataloader_workers(prepared, tiny_manifest, tiny_processor, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    reader = PreparedReader(prepared, tiny_processor.clip_spec())
    dataset = _Sums(reader, tiny_manifest.rows[:6])
    expected = [dataset[i] for i in range(6)]  # the shards are open here when the workers start
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context=method)
    assert [tuple(item) for item in loader] == expected


def test_other_settings_are_refused_by_name(prepared, tiny_processor):
    spec = tiny_processor.clip_spec()
    with pytest.raises(ConfigError, match=r"max_pixels: prepared 4704, wanted 9999\. Prepare it again"):
        PreparedReader(prepared, {**spec, "max_pixels": 9999})
    with pytest.raises(ConfigError) as caught:
        check_clip_spec(prepared, spec, {**spec, "audio": {"seconds": 8.0}, "family": "other"})
    assert "audio: prepared None, wanted {'seconds': 8.0}; family: prepared 'qwen2_5_vl'" in str(caught.value)
    check_clip_spec(prepared, spec, dict(reversed(spec.items())))


def test_a_row_of_another_table_is_named(prepared, tiny_processor, tmp_path):
    reader = PreparedReader(prepared, tiny_processor.clip_spec())
    with pytest.raises(DataError, match="holds no clip 'other': it was prepared from another table"):
        reader(ManifestRow(1, "other", tmp_path / "other.mp4", None, None))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut header", "half", "text"])
def test_a_lost_or_damaged_shard_is_named(prepared, tiny_manifest, tiny_processor, tmp_path, damage):
    """Bug: it ended in an error from inside pyarrow or datasets that did not tell what to do."""
    copy = shutil.copytree(prepared, tmp_path / "copy")
    path = shard_path(copy, 1)
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(
            {"empty": b"", "cut header": data[:100], "half": data[: len(data) // 2], "text": b"not arrow " * 50}[damage]
        )
    reader = PreparedReader(copy, tiny_processor.clip_spec())
    assert reader(tiny_manifest[0]).frames.shape[0] == 8
    with pytest.raises(DataError, match=r"00001\.arrow cannot be read .* prepare again"):
        reader(tiny_manifest[5])


def test_unfinished_and_foreign_directories_are_refused(prepared, tiny_processor, tmp_path):
    assert is_prepared(prepared)
    assert not is_prepared(tmp_path)
    with pytest.raises(ConfigError, match=r"is not prepared \(no prepared.json\): run `lmm-ecr prepare"):
        PreparedReader(tmp_path, tiny_processor.clip_spec())
    write_json(tmp_path / INFO_FILE, {**read_json(prepared / INFO_FILE), "format": 99})
    with pytest.raises(ConfigError, match="format 99, this version reads 1; prepare it again"):
        read_prepared_manifest(tmp_path)


def test_shards_are_equal_bytes_for_equal_clips(tmp_path):
    rows = [{"Id": str(i), **pack_clip(made_clip(None), "png")} for i in range(3)]
    for name in "ab":
        write_shard(tmp_path / f"{name}.arrow", rows)
    assert (tmp_path / "a.arrow").read_bytes() == (tmp_path / "b.arrow").read_bytes()


@pytest.mark.parametrize("damage", ["empty", "half", "list", "field"])
def test_a_damaged_prepared_json_is_named(prepared, tiny_processor, tmp_path, damage):
    copy = shutil.copytree(prepared, tmp_path / "copy")
    path = copy / INFO_FILE
    info = read_json(path)
    del info["clip_spec"]
    text = {"empty": "", "half": path.read_text()[:50], "list": "[1]", "field": json.dumps(info)}[damage]
    path.write_text(text)
    for read in (read_prepared_manifest, lambda d: PreparedReader(d, tiny_processor.clip_spec())):
        with pytest.raises(DataError, match=r"prepared\.json cannot be read .*; delete it, and prepare again"):
            read(copy)


@pytest.mark.parametrize("damage", ["absent", "empty", "half", "column"])
def test_a_damaged_manifest_is_named(prepared, tiny_processor, tmp_path, damage):
    import pyarrow.parquet

    copy = shutil.copytree(prepared, tmp_path / "copy")
    path = copy / "manifest.parquet"
    data, table = path.read_bytes(), pyarrow.parquet.read_table(path)
    path.unlink()
    if damage == "column":
        pyarrow.parquet.write_table(table.drop(["shard"]), path)
    elif damage != "absent":
        path.write_bytes(data[: len(data) // 2] if damage == "half" else b"")
    for read in (read_prepared_manifest, lambda d: PreparedReader(d, tiny_processor.clip_spec())):
        with pytest.raises(
            DataError, match=r"manifest\.parquet cannot be read .*; delete it and .*, and prepare again"
        ):
            read(copy)


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
@pytest.mark.parametrize("damage", ["cut", "noise", "size", "none"])
def test_a_damaged_image_in_a_shard_is_named(tiny_processor, tiny_manifest, tmp_path, damage, image_format):
    """Bug: an OSError of Pillow from inside a worker."""
    output = tmp_path / "out"
    few = replace(tiny_manifest, rows=tiny_manifest.rows[:2])
    prepare(few, tiny_processor, output, num_workers=0, image_format=image_format)
    rows = read_shard(shard_path(output, 0))
    frame = rows[1]["frames"][2]
    other = encode_image(np.zeros((28, 28, 3), np.uint8), image_format)
    changed = {"cut": frame[: len(frame) // 2], "noise": frame[:40] + bytes(300), "size": other}
    rows[1]["frames"] = [] if damage == "none" else [*rows[1]["frames"][:2], changed[damage]]
    write_shard(shard_path(output, 0), rows)
    reader = PreparedReader(output, tiny_processor.clip_spec())
    reader(few[0])
    with pytest.raises(DataError, match=rf"00000\.arrow cannot be read \(clip '{few[1].id}': .*prepare again"):
        reader(few[1])
