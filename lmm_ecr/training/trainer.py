"""`EcrTrainer`: transformers' Trainer for regression on clips.

What it adds: losses over the batch of all processes and micro-batches, one optimizer group per part of the model, evaluation
that is exact for any number of processes, alarms for useless predictions, a stop when the loss is not finite, and rejected
clips. Checkpoints and stops on request: `CheckpointedTrainer`.
"""

import time
from typing import Any

import numpy as np
import torch
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import EvalPrediction

from ..arguments import EcrTrainingArguments, TuningArguments
from ..console import log_lines
from ..data.dataset import ClipDataset, Collator, split_batch
from ..data.lengths import shared_lengths
from ..data.workers import one_thread_worker
from ..losses import RegressionLoss
from ..models.regression import unwrap_regressor
from .batches import EpochDataLoader, Filler, GlobalBatchSampler, PaddedDataset, grouped_by_length, shuffled
from .checkpointed import CheckpointedTrainer, changed
from .evaluation import in_row_order, regression_metrics
from .gather import gather_with_gradient, pad_rows, pointwise_share, score_gradients
from .launch import cast_unsharded_weights
from .meter import ThroughputMeter
from .random_state import RandomState, get_random_state, set_random_state
from .tuning import parameter_groups

# Part of the loss's value, gradient of the loss with respect to the scores, random state before the forward pass.
MicroBatchGradient = tuple[torch.Tensor, torch.Tensor, RandomState]


