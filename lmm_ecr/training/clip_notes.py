"""What a training run notes about its clips, kept over interruptions and brought together from all processes."""

from pathlib import Path
from typing import Any

from ..data.dataset import ClipDataset
from ..data.manifest import Rejection
from ..errors import ClipError
from ..files import read_json, write_json

CLIP_NOTES = "clip_notes.json"


class ClipNotes:
    """Clips with something to report: rejected (by id), damaged (id -> reason), truncated texts; and the alarms of a run."""

    def __init__(self):
        self.rejections: dict[str, Rejection] = {}
        self.damaged: dict[str, str] = {}
        self.num_truncated = 0
        self.alarms: list[str] = []

    def take(self, batch: dict[str, Any], dataset: ClipDataset, on_error: str) -> None:
        """Keep what a batch of `Collator` reports; ClipError for an unreadable clip with on_error "fail"."""
        for index, rejection in batch["rejections"]:
            if on_error == "fail":
                raise ClipError(
                    dataset.manifest[index].video,
                    rejection.reason,
                    f"{rejection.detail}; row {rejection.row} of {dataset.manifest.path}, Id {rejection.id!r}. "
                    "Remove the row, or use --on_error skip",
                )
            self.rejections[rejection.id] = rejection
        self.damaged.update({dataset.manifest[index].id: reason for index, reason in batch["damaged"]})
        self.num_truncated += batch["num_truncated"]

    def collect(self) -> None:
        """Bring the notes of all processes to the first one and empty the others. Every process must call it.

        Alarms stay: every process computes the same metrics.
        """
        from accelerate import PartialState
        from accelerate.utils import gather_object

        own = (dict(self.rejections), dict(self.damaged), self.num_truncated)
        parts = gather_object([own])
        self.rejections, self.damaged, self.num_truncated = {}, {}, 0
        if PartialState().is_main_process:
            for rejections, damaged, num_truncated in parts:
                self.rejections |= rejections
                self.damaged |= damaged
                self.num_truncated += num_truncated

    def save(self, checkpoint: Path) -> None:
        state: dict[str, Any] = {
            "rejections": [vars(rejection) for rejection in self.rejections.values()],
            "damaged": self.damaged,
            "num_truncated": self.num_truncated,
            "alarms": self.alarms,
        }
        write_json(checkpoint / CLIP_NOTES, state)

    def load(self, checkpoint: Path, main_process: bool) -> None:
        """Take over what the interrupted run had noted; only the first process counts it."""
        path = checkpoint / CLIP_NOTES
        if not path.is_file():
            return
        state = read_json(path)
        self.alarms = state["alarms"]
        if main_process:
            self.rejections = {r["id"]: Rejection(**r) for r in state["rejections"]}
            self.damaged = state["damaged"]
            self.num_truncated = state["num_truncated"]
