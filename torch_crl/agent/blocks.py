"""The residual blocks of a tower: the published one, and variants to compare it with.

A block has four layers (`BLOCK`), which is why a depth is a multiple of four. Every block has the
same stacked parameters, so depth and parameter count mean the same for all; of the blocks `shared`
and `gated` a tower has one, which is applied depth / 4 times.
The table shows how each block uses them; every parameter gets a gradient. published and pre_norm
run on fused kernels if `Compute` says so, shared on a GPU; the others run in plain torch.

| block          | first layer     | a block of four layers              | before the head |
|----------------|-----------------|-------------------------------------|-----------------|
| published      | act LN W x      | h + (act LN W)^4 h                  |                 |
| no_skip        | act LN W x      | (act LN W)^4 h                      |                 |
| no_norm        | act A W x       | h + (act A W)^4 h                   |                 |
| pre_norm       | W x             | h + W LN (act W LN)^3 h             | LN              |
| hyperspherical | N act A W' N(x) | N(h + alpha ((N act A W')^4 h - h)) | times sqrt(D)   |

x is the input of the tower and h that of a block. W is a dense layer with a bias, LN a LayerNorm
and act the activation. A multiplies by `ln_weight` and adds `ln_bias`, which is LN without its
statistics. N divides by the Euclidean norm.

pre_norm (SimBa, arXiv 2410.09754): only outputs of linear layers are added to the residual sum.
SimBa's branch has one LN and two layers; ours has four layers, each with an LN before it. The
first layer of the tower has no LN, so the LN before the head uses that layer's LN parameters.
SimBa's running normalisation of the observations is left out, so that only the blocks differ.

hyperspherical (SimBaV2, arXiv 2502.15280): W' has rows of norm 1. The rows are normalised where
they are used, so the weights need no projection after an optimiser step (the larger the norm of
a stored row has grown, the less a step turns it). The output of W' is multiplied by the square
root of its number of inputs, so that `ln_weight` = 1 gives entries of about 1. In the first layer
a constant 3 is appended to the input, whose weight is the bias; A is as above. In the inner layers
A multiplies by `ln_weight` and adds `bias`, and the `ln_bias` of the layers of a block determine
alpha = (1 + sqrt(D) mean(ln_bias)) / (blocks + 1), for each unit.

shared is the published block. gated is the iterated cell of arXiv 2602.05999 (its code): with x the
output of the first layer, which is LN W x without an activation, c = h = 0, and then

    u = LN without parameters of [x, h]
    f = sigmoid(W1 (A1 u_x) + W2 (A2 u_h) + 1),  i = tanh(W3 (A3 u_x) + W4 (A4 u_h))
    c = f c + (1 - f) i,  h = h + tanh(c)

where Wk and Ak are those of the four layers, and u_x and u_h the halves of u. The head reads h.

B batch, D width, I inputs, L layers.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from torch_crl.agent.compute import Compute
from torch_crl.agent.sizes import TowerSizes
from torch_crl.kernels.dense import dense
from torch_crl.kernels.norm_act import ACTIVATIONS, EPSILON, norm_act
from torch_crl.kernels.tower import BLOCK, Stack, default_gradient_scale, tower

# SimBaV2's value. Appended to the input, it preserves the input's length under normalisation.
CONSTANT_INPUT = 3.0


class Layer(NamedTuple):
    """The parameters of one layer; the weight of the first layer is [D, I]."""

    weight_DD: Tensor
    bias_D: Tensor
    ln_weight_D: Tensor
    ln_bias_D: Tensor


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """How the layers of a block are computed in plain torch."""

    sizes: TowerSizes
    precision: str
    gradient_scale: float

    def act(self, x: Tensor) -> Tensor:
        """Apply the activation."""
        return ACTIVATIONS[self.sizes.activation](x)

    def product(self, x_BD: Tensor, weight_DD: Tensor, bias_D: Tensor) -> Tensor:
        """x W^T + b in the chosen precision."""
        return dense(
            x_BD, weight_DD, bias_D, precision=self.precision, gradient_scale=self.gradient_scale
        )


@dataclass(frozen=True, kw_only=True)
class Block:
    """The parts of a tower that depend on the choice of its block."""

    embed: Callable[[Tensor, Layer, TowerSizes, Compute], Tensor]
    """Applies the first layer: [B, I] to [B, D]."""
    inner: Callable[
        [Sequence[Tensor], Sequence[Stack], Tensor | None, TowerSizes, Compute], list[Tensor]
    ]
    """Applies all inner layers to rows [B, D] of one or two towers of these sizes. Further rows,
    if given, pass through the first tower as if its parameters were constants."""
    finish: Callable[[Tensor, Layer], Tensor]
    """Maps [B, D] and the first layer's parameters to the input of the head."""
    has_sum: bool
    """Whether the block has a residual sum, so that `branch_scale` has an effect."""
    has_kernels: bool = False
    """Whether the block has fused kernels for a GPU besides plain torch."""
    has_cpu_kernels: bool = False
    """Whether the block has compiled kernels for a CPU core."""
    has_activation: bool = True
    """Whether the block reads the activation of its sizes."""


