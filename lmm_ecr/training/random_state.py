"""The random state that dropout draws from, on the CPU and on this process's GPU."""

import torch

RandomState = tuple[torch.Tensor, torch.Tensor | None]


def get_random_state() -> RandomState:
    device = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return torch.random.get_rng_state(), device


def set_random_state(state: RandomState) -> None:
    torch.random.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1])
