"""`EcrTrainer`: transformers' Trainer for regression on clips.

What it adds: losses over the batch of all processes, one optimizer group per part of the model, evaluation that is exact for
any number of processes, alarms for useless predictions, a stop when the loss is not finite, rejected clips, and checkpoints
that are either complete or ignored.
"""

import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalPrediction

from ..arguments import EcrTrainingArguments, TuningArguments
from ..console import LogLines
from ..data.dataset import ClipDataset, Collator, estimate_lengths, split_batch
from ..data.manifest import Rejection
from ..errors import ClipError, TrainingError
from ..losses import RegressionLoss
from ..models.regression import unwrap_regressor
from .evaluation import regression_metrics
from .gather import gather_with_gradient
from .meter import ThroughputMeter
from .tuning import parameter_groups

COMPLETE_MARK = "complete"  # written last into a checkpoint directory


class EcrTrainer(Trainer):
    """Trains an `LmmRegressor` (or a PEFT model around one) on `ClipDataset`s.

    on_error: "fail" raises ClipError at the first unreadable clip; "skip" leaves it out of the loss and the metrics and
    collects it in `rejections`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        args: EcrTrainingArguments,
        tuning: TuningArguments,
        train_dataset: ClipDataset,
        eval_dataset: ClipDataset | None = None,
        on_error: str = "fail",
        callbacks: list[TrainerCallback] | None = None,
    ):
        self.tuning = tuning
        self.on_error = on_error
        self.rejections: dict[str, Rejection] = {}
        self.damaged: dict[str, str] = {}
        self.num_truncated = 0
        self.alarms: list[str] = []
        self.loss_function = RegressionLoss(args.loss)
        self.meter = ThroughputMeter()
        self._pending: list[tuple[int, torch.Tensor, list[str]]] = []
        super().__init__(
            model=model,
            args=args,
            data_collator=Collator(train_dataset.processor),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=train_dataset.processor,
            compute_metrics=self._compute_metrics,
            callbacks=callbacks,
        )
        self.remove_callback(PrinterCallback)
        self.remove_callback(ProgressCallback)
        self.add_callback(LogLines)
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = False  # a mean per batch: the Trainer divides it by the accumulation steps
        self.can_return_loss = False

    # -- optimizer ---------------------------------------------------------------------------------------------------

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """One optimizer group per part, each with its own learning rate (see `parameter_groups`)."""
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            groups = parameter_groups(model, self.tuning, self.args.learning_rate, self.args.weight_decay)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def _get_learning_rate(self) -> float:
        """The language model's rate for the log lines, where it is trained; else the first group's."""
        groups = self.optimizer.param_groups
        return next((g["lr"] for g in groups if g.get("part") == "language_model"), groups[0]["lr"])

    # -- batches -----------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, train_dataset=None):
        train_dataset = train_dataset or self.train_dataset
        if not self.args.group_by_length:
            return super()._get_train_sampler(train_dataset)
        lengths = estimate_lengths(train_dataset.manifest, train_dataset.processor)
        generator = torch.Generator().manual_seed(self.args.data_seed or self.args.seed)
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGroupedSampler(batch, lengths=lengths, generator=generator)

    def _get_eval_sampler(self, eval_dataset):
        return SequentialSampler(eval_dataset)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Fetch the micro-batches of one step; the time spent waiting for them is the log line's `data_wait`."""
        start = time.perf_counter()
        batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.add_wait(time.perf_counter() - start)
        return batches, num_items

    def _take(self, batch: dict[str, Any], dataset: ClipDataset) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Split a batch, and report or raise what could not be read."""
        inputs, notes = split_batch(batch)
        for index, rejection in notes["rejections"]:
            if self.on_error == "fail":
                raise ClipError(
                    dataset.manifest[index].video,
                    rejection.reason,
                    f"{rejection.detail}; row {rejection.row} of {dataset.manifest.path}, Id {rejection.id!r}. "
                    "Remove the row, or use --on_error skip",
                )
            self.rejections[rejection.id] = rejection
        if not inputs:
            raise TrainingError(
                f"no clip of a batch could be read ({', '.join(r.id for _, r in notes['rejections'])}): "
                "run `lmm-ecr prepare` first, which sorts unreadable clips out"
            )
        self.damaged.update({dataset.manifest[index].id: reason for index, reason in notes["damaged"]})
        self.num_truncated += notes["num_truncated"]
        return inputs, notes

    # -- loss --------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Loss over the clips of all processes, with the gradient of this process's share.

        The value is the same on every process. Its gradient is multiplied by the number of processes, because data
        parallelism averages gradients: what is averaged adds up to the gradient of the global loss. With gradient
        accumulation, batch-wise losses see one micro-batch of all processes at a time.
        """
        inputs, notes = self._take(inputs, self.train_dataset)
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        targets = unwrap_regressor(model).to_training_scale(labels)
        scores, targets = self._fill_rejected(outputs["scores"], targets, notes["readable"])
        loss = self.loss_function(*gather_with_gradient(self.accelerator, scores, targets))
        loss = loss.detach() + (loss - loss.detach()) * self.accelerator.num_processes
        ids = [self.train_dataset.manifest[i].id for i in notes["row_index"].tolist()]
        self._pending.append((self.state.global_step + 1, torch.isfinite(loss.detach()), ids))
        self.meter.add_clips(len(ids) * self.accelerator.num_processes)
        return (loss, outputs) if return_outputs else loss

    @staticmethod
    def _fill_rejected(scores, targets, readable):
        """Rows of unreadable clips get score 0 and label NaN (not counted), so that all processes gather equal shapes."""
        if bool(readable.all()):
            return scores, targets
        readable = readable.to(scores.device)
        full_scores = scores.new_zeros(len(readable), scores.shape[1])
        full_targets = targets.new_full((len(readable), targets.shape[1]), float("nan"))
        full_scores[readable], full_targets[readable] = scores, targets
        return full_scores, full_targets

    def _check_finite(self) -> None:
        """Raise TrainingError if a loss since the last check was NaN or infinite. Synchronises, so it runs at log lines
        and before anything is saved or evaluated."""
        pending, self._pending = self._pending, []
        if not pending:
            return
        for (step, _, ids), finite in zip(pending, torch.stack([f for _, f, _ in pending]).tolist(), strict=True):
            if not finite:
                raise TrainingError(
                    f"the loss became NaN or infinite at step {step} (clips {', '.join(ids)}). Nothing was saved after "
                    "it. Usual causes: a learning rate that is too high, fp16 (use bf16), or a broken checkpoint. "
                    "Lower the rates or raise --warmup_steps, and resume with --resume_from_checkpoint."
                )

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        if self.control.should_log or self.control.should_save or self.control.should_evaluate:
            self._check_finite()
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.meter.read())
        super().log(logs, start_time)

    # -- evaluation --------------------------------------------------------------------------------------------------

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns (None, predictions float32 [samples, targets], int64 [samples, 2] of row index and readable 0/1)."""
        inputs, notes = self._take(self._prepare_inputs(inputs), self.callback_handler.eval_dataloader.dataset)
        inputs.pop("labels", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(**inputs)
        scored = outputs["predictions"].float()
        readable = notes["readable"].to(scored.device)
        predictions = scored.new_full((len(readable), scored.shape[1]), float("nan"))
        predictions[readable] = scored
        return None, predictions, torch.stack([notes["row_index"].to(scored.device), readable.long()], dim=1)

    def score(self, dataset: ClipDataset) -> tuple[np.ndarray, np.ndarray]:
        """Predictions float64 [rows, targets] in row order (NaN where unreadable) and readable bool [rows]."""
        output = self.predict(dataset, metric_key_prefix="eval")
        return _in_row_order(output.predictions, output.label_ids, len(dataset))

    def _compute_metrics(self, output: EvalPrediction) -> dict[str, float]:
        manifest = self.callback_handler.eval_dataloader.dataset.manifest
        predictions, readable = _in_row_order(output.predictions, output.label_ids, len(manifest))
        metrics, alarms = regression_metrics(predictions[readable], manifest.labels[readable], manifest.targets)
        for alarm in alarms:
            self.alarms.append(f"step {self.state.global_step}: {alarm}")
            if self.is_world_process_zero():
                print(f"\nALARM at step {self.state.global_step}: {alarm}\n", flush=True)
        return metrics

    # -- checkpoints -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial):
        """Write a checkpoint; the mark comes last, so that a killed run never resumes from half of one."""
        directory = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save and directory.exists() and not is_complete(directory):
            shutil.rmtree(directory)
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save and directory.exists():
            (directory / COMPLETE_MARK).touch()

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        super()._save(output_dir, state_dict)
        if self.args.should_save:
            # An adapter checkpoint needs the wrapper's configuration (head, targets, label transform) beside it.
            directory = Path(output_dir or self.args.output_dir)
            unwrap_regressor(self.model).config.save_pretrained(directory)
            (directory / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json has the arguments as text
            (directory / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def is_complete(checkpoint: Path) -> bool:
    return (checkpoint / COMPLETE_MARK).is_file()


def last_complete_checkpoint(output_dir: str | Path) -> Path | None:
    """The newest checkpoint below `output_dir` that was written to its end, or None."""
    found = [
        path
        for path in Path(output_dir).glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit() and is_complete(path)
    ]
    return max(found, key=lambda path: int(path.name.removeprefix("checkpoint-")), default=None)


def _in_row_order(predictions: np.ndarray, rows: np.ndarray, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Gathered predictions [gathered, targets] and (row index, readable) [gathered, 2] as (predictions, readable) by row.

    A row that several processes scored (padding of the last batch) counts once.
    """
    values = np.full((num_rows, predictions.shape[1]), np.nan)
    values[rows[:, 0]] = predictions
    readable = np.zeros(num_rows, dtype=bool)
    readable[rows[:, 0]] = rows[:, 1].astype(bool)
    missing = np.setdiff1d(np.arange(num_rows), rows[:, 0])
    if len(missing):
        raise AssertionError(f"{len(missing)} of {num_rows} rows were not evaluated")
    return values, readable