def _groups(
    rows: Sequence[Tensor], stacks: Sequence[Stack], frozen: Tensor | None
) -> list[tuple[Tensor, Stack]]:
    """Rows and the stack that they pass, where the frozen ones see constants."""
    groups = [*zip(rows, stacks, strict=True)]
    return groups if frozen is None else [*groups, (frozen, stacks[0].detached())]


def _in_plain_torch(
    block: Callable[[Tensor, Sequence[Layer], Arithmetic], Tensor],
    rows: Sequence[Tensor],
    stacks: Sequence[Stack],
    frozen: Tensor | None,
    sizes: TowerSizes,
    compute: Compute,
) -> list[Tensor]:
    """`Block.inner` for a block given as a function of its input rows and its four layers."""
    arithmetic = Arithmetic(
        sizes=sizes,
        precision=compute.precision,
        gradient_scale=default_gradient_scale(rows, compute.precision),
    )
    recompute = compute.recompute

    def walk(x_BD: Tensor, chunk: Stack) -> Tensor:
        # unbind, not weight[i], whose backward makes a full-size zero tensor for every layer.
        unbound = zip(*(parameter.unbind(0) for parameter in chunk), strict=True)
        layers = [Layer(*each) for each in unbound]
        for start in range(0, len(layers), BLOCK):
            x_BD = block(x_BD, layers[start : start + BLOCK], arithmetic)
        return x_BD

    def through(x_BD: Tensor, stack: Stack) -> Tensor:
        if not recompute:
            return walk(x_BD, stack)
        for chunk in zip(*(parameter.split(recompute) for parameter in stack), strict=True):
            x_BD = checkpoint(
                walk, x_BD, Stack(*chunk), use_reentrant=False, preserve_rng_state=False
            )
        return x_BD

    return [through(x_BD, stack) for x_BD, stack in _groups(rows, stacks, frozen)]


def _on_kernels(
    block: str,
    rows: Sequence[Tensor],
    stacks: Sequence[Stack],
    frozen: Tensor | None,
    sizes: TowerSizes,
    compute: Compute,
) -> list[Tensor]:
    """`Block.inner` for a block that `tower` has, in plain torch or on kernels."""
    return tower(
        rows,
        stacks,
        frozen=frozen,
        block=block,
        activation=sizes.activation,
        branch_scale=sizes.branch_scale,
        precision=compute.precision,
        # With numba only whole towers have a kernel, which does not come by here.
        implementation="reference" if compute.tower == "numba" else compute.tower,
        recompute=compute.recompute,
    )


def _shared(
    rows: Sequence[Tensor],
    stacks: Sequence[Stack],
    frozen: Tensor | None,
    sizes: TowerSizes,
    compute: Compute,
) -> list[Tensor]:
    layers = [unrolled(stack, sizes) for stack in stacks]
    return _on_kernels("published", rows, layers, frozen, sizes, compute)


