"""Prepared clips: frames decoded and resized once, kept as compressed images in memory-mapped Arrow shards.

Layout of a prepared directory:

    prepared.json      format, what was applied to the clips (`processor.clip_spec()`, image format), counts
    manifest.parquet   the usable rows: Id, Title, Description, targets, Video, row, shard, position
    rejected.csv       the rows without a readable clip, with their reasons
    shards/*.arrow     Id, frames (one encoded image each), timestamps, audio (int16, 16 kHz), duration, damaged

Every file is written whole or not at all; `lmm_ecr.prepare` continues an interrupted directory shard by shard.
"""

import io
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..files import atomic_write, read_json
from .decode import Clip
from .manifest import Manifest, ManifestRow

FORMAT_VERSION = 1
INFO_FILE, MANIFEST_FILE, SHARD_DIR = "prepared.json", "manifest.parquet", "shards"
IMAGE_FORMATS = ("jpeg", "png")
JPEG_QUALITY = 95  # 43.9 dB against the resized frames at 4:2:0, a tenth of the raw size
AUDIO_SCALE = 32768


def is_prepared(path: str | Path) -> bool:
    """Whether `path` is a directory written by `lmm-ecr prepare`."""
    return (Path(path) / INFO_FILE).is_file()


def pack_clip(clip: Clip, image_format: str) -> dict[str, Any]:
    """A clip with resized frames as one shard row (without its Id)."""
    return {
        "frames": [encode_image(frame, image_format) for frame in clip.frames],
        "timestamps": clip.timestamps.tolist(),
        "audio": None
        if clip.audio is None
        else np.round(np.clip(clip.audio, -1, 1 - 1 / AUDIO_SCALE) * AUDIO_SCALE).astype("<i2").tobytes(),
        "duration": clip.duration,
        "damaged": clip.damaged,
    }


def unpack_clip(row: dict[str, Any]) -> Clip:
    """Inverse of `pack_clip`, up to the loss of the image format and of 16-bit sound."""
    audio = row["audio"]
    return Clip(
        frames=np.stack([decode_image(data) for data in row["frames"]]),
        timestamps=np.asarray(row["timestamps"], dtype=np.float64),
        audio=None if audio is None else np.frombuffer(audio, dtype="<i2").astype(np.float32) / AUDIO_SCALE,
        duration=row["duration"],
        damaged=row["damaged"],
    )


def encode_image(frame: np.ndarray, image_format: str) -> bytes:
    """uint8 [H, W, 3] to an encoded image: "jpeg" (quality 95, 4:2:0) or "png" (lossless)."""
    from PIL import Image

    stream = io.BytesIO()
    options = {"quality": JPEG_QUALITY, "subsampling": "4:2:0"} if image_format == "jpeg" else {"compress_level": 1}
    Image.fromarray(frame).save(stream, image_format.upper(), **options)
    return stream.getvalue()


def decode_image(data: bytes) -> np.ndarray:
    """Encoded image to uint8 [H, W, 3]."""
    from PIL import Image

    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def shard_schema():
    """Arrow schema of a shard."""
    import pyarrow as pa

    return pa.schema(
        {
            "Id": pa.string(),
            "frames": pa.list_(pa.binary()),
            "timestamps": pa.list_(pa.float64()),
            "audio": pa.binary(),
            "duration": pa.float64(),
            "damaged": pa.string(),
        }
    )


def write_shard(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    schema = shard_schema()
    with atomic_write(path, "wb") as stream, pa.ipc.new_stream(stream, schema) as writer:
        for row in rows:  # one record batch per clip: reading one clip touches only its pages
            writer.write_table(pa.Table.from_pylist([row], schema=schema))


def read_prepared_info(directory: str | Path) -> dict[str, Any]:
    """`prepared.json`. Raises ConfigError if the directory is unfinished or of another format."""
    path = Path(directory) / INFO_FILE
    if not path.is_file():
        raise ConfigError(
            f"{directory} is not prepared (no {INFO_FILE}): run `lmm-ecr prepare --output {directory}` to the end"
        )
    info = read_json(path)
    if info.get("format") != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: format {info.get('format')!r}, this version reads {FORMAT_VERSION}; prepare it again"
        )
    return info


