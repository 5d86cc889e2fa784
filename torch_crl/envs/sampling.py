"""Random draws that several tasks share. N envs; every draw comes from the given generator.

Draws are float32 (torch draws those several times faster) and returned as float64, the
simulator's type.
"""

import math

import torch
from torch import Generator, Tensor

from torch_crl.envs.layouts import cells


def uniform(low: float, high: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """float64 draws from U(low, high)."""
    return torch.rand(shape, generator=generator).double().mul_(high - low).add_(low)


def normal(std: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """float64 draws from N(0, std)."""
    return torch.randn(shape, generator=generator).double().mul_(std)


def on_circle(radius_N: Tensor, generator: Generator) -> Tensor:
    """Points at the given radii and uniform angles around the origin, [N, 2]."""
    angle_N = uniform(0.0, 2.0 * math.pi, (len(radius_N),), generator)
    return radius_N[:, None] * torch.stack([angle_N.cos(), angle_N.sin()], dim=-1)


def at_height(xy_N2: Tensor, height: float) -> Tensor:
    """Goals of x, y and one height, float32 [N, 3]."""
    return torch.nn.functional.pad(xy_N2, (0, 1), value=height).float()


def cell_centres(layout: tuple[str, ...], kinds: str, *, scale: float) -> Tensor:
    """World xy of every cell of the given kinds, float64 [cells, 2]."""
    return scale * torch.tensor(cells(layout, kinds), dtype=torch.float64)


def one_of(rows: Tensor, num_envs: int, generator: Generator) -> Tensor:
    """`num_envs` uniform choices among the rows, [N, ...]."""
    return rows[torch.randint(len(rows), (num_envs,), generator=generator)]
