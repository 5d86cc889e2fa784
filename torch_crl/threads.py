"""Who may use the CPU's cores: physics and updates take turns, and each gets all of them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute on `count` threads of the CPU inside, and as before after it.

    One is right while the simulator's threads need the cores: torch's idle threads spin for
    milliseconds after each parallel operation. On two cores that costs the simulator 40 % of its
    speed; making them sleep instead (OMP_WAIT_POLICY=PASSIVE) costs the updates more than that.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
