"""Time, clips and loss of a training, over all its interruptions."""

import time
from pathlib import Path

import torch

from ..files import read_json, write_json

RECORD_FILE = "training_record.json"


class TrainingRecord:
    """Seconds of training, clips trained on and sum of the steps' losses that led to the weights of now.

    What a killed run did after its last checkpoint is not counted, because it is done again.
    """

    def __init__(self):
        self._start = time.perf_counter()
        self._earlier = {"runtime_s": 0.0, "clips": 0, "loss_sum": 0.0}
        self._clips = 0
        self._loss: torch.Tensor | None = None

    def begin(self, checkpoint: Path | None) -> None:
        """Start counting, on top of what `checkpoint` had counted."""
        if checkpoint is not None:
            self._earlier = read_json(checkpoint / RECORD_FILE)
        self._start = time.perf_counter()
        self._clips, self._loss = 0, None

    def add(self, loss: torch.Tensor, clips: int) -> None:
        """Count a micro-batch of this process: its share of the step's loss (scalar, on any device), and its clips."""
        loss = loss.detach().float()
        self._loss = loss if self._loss is None else self._loss + loss
        self._clips += clips

    def totals(self) -> dict[str, float]:
        """runtime_s, clips and loss_sum over all processes and interruptions. Every process must call it."""
        from accelerate.utils import gather_object

        own = (0.0 if self._loss is None else float(self._loss), self._clips)
        parts = gather_object([own])
        return {
            "runtime_s": self._earlier["runtime_s"] + time.perf_counter() - self._start,
            "clips": self._earlier["clips"] + sum(clips for _, clips in parts),
            "loss_sum": self._earlier["loss_sum"] + sum(loss for loss, _ in parts) / len(parts),
        }

    @staticmethod
    def save(checkpoint: Path, totals: dict[str, float]) -> None:
        write_json(checkpoint / RECORD_FILE, totals)
