"""Random draws that several tasks share. N envs; every draw comes from the given generator.

Draws are float32 (torch draws those several times faster) and returned as float64. They are made
on torch's default device, which the vector env sets to the simulator's.
"""

import math

import torch
from torch import Generator, Tensor

from torch_crl.envs.tasks.layouts import cells


def uniform(low: float, high: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """float64 draws from U(low, high)."""
    return torch.rand(shape, generator=generator).double().mul_(high - low).add_(low)


def normal(std: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """float64 draws from N(0, std)."""
    return torch.randn(shape, generator=generator).double().mul_(std)


def on_circle(radius_N: Tensor, generator: Generator) -> Tensor:
    """Points at the given radii and uniform angles around the origin, [N, 2]."""
    return radius_N[:, None] * direction(angles(len(radius_N), generator))


def angles(num_envs: int, generator: Generator) -> Tensor:
    """Uniform angles within a full turn, [N], radians."""
    return uniform(0.0, 2.0 * math.pi, (num_envs,), generator)


def direction(angle_N: Tensor) -> Tensor:
    """Unit vectors at these angles from the x axis, [N, 2]."""
    return torch.stack([angle_N.cos(), angle_N.sin()], dim=-1)


def at_height(xy_N2: Tensor, height: float) -> Tensor:
    """Points with these x and y [..., 2] and one height, float32 [..., 3]."""
    return torch.nn.functional.pad(xy_N2, (0, 1), value=height).float()


class Constant:
    """A tensor of a task, copied to each device once: a CUDA graph cannot capture that copy."""

    def __init__(self, tensor: Tensor) -> None:
        """The tensor must not change."""
        self._tensor = tensor
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """The tensor on a device, in its own dtype."""
        return self._copy(device, self._tensor.dtype)

    def like(self, other: Tensor) -> Tensor:
        """The tensor on the device and in the dtype of `other`."""
        return self._copy(other.device, other.dtype)

    def _copy(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        if (device, dtype) not in self._copies:
            self._copies[device, dtype] = self._tensor.to(device, dtype)
        return self._copies[device, dtype]

    def __len__(self) -> int:
        return len(self._tensor)


def cell_centres(layout: tuple[str, ...], kinds: str, *, scale: float) -> Constant:
    """World xy of every cell of the given kinds, float64 [cells, 2]."""
    return Constant(scale * torch.tensor(cells(layout, kinds), dtype=torch.float64))


def one_of(choices: Constant, num_envs: int, generator: Generator) -> Tensor:
    """`num_envs` uniform choices among the rows, [N, ...]."""
    index_N = torch.randint(len(choices), (num_envs,), generator=generator)
    return choices.on(index_N.device)[index_N]


def first_of(draws_ND: Tensor, fits_ND: Tensor) -> Tensor:
    """For each env the first of its D draws that fits, or its first draw if none does.

    `draws_ND` is [N, D, ...], `fits_ND` bool [N, D]. Returns [N, ...].
    """
    # argmax returns the first of equal values.
    index_ND = fits_ND.int().argmax(1).reshape(-1, *[1] * (draws_ND.ndim - 1))
    return draws_ND.take_along_dim(index_ND, dim=1)[:, 0]
