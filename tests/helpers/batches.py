"""Random batches for learners."""

import torch
from tensordict import TensorDict
from torch import Generator

S, G, A = 6, 2, 3
"""Sizes of state, goal and action."""


def make_batch(size: int, seed: int = 0) -> TensorDict:
    generator = Generator().manual_seed(seed)
    return TensorDict(
        {
            "state": torch.randn(size, S, generator=generator),
            "action": torch.rand(size, A, generator=generator) * 2 - 1,
            "goal": torch.randn(size, G, generator=generator),
        },
        batch_size=[size],
    )
