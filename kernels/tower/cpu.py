"""A tower from input to output for one CPU core: BLAS products and the loops of `norm_act`.

R rows, I input, D width, L layers, O output.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_crl.kernels.cpu import array, entry, products, require_cpu, room, to_bf16
from torch_crl.kernels.matmul.cpu import load_bf16_products, product
from torch_crl.kernels.norm_act.cpu import (
    backward_pre_norm,
    backward_rows,
    forward_pre_norm,
    forward_rows,
)
from torch_crl.kernels.tower.reference import BLOCK, Parts

BLOCKS = ("published", "shared", "pre_norm")
"""Residual blocks that are compiled; of `shared` the layers are given one by one."""


class Parameters:
    """All parameters of a tower, as tensors and as arrays on the same memory."""

    def __init__(self, parts: Parts) -> None:
        self.tensors = (*parts.first, *parts.stack, *parts.last)
        require_cpu("tower", *self.tensors)
        self.arrays = tuple(map(array, self.tensors))
        self._places = [x.data_ptr() for x in self.tensors]

    def are(self, tensors: Iterable[Tensor]) -> bool:
        """Whether these are the tensors, in the order of `tensors`, where they were at first."""
        same = all(ours is theirs for ours, theirs in zip(self.tensors, tensors, strict=True))
        return same and self._places == [x.data_ptr() for x in self.tensors]


@products
def _norm_of(k, dense):
    """The inner layer whose LayerNorm comes after dense layer k; if there is none, the first's."""
    return k - 1 if dense is None else k


@entry
@products
def forward_tower(
    x, first_weight, first_bias, first_ln_weight, first_ln_bias,
    weight, bias, ln_weight, ln_bias, head_weight, head_bias, relu, scale,
    normed, roots, inner, dense, weight16, inner16, y,
):  # fmt: skip
    """y [R, O]. inner [L + 1, R, D] gets what each layer gives to the next one, normed its
    normalised rows, and roots [L + 1, R] their 1 / std.

    dense is None for blocks `published`. In those of `pre_norm` dense [L + 1, R, D] gets what the
    dense layers give, and at the ends of blocks the sum of all blocks so far.

    weight16 and inner16 get both operands of the inner products in bf16, unless they are None.
    """
    block = inner[0]
    # One call in a loop, the first layer's too, since each call is compiled as if written out.
    for k in range(len(weight) + 1):
        # Decided by the types of arguments, so that other blocks and precisions are not compiled.
        given = normed[k] if dense is None else dense[k]
        before = first_bias
        if k == 0:
            product(x, False, first_weight, True, given)
        else:
            before = bias[k - 1]
            if weight16 is None:
                product(inner[k - 1], False, weight[k - 1], True, given)
            else:
                to_bf16(inner[k - 1], inner16[k - 1])
                to_bf16(weight[k - 1], weight16[k - 1])
                product(inner16[k - 1], False, weight16[k - 1], True, given)
        ends = k > 0 and k % BLOCK == 0
        norm = _norm_of(k, dense)
        gamma, beta = first_ln_weight, first_ln_bias
        if 0 <= norm < len(weight):
            gamma, beta = ln_weight[norm], ln_bias[norm]
        if dense is None:
            forward_rows(given, before, gamma, beta, block, ends, relu, scale, roots[k], inner[k])
            if ends:
                block = inner[k]
        else:
            forward_pre_norm(
                given, before, block, ends, k % BLOCK != 0, relu, scale, gamma, beta,
                normed[k], roots[k], inner[k],
            )  # fmt: skip
            if k % BLOCK == 0:
                block = given
    product(inner[len(weight)], False, head_weight, True, y)
    for i in range(len(y)):
        for j in range(len(head_bias)):
            y[i, j] += head_bias[j]


