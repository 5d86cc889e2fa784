"""The definition of `tower` in plain torch. R rows, D width, L layers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from torch_crl.kernels.dense import dense
from torch_crl.kernels.norm_act import ACTIVATIONS, EPSILON, norm_act

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

    block: str
    activation: str
    precision: str
    gradient_scale: float
    branch_scale: float


Layer = tuple[Tensor, Tensor, Tensor, Tensor]
"""Weight [out, in], bias, LayerNorm weight and LayerNorm bias [D]."""


def _published(x_RD: Tensor, layers: Sequence[Layer], arithmetic: Arithmetic) -> Tensor:
    inner_RD = x_RD
    for index, (weight_DD, bias_D, ln_weight_D, ln_bias_D) in enumerate(layers):
        inner_RD = _dense(inner_RD, weight_DD, bias_D, arithmetic)
        inner_RD = norm_act(
            inner_RD,
            ln_weight_D,
            ln_bias_D,
            x_RD if index == BLOCK - 1 else None,
            activation=arithmetic.activation,
            scale=arithmetic.branch_scale,
        )
    return inner_RD


def _pre_norm(x_RD: Tensor, layers: Sequence[Layer], arithmetic: Arithmetic) -> Tensor:
    inner_RD = x_RD
    for index, (weight_DD, bias_D, ln_weight_D, ln_bias_D) in enumerate(layers):
        inner_RD = ACTIVATIONS[arithmetic.activation](inner_RD) if index else inner_RD
        inner_RD = functional.layer_norm(
            inner_RD, ln_weight_D.shape, ln_weight_D, ln_bias_D, EPSILON
        )
        inner_RD = _dense(inner_RD, weight_DD, bias_D, arithmetic)
    return torch.add(x_RD, inner_RD, alpha=arithmetic.branch_scale)


def _dense(x_RD: Tensor, weight_DD: Tensor, bias_D: Tensor, arithmetic: Arithmetic) -> Tensor:
    return dense(
        x_RD,
        weight_DD,
        bias_D,
        precision=arithmetic.precision,
        gradient_scale=arithmetic.gradient_scale,
    )


BLOCKS = {"published": _published, "pre_norm": _pre_norm}
"""Name of a block to the function of its input and its four layers."""


def walk(x_RD: Tensor, stack: Stack, arithmetic: Arithmetic) -> Tensor:
    """All blocks, one after the other."""
    # unbind, not weight[i], whose backward makes a full-size zero tensor for every layer.
    layers = list(zip(*(parameter.unbind(0) for parameter in stack), strict=True))
    for start in range(0, len(layers), BLOCK):
        x_RD = BLOCKS[arithmetic.block](x_RD, layers[start : start + BLOCK], arithmetic)
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