class PreparedReader:
    """Reads clips of a prepared directory. Picklable; shards are memory-mapped in each process on first use.

    Raises ConfigError if the clips were prepared with other settings than `clip_spec` asks for; a call raises DataError
    for a row that was not prepared and for a shard that is missing or damaged.
    """

    def __init__(self, directory: str | Path, clip_spec: dict[str, Any]):
        import pyarrow.parquet

        self.directory = Path(directory)
        info = read_prepared_info(directory)
        check_clip_spec(self.directory, info["clip_spec"], clip_spec)
        table = pyarrow.parquet.read_table(self.directory / MANIFEST_FILE, columns=["Id", "shard", "position"])
        shards, positions = table["shard"].to_pylist(), table["position"].to_pylist()
        self._place = {
            clip_id: (shard, position)
            for clip_id, shard, position in zip(table["Id"].to_pylist(), shards, positions, strict=True)
        }
        self._shards: dict[int, Any] = {}

    def __call__(self, row: ManifestRow) -> Clip:
        if row.id not in self._place:
            raise DataError(f"{self.directory} holds no clip {row.id!r}: it was prepared from another table")
        shard, position = self._place[row.id]
        if shard not in self._shards:
            self._shards[shard] = self._open_shard(shard_path(self.directory, shard))
        return unpack_clip(self._shards[shard][position])

    @staticmethod
    def _open_shard(path: Path):
        import pyarrow as pa
        from datasets import Dataset

        try:
            return Dataset.from_file(str(path))
        except (OSError, pa.ArrowException) as error:
            raise DataError(
                f"{path} cannot be read ({error}); delete it and {path.parent.parent / INFO_FILE}, and prepare again"
            ) from error

    def __getstate__(self):
        return {**self.__dict__, "_shards": {}}


def shard_path(directory: Path, shard: int) -> Path:
    return directory / SHARD_DIR / f"{shard:05d}.arrow"


def check_clip_spec(directory: Path, prepared: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Raise ConfigError naming every setting in which prepared clips differ from what a model wants."""
    differences = [
        f"{name}: prepared {prepared.get(name)!r}, wanted {wanted.get(name)!r}"
        for name in sorted({*prepared, *wanted})
        if prepared.get(name) != wanted.get(name)
    ]
    if differences:
        raise ConfigError(
            f"{directory} was prepared with other settings: {'; '.join(differences)}. "
            "Prepare it again with the settings of this run, or train from the table and the video folder."
        )


def read_prepared_manifest(directory: str | Path, targets=()) -> Manifest:
    """The usable rows of a prepared directory. Raises DataError if a target column was not in the prepared table, or if
    no clip could be prepared."""
    import pyarrow.parquet

    path = Path(directory) / MANIFEST_FILE
    read_prepared_info(directory)
    columns = pyarrow.parquet.read_table(path).to_pydict()
    for name in targets:
        if name not in columns:
            raise DataError(f"{path}: column {name!r} is missing; prepare the table again with --target {name}")
    if not columns["Id"]:
        raise DataError(f"{directory} holds no clips: none could be read, see {Path(directory) / 'rejected.csv'}")
    rows = [
        ManifestRow(
            row=columns["row"][i],
            id=columns["Id"][i],
            video=Path(columns["Video"][i]),
            title=columns["Title"][i],
            description=columns["Description"][i],
            labels=tuple(float("nan") if columns[t][i] is None else columns[t][i] for t in targets),
        )
        for i in range(len(columns["Id"]))
    ]
    return Manifest(str(directory), rows, tuple(targets))