@entry
@products
def backward_tower(
    dy, live,
    x, first_weight, _first_bias, first_ln_weight, first_ln_bias,
    weight, bias, ln_weight, ln_bias, head_weight, head_bias, relu, scale,
    normed, roots, inner, dense, weight16, inner16,
    dx, dfirst_weight, dfirst_bias, dfirst_ln_weight, dfirst_ln_bias,
    dweight, dbias, dln_weight, dln_bias, dhead_weight, dhead_bias,
):  # fmt: skip
    """Gradients of the input and, from the first `live` rows (none if 0), of the parameters.

    dx [N, C], of any size, gets that of the last C inputs of the last N rows.
    """
    layers, width = bias.shape
    rows = len(x)
    ddense, branch = room(rows, width, dy), room(rows, width, dy)
    upstream, sums = room(rows, width, dy), np.empty((rows, 2), dy.dtype)
    if weight16 is not None:
        gradient16 = room(rows, width, weight16)
    one = scale / scale
    if dense is None:
        product(dy, False, head_weight, False, upstream)
    else:
        product(dy, False, head_weight, False, branch)
        for i in range(rows):
            for j in range(width):
                upstream[i, j] = 0
    if live:
        product(dy[:live], True, inner[layers][:live], False, dhead_weight)
        for j in range(len(head_bias)):
            dhead_bias[j] = 0
        for i in range(live):
            for j in range(len(head_bias)):
                dhead_bias[j] += dy[i, j]
    for k in range(layers, -1, -1):
        # `upstream` is the gradient of what a block begins with, `branch` of a layer within it.
        gamma, beta = first_ln_weight, first_ln_bias
        dbefore, dgamma, dbeta = dfirst_bias, dfirst_ln_weight, dfirst_ln_bias
        norm = _norm_of(k, dense)
        if 0 <= norm < layers:
            gamma, beta = ln_weight[norm], ln_bias[norm]
            dgamma, dbeta = dln_weight[norm], dln_bias[norm]
        if k > 0:
            dbefore = dbias[k - 1]
        ends = k > 0 and k % BLOCK == 0
        if dense is None:
            backward_rows(
                upstream if k % BLOCK == 0 else branch, normed[k], gamma, beta, inner[k],
                ends, relu, scale if ends else one, roots[k], live, sums,
                ddense, dbefore, dgamma, dbeta,
            )  # fmt: skip
        else:
            backward_pre_norm(
                branch, normed[k], dense[k], k % BLOCK != 0, relu, scale if ends else one,
                gamma, roots[k], live, sums, upstream, ddense, dbefore, dgamma, dbeta,
            )  # fmt: skip
        if k == 0:
            if live:
                product(ddense[:live], True, x[:live], False, dfirst_weight)
        else:
            if weight16 is None:
                if live:
                    product(ddense[:live], True, inner[k - 1][:live], False, dweight[k - 1])
                product(ddense, False, weight[k - 1], False, branch)
            else:
                to_bf16(ddense, gradient16)
                if live:
                    product(gradient16[:live], True, inner16[k - 1][:live], False, dweight[k - 1])
                product(gradient16, False, weight16[k - 1], False, branch)
            if dense is None and k % BLOCK == 1:
                for i in range(rows):
                    for j in range(width):
                        upstream[i, j] += branch[i, j]
    if dx.size:
        (count, inputs), first = dx.shape, first_weight.shape[1] - dx.shape[1]
        of_inputs = room(width, inputs, dx)
        for i in range(width):
            for j in range(inputs):
                of_inputs[i, j] = first_weight[i, first + j]
        product(ddense[rows - count :], False, of_inputs, False, dx)


_ROWS_AT_ONCE = 1024


