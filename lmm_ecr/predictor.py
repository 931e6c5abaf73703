"""`Predictor`: a trained model with its own preprocessing, scoring batches of clips."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from .data.dataset import ClipDataset, Collator, FileReader, check_on_error, estimate_lengths, split_batch
from .data.decode import check_decoder
from .data.manifest import Manifest, ManifestRow
from .data.processor import ClipProcessor, resolve_directory
from .data.workers import explain_lost_workers, one_thread_worker
from .errors import ClipError, ConfigError, DataError
from .models.regression import LmmRegressor, unwrap_regressor

WORKER_TIMEOUT_S = 1800  # a batch of unreadable clips may take its time; beyond this the file system is stuck


class Predictor:
    """A trained model with its own preprocessing, ready to score clips."""

    def __init__(
        self, model: torch.nn.Module, processor: ClipProcessor, device: str | torch.device = "cpu", num_workers: int = 0
    ):
        self.model = model.to(device).eval()
        self.processor = processor
        self.device = torch.device(device)
        self.num_workers = num_workers

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        attn_implementation: str = "sdpa",
        num_workers: int = 0,
    ) -> "Predictor":
        """Load a run directory or a checkpoint of this package (or its hub name).

        device: "auto" takes a GPU if there is one. dtype of the backbone: "auto" is bfloat16 on a GPU and float32 on a CPU;
        the head is always float32. Raises ConfigError if the directory is incomplete.
        """
        check_dtype(dtype)
        directory = resolve_directory(directory)
        processor = ClipProcessor.from_pretrained(directory)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = resolve_dtype(dtype, device)
        model = LmmRegressor.from_pretrained(
            directory, dtype=getattr(torch, dtype), attn_implementation=attn_implementation
        )
        return cls(model, processor, device, num_workers)

    @property
    def targets(self) -> list[str]:
        return unwrap_regressor(self.model).config.targets

    def predict(
        self, clips: Sequence[dict[str, Any]], *, batch_size: int = 8, on_error: str = "fail", decoder: str = "pyav"
    ) -> np.ndarray:
        """Scores float64 [clips, targets] in [0, 1], in the order of `clips`.

        clips: dicts with "video" (path) and optional "title" and "description". on_error: "fail" raises ClipError for a
        clip that cannot be read, "skip" leaves NaN in its row. Raises DataError for a dict that is no such clip.
        """
        check_on_error(on_error)
        check_decoder(decoder)
        rows = [clip_row(number, clip) for number, clip in enumerate(clips, start=1)]
        dataset = ClipDataset(Manifest("clips", rows), self.processor, FileReader(self.processor, decoder))
        scores = np.full((len(rows), len(self.targets)), np.nan)
        batches = length_ordered_batches(dataset, range(len(rows)), batch_size) if rows else []
        for values, indices, notes in self.score_batches(dataset, batches):
            for index, rejection in notes["rejections"]:
                if on_error == "fail":
                    raise ClipError(rows[index].video, rejection.reason, rejection.detail)
            scores[indices] = values
        return scores

    def score_batches(
        self, dataset: ClipDataset, batches: Sequence[Sequence[int]]
    ) -> Iterator[tuple[np.ndarray, list[int], dict[str, Any]]]:
        """For each batch of row indices: scores float64 [readable clips, targets], their row indices, and the notes."""
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=Collator(self.processor),
            num_workers=min(self.num_workers, len(batches)),
            worker_init_fn=one_thread_worker,
            pin_memory=self.device.type == "cuda",
            timeout=WORKER_TIMEOUT_S if self.num_workers and batches else 0,
        )
        for batch in explain_lost_workers(loader):
            inputs, notes = split_batch(batch)
            indices = notes["row_index"][notes["readable"]].tolist()
            inputs.pop("labels", None)
            values = np.empty((0, len(self.targets)))
            if indices:
                inputs = {k: v.to(self.device, non_blocking=True) for k, v in inputs.items()}
                try:
                    with torch.inference_mode():
                        values = self.model(**inputs).predictions.double().cpu().numpy()
                except torch.OutOfMemoryError as error:
                    rows, tokens = inputs["input_ids"].shape
                    raise ConfigError(
                        f"out of memory for a batch of {rows} clips of {tokens} tokens: lower --batch-size. "
                        "Finished rows are kept; the same command goes on from there."
                    ) from error
            yield values, indices, notes


def length_ordered_batches(
    dataset: ClipDataset, rows: Sequence[int], batch_size: int, lengths_of: Callable = estimate_lengths
) -> list[list[int]]:
    """Rows cut into batches of similar length, the longest first (too little memory shows at once).

    lengths_of: `estimate_lengths`, or `shared_lengths` where all processes of a run call this with the same rows.
    """
    subset = Manifest(dataset.manifest.path, [dataset.manifest[i] for i in rows])
    lengths = lengths_of(subset, dataset.processor)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], rows[i]))
    ordered = [rows[i] for i in order]
    return [ordered[i : i + batch_size] for i in range(0, len(ordered), batch_size)]


def clip_row(number: int, clip: dict[str, Any]) -> ManifestRow:
    """A clip given in Python as a row. Raises DataError for keys that are not known (a title under another name would be
    left out without a word), no video, and texts that are no strings."""
    if not isinstance(clip, Mapping):
        raise DataError(f"clip {number} must be a dict with 'video', 'title' and 'description', got {clip!r}")
    unknown = sorted(str(key) for key in clip.keys() - {"video", "title", "description"})
    if unknown:
        raise DataError(f"clip {number} has the key {unknown[0]!r}; known are 'video', 'title' and 'description'")
    if not isinstance(clip.get("video"), (str, os.PathLike)) or not os.fspath(clip["video"]):
        raise DataError(f"clip {number}: 'video' must be the path of a file, got {clip.get('video')!r}")
    for name in ("title", "description"):
        if not isinstance(clip.get(name), (str, type(None))):
            raise DataError(f"clip {number}: {name!r} must be a string or None, got {clip[name]!r}")
    return ManifestRow(number, str(clip["video"]), Path(clip["video"]), clip.get("title"), clip.get("description"))


def resolve_dtype(dtype: str, device: str) -> str:
    """The backbone's dtype that "auto" means on `device`; any other stays."""
    if dtype != "auto":
        return dtype
    return "float32" if torch.device(device).type == "cpu" else "bfloat16"


def check_dtype(dtype: str) -> None:
    if dtype not in ("auto", "float32", "bfloat16"):
        raise ConfigError(f"dtype {dtype!r} is not supported; choose auto, float32 or bfloat16")
