"""The definition of `tower` in plain torch. R rows, D width, L layers."""

from typing import NamedTuple

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_crl.kernels.dense import dense
from torch_crl.kernels.norm_act import norm_act

BLOCK = 4
"""Number of layers in one residual block."""


class Stack(NamedTuple):
    """The parameters of L layers of width D."""

    weight_LDD: Tensor
    """[L, out, in]."""
    bias_LD: Tensor
    ln_weight_LD: Tensor
    ln_bias_LD: Tensor

    def detached(self) -> "Stack":
        """The same parameters as constants, which get no gradient."""
        return Stack(*(parameter.detach() for parameter in self))


class Parts(NamedTuple):
    """All parameters of a tower."""

    first: tuple[Tensor, Tensor, Tensor, Tensor]
    """Weight [D, I], bias, LayerNorm weight and bias [D] of the first layer."""
    stack: Stack
    last: tuple[Tensor, Tensor]
    """Weight [O, D] and bias [O] of the last layer."""


class Arithmetic(NamedTuple):
    """How the layers are computed; see `torch_crl.kernels.tower.tower`."""

    activation: str
    precision: str
    gradient_scale: float
    branch_scale: float


def walk(x_RD: Tensor, stack: Stack, arithmetic: Arithmetic) -> Tensor:
    """x + branch_scale * f(x) for every block f, four times dense - LayerNorm - activation."""
    # unbind, not weight[i], whose backward makes a full-size zero tensor for every layer.
    layers = zip(*(parameter.unbind(0) for parameter in stack), strict=True)
    inner_RD = x_RD
    for index, (weight_DD, bias_D, ln_weight_D, ln_bias_D) in enumerate(layers):
        ends_block = index % BLOCK == BLOCK - 1
        inner_RD = dense(
            inner_RD,
            weight_DD,
            bias_D,
            precision=arithmetic.precision,
            gradient_scale=arithmetic.gradient_scale,
        )
        inner_RD = norm_act(
            inner_RD,
            ln_weight_D,
            ln_bias_D,
            x_RD if ends_block else None,
            activation=arithmetic.activation,
            scale=arithmetic.branch_scale,
        )
        if ends_block:
            x_RD = inner_RD
    return x_RD


def tower(x_RD: Tensor, stack: Stack, *, arithmetic: Arithmetic, recompute: int) -> Tensor:
    """Same as `walk`, but keeps only the input of every `recompute` layers; 0 keeps everything."""
    if not recompute:
        return walk(x_RD, stack, arithmetic)
    chunks = zip(*(parameter.split(recompute) for parameter in stack), strict=True)
    for chunk in chunks:
        # `walk` draws no random numbers, and the state of a generator cannot be read while a CUDA
        # graph is captured.
        x_RD = checkpoint(
            walk,
            x_RD,
            Stack(*chunk),
            arithmetic,
            use_reentrant=False,
            preserve_rng_state=False,
        )
    return x_RD