def unrolled(stack: Stack, sizes: TowerSizes) -> Stack:
    """The layers of a tower one by one; with shared blocks, copies whose gradients add up.

    Kernels for whole towers need none.
    """
    times = sizes.depth // len(stack.bias_LD)
    if times == 1:
        return stack
    return Stack(*(each.repeat(times, *[1] * (each.dim() - 1)) for each in stack))


def _gated(
    rows: Sequence[Tensor],
    stacks: Sequence[Stack],
    frozen: Tensor | None,
    sizes: TowerSizes,
    compute: Compute,
) -> list[Tensor]:
    arithmetic = Arithmetic(
        sizes=sizes,
        precision=compute.precision,
        gradient_scale=default_gradient_scale(rows, compute.precision),
    )

    def walk(
        x_BD: Tensor, h_BD: Tensor, c_BD: Tensor, stack: Stack, times: int
    ) -> tuple[Tensor, Tensor]:
        layers = [Layer(*each) for each in zip(*(p.unbind(0) for p in stack), strict=True)]
        for _ in range(times):
            normal = functional.layer_norm(
                torch.cat([x_BD, h_BD], dim=-1), (2 * x_BD.shape[-1],), eps=EPSILON
            )
            halves = normal.chunk(2, dim=-1)
            of_x, of_h, input_of_x, input_of_h = (
                arithmetic.product(_affine(halves[index % 2], layer), layer.weight_DD, layer.bias_D)
                for index, layer in enumerate(layers)
            )
            keep_BD = torch.sigmoid(of_x + of_h + 1.0)
            c_BD = torch.lerp(torch.tanh(input_of_x + input_of_h), c_BD, keep_BD)
            h_BD = h_BD + torch.tanh(c_BD)
        return h_BD, c_BD

    def through(x_BD: Tensor, stack: Stack) -> Tensor:
        h_BD = c_BD = torch.zeros_like(x_BD)
        times, at_once = sizes.depth // BLOCK, compute.recompute // BLOCK
        if not at_once:
            return walk(x_BD, h_BD, c_BD, stack, times)[0]
        for start in range(0, times, at_once):
            h_BD, c_BD = checkpoint(
                walk,
                *(x_BD, h_BD, c_BD, stack, min(at_once, times - start)),
                use_reentrant=False,
                preserve_rng_state=False,
            )
        return h_BD

    return [through(x_BD, stack) for x_BD, stack in _groups(rows, stacks, frozen)]


def _layer_norm(x_BD: Tensor, layer: Layer) -> Tensor:
    gain_D, shift_D = layer.ln_weight_D, layer.ln_bias_D
    return functional.layer_norm(x_BD, gain_D.shape, gain_D, shift_D, EPSILON)


def _affine(x_BD: Tensor, layer: Layer) -> Tensor:
    return x_BD * layer.ln_weight_D + layer.ln_bias_D


def _embed_norm(x_BI: Tensor, first: Layer, sizes: TowerSizes, compute: Compute) -> Tensor:
    return norm_act(
        functional.linear(x_BI, first.weight_DD, first.bias_D),
        first.ln_weight_D,
        first.ln_bias_D,
        activation=sizes.activation,
        implementation=compute.of_layers,
    )


def _embed_affine(x_BI: Tensor, first: Layer, sizes: TowerSizes, _: Compute) -> Tensor:
    x_BD = functional.linear(x_BI, first.weight_DD, first.bias_D)
    return ACTIVATIONS[sizes.activation](_affine(x_BD, first))


def _embed_linear(x_BI: Tensor, first: Layer, _: TowerSizes, __: Compute) -> Tensor:
    return functional.linear(x_BI, first.weight_DD, first.bias_D)


def _embed_normalised(x_BI: Tensor, first: Layer, _: TowerSizes, __: Compute) -> Tensor:
    return _layer_norm(functional.linear(x_BI, first.weight_DD, first.bias_D), first)


