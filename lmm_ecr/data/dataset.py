"""From table rows to batches: a map-style dataset of encoded clips, ablations, and the collator.

An unreadable clip is never replaced: its place in the batch carries a `Rejection`, and whoever consumes the batch fails or
counts it.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch.utils.data import Dataset

from ..errors import ClipError, ConfigError
from .ablation import ablate, check_ablations
from .decode import Clip, probe_clip, read_clip
from .manifest import Manifest, ManifestRow, Rejection
from .processor import ClipProcessor

ON_ERROR = ("fail", "skip")

ClipReader = Callable[[ManifestRow], Clip]


class FileReader:
    """Reads a row's clip from its video file, as the processor's preprocessing asks. Picklable, holds no open file."""

    def __init__(self, processor: ClipProcessor, decoder: str = "pyav"):
        self.sampling = processor.spec.sampling
        self.audio = processor.spec.audio
        self.max_pixels = processor.max_source_pixels()
        self.decoder = decoder

    def __call__(self, row: ManifestRow) -> Clip:
        return read_clip(row.video, self.sampling, audio=self.audio, max_pixels=self.max_pixels, backend=self.decoder)


class ClipDataset(Dataset):
    """Encoded clips of a manifest. Item i belongs to row i and is deterministic.

    ablations: inputs to destroy, see `lmm_ecr.data.ablation`.
    """

    def __init__(
        self,
        manifest: Manifest,
        processor: ClipProcessor,
        reader: ClipReader | None = None,
        ablations: Sequence[str] = (),
    ):
        check_ablations(ablations)
        self.manifest = manifest
        self.processor = processor
        self.reader = reader or FileReader(processor)
        self.ablations = tuple(ablations)

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.manifest[index]
        sample = {"row_index": index, "labels": row.labels}
        try:
            clip, title, description = ablate(self.ablations, self.reader(row), row)
            encoded = self.processor.encode(clip, title, description)
        except ClipError as error:
            return {**sample, "rejection": Rejection(row.row, row.id, error.reason, error.detail)}
        return {**sample, "encoded": encoded, "damaged": clip.damaged}


class Collator:
    """Samples of `ClipDataset` to one batch.

    Returns the processor's tensors of the readable clips (none if no clip was readable) and, for them, `labels` float32
    [clips, targets] (if the manifest has targets); plus, for every sample in order, `row_index` int64 [samples] and
    `readable` bool [samples]; and `rejections` (row index, Rejection),
    `damaged` (row index, reason) and `num_truncated` for the reports.
    """

    def __init__(self, processor: ClipProcessor):
        self.processor = processor

    def __call__(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        readable = [s for s in samples if "encoded" in s]
        batch: dict[str, Any] = {}
        if readable:
            batch.update(self.processor.collate([s["encoded"] for s in readable]))
            if len(readable[0]["labels"]):
                batch["labels"] = torch.tensor([s["labels"] for s in readable], dtype=torch.float32)
        batch["row_index"] = torch.tensor([s["row_index"] for s in samples])
        batch["readable"] = torch.tensor(["encoded" in s for s in samples])
        batch["rejections"] = [(s["row_index"], s["rejection"]) for s in samples if "rejection" in s]
        batch["damaged"] = [(s["row_index"], s["damaged"]) for s in readable if s["damaged"]]
        batch["num_truncated"] = int(sum(bool(s["encoded"].get("truncated", False)) for s in readable))
        return batch


BOOKKEEPING = ("row_index", "readable", "rejections", "damaged", "num_truncated")


def split_batch(batch: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """A batch of `Collator` as (what `LmmRegressor.forward` takes, the bookkeeping)."""
    inputs = {name: value for name, value in batch.items() if name not in BOOKKEEPING}
    return inputs, {name: batch[name] for name in BOOKKEEPING}


def check_on_error(on_error: str) -> None:
    """Raise ConfigError for an unknown way to treat clips that cannot be read."""
    if on_error not in ON_ERROR:
        raise ConfigError(f"--on-error must be {' or '.join(ON_ERROR)}, got {on_error!r}")


def estimate_lengths(manifest: Manifest, processor: ClipProcessor, num_threads: int = 8) -> list[int]:
    """Approximate tokens per row from file headers and texts, without decoding: the order of batches depends on it.

    A clip whose header cannot be read counts as its text; reading it will say why.
    """

    def length(row: ManifestRow) -> int:
        try:
            return processor.estimated_tokens(probe_clip(row.video), row.title, row.description)
        except ClipError:
            return processor.estimated_tokens(None, row.title, row.description)

    with ThreadPoolExecutor(num_threads) as pool:
        return list(pool.map(length, manifest.rows))
