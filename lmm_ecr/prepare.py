"""`lmm-ecr prepare`: validate every clip of a table, decode and resize each once, and keep the result for training.

The work is cut into shards; a killed run continues with the first shard that is missing, and a later run tries the clips
again that could not be read.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .data.cache import (
    FORMAT_VERSION,
    IMAGE_FORMATS,
    INFO_FILE,
    MANIFEST_FILE,
    SHARD_DIR,
    read_prepared_info,
)
from .data.dataset import check_on_error
from .data.decode import check_decoder
from .data.manifest import Manifest, ManifestRow, Rejection, read_manifest, write_rejections
from .data.processor import ClipProcessor
from .data.shards import ShardWork
from .data.workers import default_num_workers
from .errors import ConfigError, DataError, LmmEcrError
from .files import atomic_write, read_json, write_json
from .progress import progress_bar

CLIPS_PER_SHARD = 256
PLAN_FILE = "plan.json"


def prepare(
    manifest: Manifest,
    processor: ClipProcessor,
    output: str | Path,
    *,
    image_format: str = "jpeg",
    decoder: str = "pyav",
    num_workers: int = 4,
    clips_per_shard: int = CLIPS_PER_SHARD,
    progress: Callable[[int, int], None] | None = None,
) -> list[Rejection]:
    """Prepare all clips of `manifest` for `processor` in the directory `output`; returns the rejected rows in order.

    progress(done, total) is called after each clip and each shard that was there. Clips that are there are left as they
    are, so that a finished directory does not change; those that were rejected or missing are tried again.
    Raises ConfigError if `output` holds clips of another table, of other video files or prepared with other settings.
    """
    if image_format not in IMAGE_FORMATS:
        raise ConfigError(f"image format {image_format!r} is unknown; choose from {', '.join(IMAGE_FORMATS)}")
    if clips_per_shard < 1 or num_workers < 0:
        raise ConfigError(
            f"clips_per_shard ({clips_per_shard}) must be at least 1, num_workers ({num_workers}) at least 0"
        )
    check_decoder(decoder)
    output = Path(output)
    rows = sorted((*manifest.rows, *manifest.missing), key=lambda row: row.row)
    plan = {
        "format": FORMAT_VERSION,
        "clip_spec": processor.clip_spec(),
        "image_format": image_format,
        "table": manifest.table_fingerprint(),
        "targets": list(manifest.targets),
        "clips_per_shard": clips_per_shard,
        "num_rows": len(rows),
    }
    _check_plan(output, plan)
    if not (output / PLAN_FILE).is_file():
        write_json(output / PLAN_FILE, plan)
    (output / SHARD_DIR).mkdir(exist_ok=True)
    missing = {rejection.row: rejection for rejection in manifest.rejections}
    work = ShardWork(output, processor, decoder, image_format, num_workers, missing, progress, len(rows))
    places: list[tuple[ManifestRow, int, int]] = []
    rejections: list[Rejection] = []
    damaged: dict[str, str] = {}
    for shard, start in enumerate(range(0, len(rows), clips_per_shard)):
        part = rows[start : start + clips_per_shard]
        report = work.shard(shard, part)
        rejections += [Rejection(**r) for r in report["rejections"]]
        damaged.update(report["damaged"])
        by_id = {row.id: row for row in part}
        places += [(by_id[clip_id], shard, position) for position, clip_id in enumerate(report["ids"])]
    info = {**plan, "num_clips": len(places), "damaged": damaged, "rejections": [vars(r) for r in rejections]}
    if not _is_finished(output, info):
        _write_manifest(output / MANIFEST_FILE, manifest, places)
        write_rejections(output / "rejected.csv", rejections)
        for leftover in (*output.glob(".*.tmp"), *(output / SHARD_DIR).glob(".*.tmp")):  # of runs killed in a write
            leftover.unlink()
        write_json(output / INFO_FILE, info)
    return rejections


def _is_finished(output: Path, info: dict) -> bool:
    try:
        return (output / INFO_FILE).is_file() and read_prepared_info(output) == info
    except LmmEcrError:  # damaged: it is written again
        return False


def _check_plan(output: Path, plan: dict) -> None:
    found = output / PLAN_FILE
    if not found.is_file():
        half_written = f".{PLAN_FILE}."  # all that a run killed at its very start leaves behind
        if output.is_dir() and not all(path.name.startswith(half_written) for path in output.iterdir()):
            raise ConfigError(f"--output {output} is not empty and was not made by prepare; choose another directory")
        return
    try:
        old = read_json(found)
    except DataError as error:
        raise ConfigError(f"{error}; delete the directory {output}, and prepare again") from error
    if not isinstance(old, dict):
        raise ConfigError(f"{found} is damaged; delete the directory {output}, and prepare again")
    changed = [f"{key} ({old.get(key)!r} -> {value!r})" for key, value in plan.items() if old.get(key) != value]
    if changed:
        raise ConfigError(
            f"{output} was begun with another table or other settings: {'; '.join(changed)}. "
            "Choose another --output, or delete the directory."
        )


def _write_manifest(path: Path, manifest: Manifest, places) -> None:
    import pyarrow as pa
    import pyarrow.parquet

    columns = {
        "Id": [row.id for row, _, _ in places],
        "Title": pa.array([row.title for row, _, _ in places], pa.string()),
        "Description": pa.array([row.description for row, _, _ in places], pa.string()),
    }
    for index, target in enumerate(manifest.targets):
        columns[target] = pa.array([row.labels[index] for row, _, _ in places], pa.float64())
    columns |= {
        "Video": [str(row.video.resolve()) for row, _, _ in places],
        "row": pa.array([row.row for row, _, _ in places], pa.int64()),
        "shard": pa.array([shard for _, shard, _ in places], pa.int32()),
        "position": pa.array([position for _, _, position in places], pa.int32()),
    }
    with atomic_write(path, "wb") as stream:
        pyarrow.parquet.write_table(pa.table(columns), stream)


@dataclass
class PrepareResult:
    """What `prepare_table` did."""

    output: Path
    num_rows: int
    rejections: list[Rejection]
    seconds: float

    def describe(self) -> str:
        lines = [
            f"{self.num_rows - len(self.rejections):,} of {self.num_rows:,} clips are ready in {self.output} "
            f"({self.seconds:.0f} s); train with --train_data {self.output}"
        ]
        if self.rejections:
            lines.append(f"{len(self.rejections):,} cannot be used, see {self.output / 'rejected.csv'}:")
            lines += [f"  {r.id}: {r.reason} {r.detail}".rstrip() for r in self.rejections[:5]]
        return "\n".join(lines)


def prepare_table(
    data: str,
    output: str | Path,
    *,
    video_dir: str | Path | None = None,
    model: str | None = None,
    config: str | Path | None = None,
    targets: Sequence[str] = ("ECR",),
    image_format: str = "jpeg",
    num_workers: int | None = None,
    decoder: str = "pyav",
    on_error: str = "fail",
) -> PrepareResult:
    """Prepare a table for a trained `model`, or for the model a recipe `config` names (its preprocessing settings apply).

    on_error: "fail" or "skip", for who looks at the rejections; only checked here, before the work. Raises ConfigError
    unless exactly one of `model` and `config` is given.
    """
    check_on_error(on_error)
    check_decoder(decoder)
    if (model is None) == (config is None):
        raise ConfigError(
            "prepare needs to know for which model: give --model DIR or --config recipes/configs/NAME.yaml"
        )
    processor = ClipProcessor.from_pretrained(model) if model else _configured_processor(config)
    manifest = read_manifest(data, video_dir, targets=targets, missing_files="reject")
    start = time.perf_counter()
    with progress_bar("Preparing") as progress:
        rejections = prepare(
            manifest,
            processor,
            output,
            image_format=image_format,
            decoder=decoder,
            num_workers=default_num_workers() if num_workers is None else num_workers,
            progress=progress,
        )
    total = len(manifest) + len(manifest.rejections)
    return PrepareResult(Path(output), total, rejections, time.perf_counter() - start)


def _configured_processor(config: str | Path) -> ClipProcessor:
    from .arguments import parse_preparation
    from .training.setup import build_processor

    args = parse_preparation(config)
    if args.model.model is None:
        raise ConfigError(f"{config} names no model")
    return build_processor(args, args.model.model)