class Space:
    """What the forward pass of L layers keeps of R rows. Its memory is used again once it is gone.

    Fresh memory of this size would cost as much time as the layers: its pages are made one by one.
    Of all sizes, the last `_kept_sizes` are kept, which is more than a run needs.
    """

    # A part of the class, since Python has forgotten the names of a module when it ends.
    _kept_sizes: ClassVar[int] = 8
    _unused: ClassVar[dict[tuple[Any, ...], list[tuple[Any, ...]]]] = {}

    def __init__(
        self, layers: int, rows: int, width: int, *, dtype: torch.dtype, precision: str, block: str
    ) -> None:
        self._key = layers, rows, width, dtype, precision, block
        unused = self._unused.get(self._key)
        self.arrays = unused.pop() if unused else self._new()

    def _new(self) -> tuple[Any, ...]:
        layers, rows, width, dtype, precision, block = self._key
        of_layers = layers + 1, rows, width
        normed, inner = torch.empty(2, *of_layers, dtype=dtype)
        roots = torch.empty(layers + 1, rows, dtype=dtype)
        dense = array(torch.empty(of_layers, dtype=dtype)) if block == "pre_norm" else None
        arrays = *map(array, (normed, roots, inner)), dense
        if precision != "bf16":
            return *arrays, None, None
        load_bf16_products()
        halves = [(layers, width, width), (layers, rows, width)]
        return *arrays, *(array(torch.empty(shape, dtype=torch.uint16)) for shape in halves)

    def __del__(self) -> None:
        # The size that was used last stands at the end.
        self._unused[self._key] = [*self._unused.pop(self._key, ()), self.arrays]
        while len(self._unused) > self._kept_sizes:
            del self._unused[next(iter(self._unused))]


class _WholeTower(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_RI: Tensor,
        parameters: Parameters,
        live: int,
        relu: bool,
        scale: float,
        precision: str,
        block: str,
        *tensors: Tensor,
    ) -> Tensor:
        x, given = array(x_RI), parameters.arrays
        layers, width = given[5].shape
        y_RO = x_RI.new_empty(len(x), len(given[-1]))
        space = Space(layers, len(x), width, dtype=x_RI.dtype, precision=precision, block=block)
        scale = x.dtype.type(scale)
        forward_tower(x, *given, relu, scale, *space.arrays, array(y_RO))
        ctx.tensors, ctx.space, ctx.kept = tensors, space, (x, *given, relu, scale)
        # Without parameters to train, no row counts for them.
        ctx.live = live if any(ctx.needs_input_grad[7:]) else 0
        return y_RO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_RO: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [torch.empty_like(parameter) for parameter in ctx.tensors]
        need_dx = ctx.needs_input_grad[0]
        dx = torch.empty(ctx.kept[0].shape if need_dx else (0, 0), dtype=dy_RO.dtype)
        backward_tower(
            *(array(dy_RO.contiguous()), ctx.live, *ctx.kept, *ctx.space.arrays),
            *(array(dx), *map(array, gradients)),
        )
        of_parameters = gradients if ctx.live else [None] * len(gradients)
        return dx if need_dx else None, *[None] * 6, *of_parameters


def whole_tower(
    x_RI: Tensor,
    parameters: Parameters,
    *,
    live: int,
    activation: str,
    branch_scale: float,
    precision: str,
    block: str,
) -> Tensor:
    """First layer, residual blocks and last layer in one call, [R, I] to [R, O].

    Args:
        x_RI: fp32 or fp64 on the CPU, like all parameters.
        live: the parameters get gradients from the first `live` rows only.
        activation, branch_scale: as in `torch_crl.kernels.tower.tower`.
        precision: `bf16` rounds the operands of the inner products, of fp32 tensors only.
        block: one of `BLOCKS`, which `torch_crl.agent.blocks` defines.

    Raises ValueError for tensors of other devices and dtypes, and for other blocks.
    """
    if block not in BLOCKS:
        raise ValueError(f"compiled towers have the blocks {', '.join(BLOCKS)}, got {block!r}")
    require_cpu("tower", x_RI, parameters.tensors[0])
    apply: Callable[..., Tensor] = _WholeTower.apply
    options = parameters, live, activation == "relu", branch_scale, precision, block
    # Without gradients the layers need not be kept for all rows at once.
    parts = [x_RI] if torch.is_grad_enabled() else x_RI.split(_ROWS_AT_ONCE)
    y_RO = [apply(x.contiguous(), *options, *parameters.tensors) for x in parts]
    return y_RO[0] if len(y_RO) == 1 else torch.cat(y_RO)
