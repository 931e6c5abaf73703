"""The shards of a prepared directory: made, continued after a kill, and completed when rejected clips were repaired."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from ..errors import ClipError, ConfigError, DataError
from ..files import read_json, write_json
from .cache import INFO_FILE, pack_clip, read_shard, shard_path, write_shard
from .clip_files import changed_files, file_identity
from .dataset import FileReader
from .manifest import ManifestRow, Rejection
from .processor import ClipProcessor
from .workers import explain_lost_workers, one_thread_worker


class _Packer(Dataset):
    """Decodes, resizes and compresses one clip per item, and notes its file; an unreadable one becomes a Rejection."""

    def __init__(self, rows: Sequence[ManifestRow], processor: ClipProcessor, decoder: str, image_format: str):
        self.rows = rows
        self.processor = processor
        self.reader = FileReader(processor, decoder)
        self.image_format = image_format

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        row = self.rows[index]
        try:
            clip = self.reader(row)
            clip.frames = self.processor.resize(clip.frames)
        except ClipError as error:
            return Rejection(row.row, row.id, error.reason, error.detail)
        return {"Id": row.id, "file": file_identity(row.video), **pack_clip(clip, self.image_format)}


@dataclass
class ShardWork:
    """What all shards of a run share. `missing`: row number -> rejection of the rows without a file."""

    output: Path
    processor: ClipProcessor
    decoder: str
    image_format: str
    num_workers: int
    missing: dict[int, Rejection]
    progress: Callable[[int, int], None] | None
    total: int
    done: int = 0

    def advance(self, clips: int) -> None:
        self.done += clips
        if self.progress and clips:
            self.progress(self.done, self.total)

    def shard(self, number: int, rows: Sequence[ManifestRow]) -> dict:
        """Make one shard and its report (ids in order, files, rejections, damage), or add to it what it lacks."""
        path = shard_path(self.output, number)
        report_path = path.with_suffix(".json")
        old = _read_report(report_path) if path.is_file() else None
        kept = set(old["ids"]) if old else set()
        files = dict(old.get("files", {})) if old else {}
        self._check_files(rows, files)
        todo = [row for row in rows if row.id not in kept and row.row not in self.missing]
        self.advance(len(rows) - len(todo))
        packed, rejections = self._read(todo)
        rejections += [self.missing[row.row] for row in rows if row.row in self.missing and row.id not in kept]
        files.update((row["Id"], row.pop("file")) for row in packed)
        found = {row["Id"]: row for row in packed}
        if packed and old:
            found.update((row["Id"], row) for row in read_shard(path))
        in_order = [found[row.id] for row in rows if row.id in found]
        ids = [row["Id"] for row in in_order] if packed or not old else old["ids"]
        damaged = old["damaged"] if old else {}
        report = {
            "ids": ids,
            "damaged": damaged | {row["Id"]: row["damaged"] for row in packed if row["damaged"]},
            "rejections": [vars(r) for r in sorted(rejections, key=lambda r: r.row)],
            "files": files,
        }
        if report != old:
            (self.output / INFO_FILE).unlink(missing_ok=True)  # until all agrees again
            if packed or not old:
                report_path.unlink(missing_ok=True)  # a shard without its report is made again
                write_shard(path, in_order)
            write_json(report_path, report)
        return report

    def _read(self, rows: Sequence[ManifestRow]) -> tuple[list[dict], list[Rejection]]:
        packed, rejections = [], []
        if not rows:
            return packed, rejections
        loader = DataLoader(
            _Packer(rows, self.processor, self.decoder, self.image_format),
            batch_size=None,
            num_workers=min(self.num_workers, len(rows)),
            worker_init_fn=one_thread_worker,
            multiprocessing_context="fork" if self.num_workers and not torch.cuda.is_initialized() else None,
        )
        for item in explain_lost_workers(loader):
            (rejections if isinstance(item, Rejection) else packed).append(item)
            self.advance(1)
        return packed, rejections

    def _check_files(self, rows: Sequence[ManifestRow], files: dict) -> None:
        changed = changed_files(rows, files)
        if changed:
            raise ConfigError(
                f"{self.output} was prepared from other video files: {len(changed)} differ in one shard, for example "
                f"{changed[0]}. Choose another --output, or delete the directory."
            )


def _read_report(path: Path) -> dict | None:
    """A shard's report; None if it is missing or damaged: the shard is made again."""
    try:
        report = read_json(path)
    except (FileNotFoundError, DataError):
        return None
    complete = isinstance(report, dict) and {"ids", "damaged", "rejections"} <= report.keys()
    return report if complete else None
