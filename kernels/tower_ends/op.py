"""First and last layers of one or two towers on Triton kernels, as two ops with gradients.

R rows, I inputs, D width, O outputs, T towers.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from torch_crl.kernels.norm_act.reference import EPSILON
from torch_crl.kernels.tower.passes import SUMMED, Tile, programs
from torch_crl.kernels.tower_ends.kernel import (
    embed_bwd_kernel,
    embed_fwd_kernel,
    embed_gradients_kernel,
    head_bwd_kernel,
    head_fwd_kernel,
)

_ROWS = 16
"""Of one program; a tensor core needs at least 16."""
_TILE = Tile(_ROWS, 8, 1)
_INPUTS = 32
"""Inputs of the first layer that are loaded together."""
_GRADIENT = {"BN": 32, "BK": 32, "BR": 64}
"""Tile of a weight's gradient, and rows that it loads together; four warps are enough."""


class Groups(NamedTuple):
    """Rows of one tensor: those of one or two towers, then those frozen in the first tower."""

    live: list[int]
    frozen: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """As the kernels take them."""
        return self.live[0], sum(self.live[1:]), self.frozen

    @property
    def programs(self) -> int:
        """Programs that take the rows."""
        return programs(self.sizes, _TILE)

    def of_each(self, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The tensors of both towers and of the frozen rows; of which there is none, any other."""
        second = tensors[1] if len(self.live) > 1 else tensors[0]
        return tensors[0], second, tensors[-1] if self.frozen else tensors[0]


def _groups(rows: Sequence[int], towers: int) -> Groups:
    return Groups(list(rows[:towers]), sum(rows[towers:]))


@torch.library.custom_op("torch_crl::embed", mutates_args=())
def embed(
    inputs: list[Tensor], first: list[Tensor], block: str, activation: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y [R, D] of the rows of all inputs; xhat [R, D] and 1 / std [R] if they are to be kept.

    There are four parameters for each tower, and one more input if some rows are frozen. With the
    block `pre_norm` the layer is linear and nothing is kept.
    """
    towers, is_linear = len(first) // 4, block == "pre_norm"
    keep = keep and not is_linear
    groups = _groups([len(x) for x in inputs], towers)
    rows, width = sum(groups.sizes), len(first[1])
    y = inputs[0].new_empty(rows, width)
    xhat = torch.empty_like(y) if keep else y.new_empty(0)
    rstd = y.new_empty(rows if keep else 0)
    x0, x1, frozen = groups.of_each(inputs)
    with torch.cuda.device_of(y):
        embed_fwd_kernel[(groups.programs,)](
            x0, x1, frozen, *first[:4], *first[-4:],
            y, xhat, rstd,
            *groups.sizes, x0.shape[1], x1.shape[1],
            LINEAR=is_linear, SAVE=keep, RELU=activation == "relu", EPS=EPSILON,
            D=width, BM=_ROWS, BK=_INPUTS, num_warps=_TILE.warps,
        )  # fmt: skip
    return y, xhat, rstd


@torch.library.custom_op("torch_crl::embed_backward", mutates_args=())
def embed_backward(
    dy: Tensor,
    inputs: list[Tensor],
    first: list[Tensor],
    xhat: Tensor,
    rstd: Tensor,
    block: str,
    activation: str,
    trained: bool,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """dh [R, D] behind the matmul, and dW and the sums [T, 3, D] of each tower.

    The sums are the gradients of bias, LayerNorm weight and bias. Without training they and dW are
    left as they are. With the block `pre_norm` dh is empty, since it is dy, and only the sums of
    the biases are there.
    """
    towers, width, is_linear = len(first) // 4, dy.shape[1], block == "pre_norm"
    groups = _groups([len(x) for x in inputs], towers)
    first_programs, second_programs = (programs([count], _TILE) for count in groups.sizes[:2])
    dh = dy.new_empty(0) if is_linear else torch.empty_like(dy)
    partial = dy.new_empty(first_programs + second_programs, 3, width)
    dweights = [torch.empty_like(weight) for weight in first[::4]]
    sums = dy.new_empty(towers, 3, width)
    x0, x1, _ = groups.of_each(inputs)
    with torch.cuda.device_of(dy):
        if not is_linear:
            embed_bwd_kernel[(groups.programs,)](
                dy, xhat, rstd, *first[2:4], *first[-2:],
                dh, partial,
                *groups.sizes,
                RELU=activation == "relu", D=width, BM=_ROWS, num_warps=_TILE.warps,
            )  # fmt: skip
        if trained:
            columns = [triton.cdiv(x.shape[1], _GRADIENT["BK"]) for x in (x0, x1)[:towers]]
            tiles = sum(columns) * (width // _GRADIENT["BN"])
            embed_gradients_kernel[(tiles + (0 if is_linear else 3 * towers),)](
                dy if is_linear else dh, x0, x1, partial,
                dweights[0], dweights[-1], sums,
                *groups.sizes[:2], x0.shape[1], x1.shape[1] if towers > 1 else 0,
                first_programs, second_programs,
                LINEAR=is_linear, D=width, **_GRADIENT, BP=SUMMED, num_warps=4,
            )  # fmt: skip
    return dh, dweights, sums


@embed.register_fake
def _(
    inputs: list[Tensor], first: list[Tensor], block: str, _activation: str, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    keep = keep and block != "pre_norm"
    y = inputs[0].new_empty(sum(x.shape[0] for x in inputs), first[1].shape[0])
    return y, torch.empty_like(y) if keep else y.new_empty(0), y.new_empty(len(y) if keep else 0)


@embed_backward.register_fake
def _(
    dy: Tensor,
    _inputs: list[Tensor],
    first: list[Tensor],
    _xhat: Tensor,
    _rstd: Tensor,
    block: str,
    *_: Any,
) -> tuple[Tensor, list[Tensor], Tensor]:
    dh = dy.new_empty(0) if block == "pre_norm" else torch.empty_like(dy)
    dweights = [torch.empty_like(weight) for weight in first[::4]]
    return dh, dweights, dy.new_empty(len(first) // 4, 3, dy.shape[1])


def _keep_embed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    rows, first, ctx.block, ctx.activation, _ = inputs
    ctx.counts = len(rows), len(first)
    ctx.wanted = [x.requires_grad for x in rows]
    ctx.trained = any(parameter.requires_grad for parameter in first)
    ctx.save_for_backward(*rows, *first, *output[1:])
    ctx.set_materialize_grads(False)


def _embed_gradient(ctx: Any, dy: Tensor, *_: object) -> tuple[object, ...]:
    num_inputs, num_first = ctx.counts
    saved = list(ctx.saved_tensors)
    inputs, first = saved[:num_inputs], saved[num_inputs : num_inputs + num_first]
    dy = dy.contiguous()
    dh, dweights, sums = embed_backward(
        dy, inputs, first, *saved[-2:], ctx.block, ctx.activation, ctx.trained
    )
    is_linear = ctx.block == "pre_norm"
    dh = dy if is_linear else dh
    weights = first[::4]
    # Frozen rows pass through the first tower.
    of_input = [*weights, weights[0]]
    parts = zip(ctx.wanted, dh.split([len(x) for x in inputs]), of_input, strict=False)
    dinputs = [dh_part @ weight if wanted else None for wanted, dh_part, weight in parts]
    dfirst: list[Tensor | None] = [None] * num_first
    if ctx.trained:
        dfirst = [
            gradient
            for dweight, of_vectors in zip(dweights, sums, strict=True)
            # A linear layer leaves its LayerNorm to the last layer.
            for gradient in (dweight, *((of_vectors[0], None, None) if is_linear else of_vectors))
        ]
    return dinputs, dfirst, None, None, None


embed.register_autograd(_embed_gradient, setup_context=_keep_embed)


@torch.library.custom_op("torch_crl::head", mutates_args=())
def head(
    x: Tensor, last: list[Tensor], norm: list[Tensor], rows: list[int]
) -> tuple[list[Tensor], Tensor]:
    """The outputs [rows, O] of each group, and mean and 1 / std [2, R] of LayerNorms before.

    There are two parameters for each tower, and two of its LayerNorm; `norm` is empty, as are the
    statistics, if there is none.
    """
    towers = len(last) // 2
    groups = _groups(rows, towers)
    of_tower = [len(bias) for bias in last[1::2]]
    outputs = [
        x.new_empty(count, size)
        for count, size in zip(rows, [*of_tower, of_tower[0]], strict=False)
    ]
    statistics = x.new_empty(2, len(x) if norm else 0)
    block, vectors = _outputs_together(of_tower), norm or [x, x]
    with torch.cuda.device_of(x):
        head_fwd_kernel[(groups.programs, triton.cdiv(max(of_tower), block))](
            x, *last[:2], *last[-2:], *vectors[:2], *vectors[-2:],
            *groups.of_each(outputs), *statistics,
            *groups.sizes, of_tower[0], of_tower[-1],
            NORM=bool(norm), EPS=EPSILON,
            D=x.shape[1], BM=_ROWS, BO=block, BK=64, num_warps=_TILE.warps,
        )  # fmt: skip
    return outputs, statistics


@torch.library.custom_op("torch_crl::head_backward", mutates_args=())
def head_backward(
    upstream: list[Tensor],
    x: Tensor,
    last: list[Tensor],
    norm: list[Tensor],
    statistics: Tensor,
    trained: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """dx [R, D], dW [O, D] and db [O] of each tower, and of its LayerNorm, if any, [T, 2, D].

    All but the first are left as they are without training.
    """
    towers, width = len(last) // 2, x.shape[1]
    groups = _groups([len(dy) for dy in upstream], towers)
    dx = torch.empty_like(x)
    dweights, dbiases = ([torch.empty_like(parameter) for parameter in last[k::2]] for k in (0, 1))
    dnorm, vectors = x.new_empty(towers if norm else 0, 2, width), norm or [x, x]
    of_tower = [len(bias) for bias in last[1::2]]
    columns = width // _GRADIENT["BK"]
    tiles = sum(triton.cdiv(size, _GRADIENT["BN"]) for size in of_tower) + len(dnorm)
    with torch.cuda.device_of(x):
        head_bwd_kernel[(groups.programs + (columns * tiles if trained else 0),)](
            *groups.of_each(upstream), x, last[0], last[-2],
            *vectors[:2], *vectors[-2:], *statistics,
            dx, dweights[0], dbiases[0], dweights[-1], dbiases[-1], dnorm,
            *groups.sizes, of_tower[0], sum(of_tower[1:]), groups.programs,
            NORM=bool(norm), D=width, BM=_ROWS, BO=min(32, _outputs_together(of_tower)),
            **_GRADIENT, num_warps=_TILE.warps,
        )  # fmt: skip
    return dx, dweights, dbiases, dnorm


def _outputs_together(sizes: Sequence[int]) -> int:
    padded: int = triton.next_power_of_2(max(sizes))
    return min(64, max(16, padded))


@head.register_fake
def _(
    x: Tensor, last: list[Tensor], norm: list[Tensor], rows: list[int]
) -> tuple[list[Tensor], Tensor]:
    sizes = [bias.shape[0] for bias in last[1::2]]
    outputs = [x.new_empty(n, size) for n, size in zip(rows, [*sizes, sizes[0]], strict=False)]
    return outputs, x.new_empty(2, x.shape[0] if norm else 0)


@head_backward.register_fake
def _(
    _upstream: list[Tensor], x: Tensor, last: list[Tensor], norm: list[Tensor], *_: Any
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    dweights, dbiases = ([torch.empty_like(parameter) for parameter in last[k::2]] for k in (0, 1))
    dnorm = x.new_empty(len(last) // 2 if norm else 0, 2, x.shape[1])
    return torch.empty_like(x), dweights, dbiases, dnorm


def _keep_head(ctx: Any, inputs: tuple[Any, ...], output: tuple[list[Tensor], Tensor]) -> None:
    x, last, norm, _ = inputs
    ctx.trained = any(parameter.requires_grad for parameter in (*last, *norm))
    ctx.num_last, ctx.shapes = len(last), [y.shape for y in output[0]]
    ctx.save_for_backward(x, *last, *norm, output[1])
    # Otherwise autograd would make zeros as the gradient of the statistics.
    ctx.set_materialize_grads(False)


def _head_gradient(ctx: Any, upstream: list[Tensor | None], _: object) -> tuple[object, ...]:
    x, *parameters, statistics = ctx.saved_tensors
    last, norm = parameters[: ctx.num_last], parameters[ctx.num_last :]
    of_outputs = [
        x.new_zeros(shape) if dy is None else dy.contiguous()
        for dy, shape in zip(upstream, ctx.shapes, strict=True)
    ]
    dx, dweights, dbiases, dnorm = head_backward(of_outputs, x, last, norm, statistics, ctx.trained)
    if not ctx.trained:
        return dx, [None] * len(last), [None] * len(norm), None
    dlast = [each for pair in zip(dweights, dbiases, strict=True) for each in pair]
    return dx, dlast, list(dnorm.flatten(0, 1).unbind(0)), None


head.register_autograd(_head_gradient, setup_context=_keep_head)