class EcrTrainer(CheckpointedTrainer):
    """Trains an `LmmRegressor` (or a PEFT model around one) on `ClipDataset`s.

    on_error: "fail" raises ClipError at the first unreadable clip; "skip" leaves it out of the loss and the metrics and
    collects it in `notes`.
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
        self.loss_function = RegressionLoss(args.loss)
        self.meter = ThroughputMeter()
        self.filler = Filler(train_dataset, Collator(train_dataset.processor))
        self._batches: list[dict[str, Any]] = []
        self._known_labels: torch.Tensor | None = None
        self._score_gradients: list[MicroBatchGradient] = []
        cast_unsharded_weights(model, args)
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
        self.add_callback(log_lines(args.disable_tqdm))
        self.model_accepts_loss_kwargs = False
        self.loss_is_scaled_for_ga = True  # `compute_loss` returns each micro-batch's share of the step's loss
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

    def get_train_dataloader(self) -> EpochDataLoader:
        """This process's micro-batches. accelerate does not wrap it: the sampler shares the rows out itself (see there)."""
        args, size = self.args, len(self.train_dataset)
        seed = args.seed if args.data_seed is None else args.data_seed
        order = shuffled(size, seed)
        if args.group_by_length:
            lengths = shared_lengths(self.train_dataset.manifest, self.train_dataset.processor)
            batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            order = grouped_by_length(lengths, batch, seed)
        sampler = GlobalBatchSampler(
            order, size, args.train_batch_size, args.process_index, args.world_size, args.dataloader_drop_last
        )
        workers = args.dataloader_num_workers
        return EpochDataLoader(
            PaddedDataset(self.train_dataset),
            batch_sampler=sampler,
            collate_fn=self.data_collator,
            num_workers=workers,
            worker_init_fn=one_thread_worker,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            timeout=args.ddp_timeout if workers else 0,
            generator=torch.Generator().manual_seed(seed),  # of its own: dropout must not depend on how often it starts
        )

    def _get_eval_sampler(self, eval_dataset):
        return SequentialSampler(eval_dataset)

    def get_eval_dataloader(self, eval_dataset=None):
        """The Trainer's, with every row: --dataloader_drop_last is about training."""
        with changed(self.args, dataloader_drop_last=False):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        """The Trainer's, with every row."""
        with changed(self.args, dataloader_drop_last=False):
            return super().get_test_dataloader(test_dataset)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Fetch the micro-batches of one step; the time spent waiting for them is the log line's `data_wait`."""
        start = time.perf_counter()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.meter.add_wait(time.perf_counter() - start)
        for batch in batches:
            self.notes.take(batch, self.train_dataset, self.on_error)
        self._begin_step([batch if "labels" in batch else self.filler.batch for batch in batches])
        return self._batches, None

    def _begin_step(self, batches: list[dict[str, Any]]) -> None:
        self._batches, self._score_gradients = batches, []
        counts = sum((~batch["labels"].isnan()).sum(dim=0) for batch in batches).cpu()
        self._known_labels = self.agreement.exchange(counts, self.stop_signals.received is not None)

    # -- loss --------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This process's and micro-batch's share of the loss over all clips of the step, times the number of processes.

        Pointwise losses are a mean over all known labels of the step. Batch-wise ones (plcc, rank) compare all clips of the
        step; with gradient accumulation that takes a forward pass without gradient over all micro-batches first, then one
        forward and backward pass each with the gradient of the loss with respect to its scores (the same gradient as of
        one large batch, for a forward pass more).
        """
        if self._known_labels is None:  # called by itself: a step of this one batch
            self._begin_step([inputs])
        tensors, notes = split_batch(inputs)
        labels = tensors.pop("labels")
        two_passes = self.loss_function.batch_wise and len(self._batches) > 1
        if two_passes and not self._score_gradients:
            self._score_gradients = self._first_pass(model)
        if two_passes:
            value, gradient, random_state = self._score_gradients.pop(0)
            set_random_state(random_state)
            outputs = model(**tensors)
            surrogate = (outputs["scores"] * gradient).sum() * self.accelerator.num_processes
            loss = value + (surrogate - surrogate.detach())
        else:
            outputs = model(**tensors)
            scores, targets = outputs["scores"], unwrap_regressor(model).to_training_scale(labels)
            loss = self._single_pass_loss(scores, targets)
        ids = [self.train_dataset.manifest[i].id for i in notes["row_index"].tolist()]
        self.finite.add(self.state.global_step + 1, loss, ids)
        self.meter.add_clips(len(ids) * self.accelerator.num_processes)
        self.record.add(loss, len(ids))
        if not hasattr(Trainer, "loss_is_scaled_for_ga"):  # older versions divide by the number of micro-batches
            loss = loss * len(self._batches)
        return (loss, outputs) if return_outputs else loss

    def _single_pass_loss(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        processes = self.accelerator.num_processes
        if not self.loss_function.batch_wise:
            return pointwise_share(self.loss_function, scores, targets, self._known_labels) * processes
        padded = pad_rows(scores, targets, self.args.train_batch_size)
        loss = self.loss_function(*gather_with_gradient(self.accelerator, *padded))
        return loss.detach() + (loss - loss.detach()) * processes

    def _first_pass(self, model) -> list[MicroBatchGradient]:
        """For each micro-batch of the step: its part of the loss's value, the gradient of the loss with respect to its
        scores, and the random state with which the second pass sees the same dropout."""
        parts, states = [], []
        for batch in self._batches:
            tensors, _ = split_batch(self._prepare_inputs(batch))
            targets = unwrap_regressor(model).to_training_scale(tensors.pop("labels"))
            states.append(get_random_state())
            with torch.no_grad(), self.compute_loss_context_manager():
                parts.append((model(**tensors)["scores"], targets))
        loss, gradients = score_gradients(self.accelerator, self.loss_function, parts, self.args.train_batch_size)
        return [(loss / len(parts), g, state) for g, state in zip(gradients, states, strict=True)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs.update(self.meter.read())
        super().log(logs, start_time)

    # -- evaluation --------------------------------------------------------------------------------------------------

    def evaluation_loop(self, *args, **kwargs):
        """The Trainer's, without a trace in the random state: a data loader with lasting workers draws a seed from it when it
        is first used, so that dropout after a resumed run's first evaluation would differ from the uninterrupted run's."""
        state = get_random_state()
        try:
            return super().evaluation_loop(*args, **kwargs)
        finally:
            set_random_state(state)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns (None, predictions float32 [samples, targets], int64 [samples, 2] of row index and readable 0/1)."""
        dataset = self.callback_handler.eval_dataloader.dataset
        self.notes.take(inputs, dataset, self.on_error)
        tensors, notes = split_batch(self._prepare_inputs(inputs))
        num_targets, device = len(dataset.manifest.targets), self.accelerator.device
        readable = notes["readable"].to(device)
        predictions = torch.full((len(readable), num_targets), float("nan"), device=device)
        if not tensors:
            tensors, _ = split_batch(self._prepare_inputs(self.filler.batch))
        tensors.pop("labels", None)
        with torch.no_grad(), self.compute_loss_context_manager():
            scored = model(**tensors)["predictions"].float()
        if bool(readable.any()):
            predictions[readable] = scored
        return None, predictions, torch.stack([notes["row_index"].to(device), readable.long()], dim=1)

    def score(self, dataset: ClipDataset) -> tuple[np.ndarray, np.ndarray]:
        """Predictions float64 [rows, targets] in row order (NaN where unreadable) and readable bool [rows].

        Raises no alarm: that is for evaluations during training, and for who asked for the scores.
        """
        with changed(self, compute_metrics=None):
            output = self.predict(dataset, metric_key_prefix="eval")
        return in_row_order(output.predictions, output.label_ids, len(dataset))

    def _compute_metrics(self, output: EvalPrediction) -> dict[str, float]:
        manifest = self.callback_handler.eval_dataloader.dataset.manifest
        predictions, readable = in_row_order(output.predictions, output.label_ids, len(manifest))
        metrics, alarms = regression_metrics(predictions[readable], manifest.labels[readable], manifest.targets)
        for alarm in alarms:
            self.notes.alarms.append(f"step {self.state.global_step}: {alarm}")
            if self.is_world_process_zero():
                print(f"\nALARM at step {self.state.global_step}: {alarm}\n", flush=True)
        return metrics
