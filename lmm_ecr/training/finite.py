"""The stop when a loss or a weight is not finite."""

import torch

from ..errors import TrainingError


class FiniteWatch:
    """Remembers, without waiting for the device, whether each loss was finite, until somebody checks."""

    def __init__(self):
        self._pending: list[tuple[int, torch.Tensor, list[str]]] = []

    def add(self, step: int, loss: torch.Tensor, ids: list[str]) -> None:
        self._pending.append((step, torch.isfinite(loss.detach()), ids))

    def check(self, accelerator) -> None:
        """Raise TrainingError on every process if any process had a loss that was NaN or infinite since the last check.

        Every process must call it. It waits for the device, so it runs at log lines and before anything is saved.
        """
        from accelerate.utils import gather_object

        pending, self._pending = self._pending, []
        if not pending:
            return
        broken = ~torch.stack([finite for _, finite, _ in pending])
        anywhere = broken
        if accelerator.num_processes > 1:
            anywhere = accelerator.reduce(broken.float(), reduction="sum").bool()
        if not bool(anywhere.any()):
            return
        first = int(anywhere.int().argmax())
        step, _, ids = pending[first]
        clips = gather_object(ids if bool(broken[first]) else [])
        raise TrainingError(
            f"the loss became NaN or infinite at step {step} (clips {', '.join(clips)}). Nothing was saved after "
            "it. Usual causes: a learning rate that is too high, fp16 (use bf16), or a broken checkpoint. "
            "Lower the rates or raise --warmup_steps, and resume with --resume_from_checkpoint."
        )


def check_weights(model: torch.nn.Module, accelerator, step: int) -> None:
    """Raise TrainingError on every process if a trained weight is NaN or infinite on any. Every process must call it.

    Catches an update that broke the model after its last finite loss.
    """
    broken = torch.zeros((), device=accelerator.device)
    for parameter in model.parameters():
        if parameter.requires_grad:
            shard = getattr(parameter, "ds_tensor", parameter).detach()  # ZeRO-3 keeps this process's part beside
            if hasattr(shard, "to_local"):  # FSDP2's part of this process
                shard = shard.to_local()
            broken += (~torch.isfinite(shard).all()).to(accelerator.device)
    if accelerator.num_processes > 1:
        broken = accelerator.reduce(broken, reduction="sum")
    if float(broken) > 0:
        raise TrainingError(
            f"weights became NaN or infinite in the update of step {step}, although the loss was finite. They were not "
            "saved. Usual causes: a learning rate that is too high, --max_grad_norm 0, or fp16 (use bf16). Lower the rates "
            "or raise --warmup_steps, and start anew or resume with --resume_from_checkpoint."
        )
