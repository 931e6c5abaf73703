"""Stopping in time: SIGTERM and SIGUSR1 ask a run to save and stop, and all processes agree on the step at which they do.

SLURM sends SIGUSR1 ahead of the time limit (`sbatch --signal`) and SIGTERM when a job is cancelled or preempted; the signals
reach the processes of a job at different steps.
"""

import math
from pathlib import Path

import torch
from transformers import TrainerCallback

from ..errors import Preempted
from ..signals import StopSignals


class StepAgreement:
    """One small sum over all processes at every step: label counts, and whether any process was asked to stop.

    The answer about stopping is copied to the host while the step computes, so that a GPU never waits for it.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self._answer: torch.Tensor | None = None
        self._copied: torch.cuda.Event | None = None

    def exchange(self, counts: torch.Tensor, stop_requested: bool) -> torch.Tensor:
        """counts: [n] of this process, below 2^24. Returns their sums over all processes, float32 [n] on the device."""
        device = self.accelerator.device
        message = torch.cat([counts.float(), torch.tensor([float(stop_requested)])]).to(device)
        if self.accelerator.num_processes > 1:
            message = self.accelerator.reduce(message, reduction="sum")
        if device.type == "cuda":
            self._answer = torch.empty(1, pin_memory=True)
            self._answer.copy_(message[-1:], non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record()
        else:
            self._answer = message[-1:]
        return message[:-1]

    @property
    def stop(self) -> bool:
        """Whether any process was asked to stop before the last exchange; the same on every process."""
        if self._answer is None:
            return False
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._answer.item() > 0)


def any_process(accelerator, flag: bool) -> bool:
    """Whether `flag` is true on any process. Every process must call it."""
    if accelerator.num_processes == 1:
        return flag
    message = torch.tensor(float(flag), device=accelerator.device)
    return bool(accelerator.reduce(message, reduction="sum").item() > 0)


def preempted(signals: StopSignals, step: int, checkpoint: Path | None) -> Preempted:
    """The error of a run that stopped after `step`; `checkpoint`: where it goes on."""
    kept = f"{checkpoint} is complete" if checkpoint else "no checkpoint was written"
    return Preempted(
        f"stopped by {signals.received or 'a signal to another process'} after step {step}; {kept}. "
        "The same command with --resume_from_checkpoint goes on from there."
    )


class PreemptionCallback(TrainerCallback):
    """Saves a checkpoint at the end of the step at which all processes know of the stop, and raises `Preempted`.

    At the last step of an epoch it waits for what happens at the end of the epoch (evaluation), because a run that goes on
    from the checkpoint starts with the next epoch.
    """

    def __init__(self, agreement: StepAgreement, signals: StopSignals):
        self.agreement = agreement
        self.signals = signals

    def on_step_end(self, args, state, control, train_dataloader=None, **kwargs):
        steps_per_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        if self.agreement.stop and state.global_step % steps_per_epoch:
            control.should_save = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.agreement.stop:
            control.should_save = True

    def on_save(self, args, state, control, **kwargs):
        if self.agreement.stop:
            raise preempted(self.signals, state.global_step, Path(args.output_dir) / f"checkpoint-{state.global_step}")
