"""Which rows each process trains on at each step: the same global batches for any number of processes and micro-batches."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from ..data.dataset import ClipDataset, Collator
from ..errors import TrainingError

MAX_FILLER_TRIES = 100  # rows looked at to find one readable clip
Order = Callable[[int], Sequence[int]]


def shuffled(num_rows: int, seed: int) -> Order:
    """epoch -> the rows in random order; depends on nothing but seed and epoch, so that a resumed run sees the same."""

    def order(epoch: int) -> list[int]:
        return torch.randperm(num_rows, generator=_generator(seed, epoch)).tolist()

    return order


def grouped_by_length(lengths: Sequence[int], batch_size: int, seed: int) -> Order:
    """epoch -> the rows in random order with batches of `batch_size` rows of similar length, the longest batch first."""

    def order(epoch: int) -> list[int]:
        return get_length_grouped_indices(lengths, batch_size, generator=_generator(seed, epoch))

    return order


def _generator(seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed * 1_000_003 + epoch)


class GlobalBatchSampler(Sampler[list[int]]):
    """This process's share of every batch of an epoch.

    The rows of an epoch are cut into pieces of micro_batch_size * num_processes; process p takes the p-th part of each.
    The last piece may be smaller: it is split as evenly as it goes, so that every row counts exactly once (no row is
    repeated to fill it up, as accelerate's sampler does). A process that gets no row of it is given the first row of the
    epoch as padding, written as `~row` (a negative number): it takes part in the collective operations, without a label.
    """

    def __init__(
        self,
        order: Order,
        num_rows: int,
        micro_batch_size: int,
        process_index: int = 0,
        num_processes: int = 1,
        drop_last: bool = False,
    ):
        self.order = order
        self.num_rows = num_rows
        self.micro_batch_size = micro_batch_size
        self.process_index = process_index
        self.num_processes = num_processes
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        piece = self.micro_batch_size * self.num_processes
        return self.num_rows // piece if self.drop_last else math.ceil(self.num_rows / piece)

    def __iter__(self) -> Iterator[list[int]]:
        rows = self.order(self.epoch)
        piece = self.micro_batch_size * self.num_processes
        for start in range(0, len(self) * piece, piece):
            part = rows[start : start + piece]
            low = len(part) * self.process_index // self.num_processes
            high = len(part) * (self.process_index + 1) // self.num_processes
            yield list(part[low:high]) or [~rows[0]]


class PaddedDataset(Dataset):
    """`ClipDataset` that also takes `~row`: row's clip with unknown labels (NaN), which count in no loss."""

    def __init__(self, dataset: ClipDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= 0:
            return self.dataset[index]
        sample = self.dataset[~index]
        return {**sample, "labels": [math.nan] * len(sample["labels"])}


class EpochDataLoader(DataLoader):
    """A DataLoader that passes the epoch on to its `GlobalBatchSampler`."""

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class Filler:
    """One readable clip without a label: what a process trains on when no clip of its batch could be read.

    It counts in no loss; but every process has to take part in the step. The first readable row, so that it is always the
    same one. Raises TrainingError if none of the first rows can be read.
    """

    def __init__(self, dataset: ClipDataset, collator: Collator):
        self._rows = PaddedDataset(dataset)
        self._collator = collator
        self._batch: dict[str, Any] | None = None

    @property
    def batch(self) -> dict[str, Any]:
        if self._batch is None:
            for row in range(min(len(self._rows), MAX_FILLER_TRIES)):
                sample = self._rows[~row]
                if "encoded" in sample:
                    self._batch = self._collator([sample])
                    return self._batch
            raise TrainingError(
                f"no clip of a batch could be read, and none of the first {MAX_FILLER_TRIES} rows of "
                f"{self._rows.dataset.manifest.path}: check --video_dir, and run `lmm-ecr prepare`"
            )
        return self._batch
