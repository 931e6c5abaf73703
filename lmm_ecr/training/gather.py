"""The loss over the clips of all processes and all micro-batches of a step, and its gradient in this process.

Data parallelism averages gradients over the processes, so every loss here is multiplied by their number: what is averaged then
adds up to the gradient of the loss over the whole batch.
"""

import torch

from ..losses import RegressionLoss


def gather_with_gradient(accelerator, scores: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and targets [batch, targets] of all processes, concatenated in process order [processes * batch, targets].

    This process's scores stay connected to its graph; those of the others are constants. Shapes must agree.
    """
    if accelerator.num_processes == 1:
        return scores, targets
    rank, size = accelerator.process_index, len(scores)
    others, all_targets = gather_both(accelerator, scores.detach(), targets)
    connected = torch.cat([others[: rank * size], scores, others[(rank + 1) * size :]])
    return connected, all_targets


def gather_both(accelerator, scores: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Constants [batch, targets] of all processes in one message: twice [processes * batch, targets]."""
    both = accelerator.gather(torch.stack([scores, targets], dim=1))
    return both[:, 0], both[:, 1]


def pad_rows(scores: torch.Tensor, targets: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Add rows with score 0 and an unknown label (NaN, not counted) up to `size`, so that all processes gather equal shapes."""
    missing = size - len(scores)
    if missing <= 0:
        return scores, targets
    return (
        torch.cat([scores, scores.new_zeros(missing, scores.shape[1])]),
        torch.cat([targets, targets.new_full((missing, targets.shape[1]), float("nan"))]),
    )


def pointwise_share(
    loss_function: RegressionLoss, scores: torch.Tensor, targets: torch.Tensor, totals: torch.Tensor
) -> torch.Tensor:
    """This micro-batch's share of a pointwise loss, a mean over the known labels of the whole batch.

    scores, targets: [clips, targets] of one micro-batch of one process. totals: float [targets], known labels of the batch
    in all micro-batches of all processes. The shares of all of them add up to the loss of the batch.
    """
    known = (~targets.isnan()).sum(dim=0)
    weights = known / totals.clamp(min=1)
    losses = [loss_function(scores[:, t : t + 1], targets[:, t : t + 1]) for t in range(scores.shape[1])]
    return (torch.stack(losses) * weights).mean()


def score_gradients(
    accelerator, loss_function: RegressionLoss, parts: list[tuple[torch.Tensor, torch.Tensor]], size: int
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss over several micro-batches of all processes, and its gradient with respect to this process's scores.

    parts: (scores, targets), each [clips, targets], of this process's micro-batches; clips may be fewer than `size`.
    Returns the loss (a constant, the same on every process) and one gradient [clips, targets] per micro-batch.
    """
    padded = [pad_rows(scores, targets, size) for scores, targets in parts]
    scores, targets = torch.cat([s for s, _ in padded]), torch.cat([t for _, t in padded])
    rank = accelerator.process_index
    if accelerator.num_processes > 1:
        scores, targets = gather_both(accelerator, scores, targets)
    scores = scores.detach().requires_grad_()
    with torch.enable_grad():
        loss = loss_function(scores, targets)
        (gradient,) = torch.autograd.grad(loss, scores)
    own = gradient[rank * size * len(parts) : (rank + 1) * size * len(parts)]
    return loss.detach(), [own[i * size : i * size + len(s)] for i, (s, _) in enumerate(parts)]
