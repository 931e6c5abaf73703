"""`CheckpointedTrainer`: transformers' Trainer with checkpoints to rely on.

A checkpoint is complete or ignored, belongs to one training and refuses to be resumed by another, and keeps the record of the
training over interruptions. A stop on request loses nothing, and nothing that is not finite is saved.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import TrainOutput

from ..errors import TrainingError
from ..models.regression import unwrap_regressor
from ..signals import StopSignals
from .checkpoints import (
    COMPLETE_MARK,
    best_checkpoint,
    check_optimizer_state,
    delete_checkpoint,
    delete_old_checkpoints,
    is_complete,
    last_complete_checkpoint,
    step_of,
)
from .clip_notes import ClipNotes
from .finite import FiniteWatch, check_weights
from .identity import check_same_training, write_identity
from .preemption import PreemptionCallback, StepAgreement, any_process, preempted
from .record import TrainingRecord


@contextmanager
def changed(target: Any, **values: Any) -> Iterator[None]:
    """Attributes of `target` have other values inside the block."""
    old = {name: getattr(target, name) for name in values}
    try:
        for name, value in values.items():
            setattr(target, name, value)
        yield
    finally:
        for name, value in old.items():
            setattr(target, name, value)


class BestModelPlace(TrainerCallback):
    """Puts the best model's directory, as `best_checkpoint` finds it, into the state of a resumed training."""

    def __init__(self, best: Path | None):
        self.best = best

    def on_train_begin(self, args, state, control, **kwargs):
        state.best_model_checkpoint = None if self.best is None else str(self.best)


class CheckpointedTrainer(Trainer):
    """What a training needs around its steps. `notes`, `record`: about its clips and its time; `loaded_best_step`: the step
    of the best model, once training has ended with it (None: the model is the last one)."""

    def __init__(self, **options):
        self.notes = ClipNotes()
        self.record = TrainingRecord()
        self.finite = FiniteWatch()
        self.stop_signals = StopSignals()
        self.loaded_best_step: int | None = None
        super().__init__(**options)
        self.agreement = StepAgreement(self.accelerator)
        self.add_callback(PreemptionCallback(self.agreement, self.stop_signals))

    def train(self, resume_from_checkpoint: str | None = None, **options) -> TrainOutput:
        """Train, from a checkpoint if one is given. Times, speed and loss returned are those of the whole training.

        SIGTERM and SIGUSR1 raise `Preempted` after a checkpoint was written. Raises ConfigError for a checkpoint of another
        training or without all that is needed, TrainingError if a loss or the weights are not finite.
        """
        checkpoint = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self.loaded_best_step = None
        if checkpoint is not None:
            check_same_training(checkpoint, self)
            check_optimizer_state(checkpoint)
            self.notes.load(checkpoint, self.is_world_process_zero())
            if self.args.load_best_model_at_end:
                self.add_callback(BestModelPlace(best_checkpoint(checkpoint)))
        self.record.begin(checkpoint)
        with self.stop_signals:
            result = super().train(resume_from_checkpoint, **options)
            self.finite.check(self.accelerator)
            self._stop_if_asked()
        self.remove_callback(BestModelPlace)
        totals = self.record.totals()
        return result._replace(
            training_loss=totals["loss_sum"] / max(self.state.global_step, 1),
            metrics={
                **result.metrics,
                "train_runtime": totals["runtime_s"],
                "train_samples_per_second": totals["clips"] / max(totals["runtime_s"], 1e-9),
                "train_loss": totals["loss_sum"] / max(self.state.global_step, 1),
            },
        )

    def _stop_if_asked(self) -> None:
        """Raise `Preempted` for a signal that came after the last step, so that the rest waits for the next start."""
        if not any_process(self.accelerator, self.stop_signals.received is not None):
            return
        newest = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if not is_complete(newest) and self.loaded_best_step is None:
            self._save_checkpoint(self.model_wrapped, None)
        raise preempted(self.stop_signals, self.state.global_step, last_complete_checkpoint(self.args.output_dir))

    def _load_best_model(self) -> None:
        best = Path(self.state.best_model_checkpoint)
        if not is_complete(best):
            raise TrainingError(
                f"{best}, the best model, was removed while the training went on; the last one is saved"
            )
        super()._load_best_model()
        self.loaded_best_step = step_of(best)

    def _finalize_training(self, *args, **kwargs):
        # With a limit of 1 transformers would delete the newest checkpoint and keep the best one only.
        with changed(self.args, save_total_limit=None):
            return super()._finalize_training(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        if self.control.should_log or self.control.should_save or self.control.should_evaluate:
            self.finite.check(self.accelerator)
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _save_checkpoint(self, model, trial):
        """Write a checkpoint; the mark comes last, so that a killed run never resumes from half of one, and only then are
        older ones deleted. Nothing goes to the hub before the run is finished."""
        check_weights(self.model, self.accelerator, self.state.global_step)
        directory = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and directory.exists():
            delete_checkpoint(directory)
        self.accelerator.wait_for_everyone()
        with changed(self.args, save_total_limit=None, push_to_hub=False):  # else old ones go before this one is whole
            super()._save_checkpoint(model, trial)
        self.notes.collect()
        totals = self.record.totals()
        if self.args.should_save:
            self.notes.save(directory)
            self.record.save(directory, totals)
            write_identity(directory, self)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (directory / COMPLETE_MARK).touch()
            delete_old_checkpoints(directory.parent, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # An adapter checkpoint needs the wrapper's configuration (head, targets, label transform) beside it.
            directory = Path(output_dir or self.args.output_dir)
            unwrap_regressor(self.model).config.save_pretrained(directory)
            (directory / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json has the arguments as text
            (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
