"""Collecting a batch from all processes without losing this process's gradient."""

import torch


def gather_with_gradient(accelerator, scores: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and targets [batch, targets] of all processes, concatenated in process order [processes * batch, targets].

    This process's scores stay connected to its graph; those of the others are constants. Shapes must agree.
    """
    if accelerator.num_processes == 1:
        return scores, targets
    rank, size = accelerator.process_index, len(scores)
    both = accelerator.gather(torch.stack([scores.detach(), targets], dim=1))
    others, all_targets = both[:, 0], both[:, 1]
    connected = torch.cat([others[: rank * size], scores, others[(rank + 1) * size :]])
    return connected, all_targets