def _embed_on_sphere(x_BI: Tensor, first: Layer, sizes: TowerSizes, _: Compute) -> Tensor:
    x_BJ = functional.normalize(functional.pad(x_BI, (0, 1), value=CONSTANT_INPUT), dim=-1)
    weight_DJ = torch.cat([first.weight_DD, first.bias_D[:, None]], dim=-1)
    unit_DJ = functional.normalize(weight_DJ, dim=-1) * math.sqrt(weight_DJ.shape[-1])
    x_BD = _affine(functional.linear(x_BJ, unit_DJ), first)
    return functional.normalize(ACTIVATIONS[sizes.activation](x_BD), dim=-1)


def _without_skip(x_BD: Tensor, layers: Sequence[Layer], arithmetic: Arithmetic) -> Tensor:
    for layer in layers:
        x_BD = arithmetic.product(x_BD, layer.weight_DD, layer.bias_D)
        x_BD = arithmetic.act(_layer_norm(x_BD, layer))
    return x_BD


def _without_norm(x_BD: Tensor, layers: Sequence[Layer], arithmetic: Arithmetic) -> Tensor:
    inner_BD = x_BD
    for layer in layers:
        inner_BD = arithmetic.product(inner_BD, layer.weight_DD, layer.bias_D)
        inner_BD = arithmetic.act(_affine(inner_BD, layer))
    return torch.add(x_BD, inner_BD, alpha=arithmetic.sizes.branch_scale)


def _on_sphere(x_BD: Tensor, layers: Sequence[Layer], arithmetic: Arithmetic) -> Tensor:
    root = math.sqrt(x_BD.shape[-1])
    inner_BD = x_BD
    for layer in layers:
        unit_DD = functional.normalize(layer.weight_DD, dim=-1)
        gain_D = root * layer.ln_weight_D
        inner_BD = arithmetic.product(inner_BD, unit_DD, torch.zeros_like(layer.bias_D))
        inner_BD = arithmetic.act(inner_BD * gain_D + layer.bias_D)
        inner_BD = functional.normalize(inner_BD, dim=-1)
    moved_D = torch.stack([layer.ln_bias_D for layer in layers]).mean(0)
    alpha_D = (1 + root * moved_D) / (arithmetic.sizes.depth // BLOCK + 1)
    return functional.normalize(x_BD + alpha_D * (inner_BD - x_BD), dim=-1)


def _finish_nothing(x_BD: Tensor, _: Layer) -> Tensor:
    return x_BD


def _finish_on_sphere(x_BD: Tensor, _: Layer) -> Tensor:
    return x_BD * math.sqrt(x_BD.shape[-1])


BLOCKS: dict[str, Block] = {
    "published": Block(
        embed=_embed_norm,
        inner=partial(_on_kernels, "published"),
        finish=_finish_nothing,
        has_sum=True,
        has_kernels=True,
        has_cpu_kernels=True,
    ),
    "no_skip": Block(
        embed=_embed_norm,
        inner=partial(_in_plain_torch, _without_skip),
        finish=_finish_nothing,
        has_sum=False,
    ),
    "no_norm": Block(
        embed=_embed_affine,
        inner=partial(_in_plain_torch, _without_norm),
        finish=_finish_nothing,
        has_sum=True,
    ),
    "hyperspherical": Block(
        embed=_embed_on_sphere,
        inner=partial(_in_plain_torch, _on_sphere),
        finish=_finish_on_sphere,
        has_sum=False,
    ),
    "pre_norm": Block(
        embed=_embed_linear,
        inner=partial(_on_kernels, "pre_norm"),
        finish=_layer_norm,
        has_sum=True,
        has_kernels=True,
        has_cpu_kernels=True,
    ),
    "shared": Block(
        embed=_embed_norm,
        inner=_shared,
        finish=_finish_nothing,
        has_sum=True,
        has_kernels=True,
    ),
    "gated": Block(
        embed=_embed_normalised,
        inner=_gated,
        finish=_finish_nothing,
        has_sum=False,
        has_activation=False,
    ),
}
