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
INFO_FIELDS = ("clip_spec", "image_format", "table", "rejections")
PLACE_COLUMNS = ("Id", "Title", "Description", "Video", "row", "shard", "position")
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


def read_shard(path: Path) -> list[dict[str, Any]]:
    """The rows of a shard, still packed. Raises DataError if it cannot be read."""
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as stream, pa.ipc.open_stream(stream) as reader:
            return reader.read_all().to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception | str) -> DataError:
    directory = path.parent.parent if path.parent.name == SHARD_DIR else path.parent
    also = "" if path.name == INFO_FILE else f" and {directory / INFO_FILE}"
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DataError(f"{path} cannot be read ({reason}); delete it{also}, and prepare again")


def read_prepared_info(directory: str | Path) -> dict[str, Any]:
    """`prepared.json`. Raises ConfigError if the directory is unfinished or of another format, DataError if the file is
    damaged."""
    path = Path(directory) / INFO_FILE
    if not path.is_file():
        raise ConfigError(
            f"{directory} is not prepared (no {INFO_FILE}): run `lmm-ecr prepare --output {directory}` to the end"
        )
    try:
        info = read_json(path)
    except DataError as error:
        raise _damaged(path, error) from error
    if not isinstance(info, dict):
        raise _damaged(path, "it holds no JSON object")
    if info.get("format") != FORMAT_VERSION:
        raise ConfigError(
            f"{path}: format {info.get('format')!r}, this version reads {FORMAT_VERSION}; prepare it again"
        )
    lost = [name for name in INFO_FIELDS if name not in info]
    if lost:
        raise _damaged(path, f"it has no {', '.join(map(repr, lost))}")
    return info


def _read_places(directory: Path, columns: list[str] | None = None):
    """`manifest.parquet` as an Arrow table. Raises DataError if it is missing or damaged."""
    import pyarrow as pa
    import pyarrow.parquet

    path = directory / MANIFEST_FILE
    try:
        table = pyarrow.parquet.read_table(path, columns=columns)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    lost = [name for name in PLACE_COLUMNS if name not in table.column_names and (columns is None or name in columns)]
    if lost:
        raise _damaged(path, f"it has no column {lost[0]!r}")
    return table


class PreparedReader:
    """Reads clips of a prepared directory. Picklable; shards are memory-mapped in each process on first use.

    Raises ConfigError if the clips were prepared with other settings than `clip_spec` asks for; a call raises DataError
    for a row that was not prepared and for a shard that is missing or damaged.
    """

    def __init__(self, directory: str | Path, clip_spec: dict[str, Any]):
        self.directory = Path(directory)
        info = read_prepared_info(directory)
        check_clip_spec(self.directory, info["clip_spec"], clip_spec)
        table = _read_places(self.directory, ["Id", "shard", "position"])
        shards, positions = table["shard"].to_pylist(), table["position"].to_pylist()
        self._place = {
            clip_id: (shard, position)
            for clip_id, shard, position in zip(table["Id"].to_pylist(), shards, positions, strict=True)
        }
        self._shards: dict[int, Any] = {}

    def __call__(self, row: ManifestRow) -> Clip:
        import pyarrow as pa

        if row.id not in self._place:
            raise DataError(f"{self.directory} holds no clip {row.id!r}: it was prepared from another table")
        shard, position = self._place[row.id]
        path = shard_path(self.directory, shard)
        if shard not in self._shards:
            self._shards[shard] = self._open_shard(path)
        try:
            packed = self._shards[shard][position]
            if packed["Id"] != row.id:
                raise ValueError(f"clip {packed['Id']!r} is in the place of {row.id!r}")
            return unpack_clip(packed)
        except (OSError, SyntaxError, ValueError, TypeError, IndexError, pa.ArrowException) as error:
            # Pillow says OSError or, of PNG files, SyntaxError; an image of another size does not stack
            raise _damaged(path, f"clip {row.id!r}: {error}") from error

    @staticmethod
    def _open_shard(path: Path):
        import pyarrow as pa
        from datasets import Dataset

        try:
            return Dataset.from_file(str(path))
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from error

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
    path = Path(directory) / MANIFEST_FILE
    read_prepared_info(directory)
    columns = _read_places(Path(directory)).to_pydict()
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
