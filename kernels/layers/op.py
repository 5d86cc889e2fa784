"""The inner layers of a tower with one matmul and one Triton kernel each, as one function.

R rows, D width, L layers, C chunks of layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from torch_crl.kernels.dense import PRECISIONS, product, rounded, weight_gradients
from torch_crl.kernels.launch import require_device
from torch_crl.kernels.layers import pre_norm, published
from torch_crl.kernels.layers.common import Kept, Options, programs_of
from torch_crl.kernels.tower.reference import BLOCK, Stack

_BLOCKS = {"published": published, "pre_norm": pre_norm}


def _empty_kept(x_RD: Tensor, layers: int, dtype: torch.dtype, block: str) -> Kept:
    rows, width = x_RD.shape
    inputs_LRD, values_LRD = (x_RD.new_empty(layers, rows, width, dtype=dtype) for _ in range(2))
    statistics = (layers, rows) if block == "published" else (layers, 2, rows)
    return Kept(inputs_LRD, values_LRD, x_RD.new_empty(statistics))


def _forward(x_RD: Tensor, stack: Stack, options: Options, kept: Kept | None) -> Tensor:
    """The residual sum [R, D] behind the layers; fills `kept`."""
    weight_LDD, layers = stack.weight_LDD, len(stack.weight_LDD)
    # Without anything to keep, two inputs take turns.
    inputs = kept.inputs_LRD if kept else x_RD.new_empty(2, *x_RD.shape, dtype=weight_LDD.dtype)
    h_RD, y_RD = torch.empty_like(x_RD), torch.empty_like(x_RD)
    for layer in range(layers + 1):
        input_RD = inputs[layer % len(inputs)]
        _BLOCKS[options.block].between_matmuls(
            h_RD if layer else x_RD,
            stack,
            layer,
            options,
            block_RD=x_RD if layer <= BLOCK else y_RD,
            next_RD=input_RD,
            sum_RD=y_RD,
            kept=kept,
        )
        if layer < layers:
            product(input_RD, weight_LDD[layer].T, options.precision, out=h_RD)
    return y_RD


def _backward(
    dy_RD: Tensor, stack: Stack, options: Options, kept: Kept
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradient [R, D] of the input, those of the matmuls [L, R, D], and sums [3, L, P, D].

    The first two are multiplied by the gradient scale, as `dy_RD` is, which is changed.
    """
    weight_LDD, layers, (rows, width) = stack.weight_LDD, len(stack.weight_LDD), dy_RD.shape
    dh_LRD = torch.empty_like(kept.inputs_LRD)
    partial = dy_RD.new_empty(3, layers, programs_of(rows, options.live, width), width)
    dsum_RD, dinner_RD = dy_RD, torch.empty_like(dy_RD)
    for layer in reversed(range(-1, layers)):
        dh_RD = dh_LRD[layer]
        _BLOCKS[options.block].behind_matmul(
            dinner_RD,
            stack,
            layer,
            options,
            kept=kept,
            dsum_RD=dsum_RD,
            dh_RD=dh_RD,
            partial=partial,
        )
        if layer >= 0:
            # The residual sum goes into the first matmul of a published block as it is.
            adds = options.block == "published" and layer % BLOCK == 0
            out = dsum_RD if adds else dinner_RD
            product(dh_RD, weight_LDD[layer], options.precision, out=out, add=adds)
    return dsum_RD, dh_LRD, partial


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RD: Tensor, options: Options, keep: bool, *parameters: Tensor
    ) -> Tensor:
        weight_LDD = parameters[0].to(PRECISIONS[options.precision])
        if options.precision == "tf32":
            weight_LDD = rounded(weight_LDD, "tf32")
        stack, layers = Stack(weight_LDD, *parameters[1:]), len(weight_LDD)
        step = options.recompute or layers
        ctx.chunks = [slice(start, min(start + step, layers)) for start in range(0, layers, step)]
        kept: list[Kept] = []
        inputs = []
        for chunk in ctx.chunks:
            inputs.append(x_RD)
            if keep and not options.recompute:
                kept.append(_empty_kept(x_RD, layers, weight_LDD.dtype, options.block))
            x_RD = _forward(x_RD, _part(stack, chunk), options, kept[-1] if kept else None)
        ctx.options, ctx.trained = options, any(ctx.needs_input_grad[3:])
        saved = kept[0] if kept else inputs
        ctx.save_for_backward(*stack, *saved)
        return x_RD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy_RD: Tensor) -> tuple[Tensor | None, ...]:
        stack, saved, options = Stack(*ctx.saved_tensors[:4]), ctx.saved_tensors[4:], ctx.options
        if not ctx.trained:
            options = options._replace(live=0)
        live = options.live
        dweight_LDD = dy_RD.new_empty(stack.weight_LDD.shape) if live else None
        sums = []
        dx_RD = dy_RD.contiguous() * options.gradient_scale
        for index, chunk in reversed(list(enumerate(ctx.chunks))):
            part = _part(stack, chunk)
            if options.recompute:
                weight_LDD = part.weight_LDD
                kept = _empty_kept(dx_RD, len(weight_LDD), weight_LDD.dtype, options.block)
                _forward(saved[index], part, options, kept)
            else:
                kept = Kept(*saved)
            dx_RD, dh_LRD, partial = _backward(dx_RD, part, options, kept)
            if dweight_LDD is not None:
                weight_gradients(
                    dh_LRD[:, :live],
                    kept.inputs_LRD[:, :live],
                    options.precision,
                    scale=options.gradient_scale,
                    out=dweight_LDD[chunk],
                )
                sums.append(partial.sum(2))
        dx_RD = dx_RD / options.gradient_scale
        if not live:
            return dx_RD, None, None, *[None] * 4
        of_vectors = sums[0] if len(sums) == 1 else torch.cat(sums[::-1], dim=1)
        return dx_RD, None, None, dweight_LDD, *of_vectors.unbind(0)


def _part(stack: Stack, chunk: slice) -> Stack:
    return Stack(*(parameter[chunk] for parameter in stack))


def tower(
    rows: Sequence[Tensor],
    stacks: Sequence[Stack],
    *,
    frozen: Tensor | None,
    block: str,
    activation: str,
    branch_scale: float,
    precision: str,
    gradient_scale: float,
    recompute: int,
) -> list[Tensor]:
    """See `torch_crl.kernels.tower.tower`; fp32 tensors on a CUDA device."""
    require_device(rows[0], "tower")
    outputs = []
    for index, (x_RD, stack) in enumerate(zip(rows, stacks, strict=True)):
        live = len(x_RD)
        if index == 0 and frozen is not None:
            x_RD = torch.cat([x_RD, frozen])
        parameters = [parameter.contiguous() for parameter in stack]
        asked = any(tensor.requires_grad for tensor in (x_RD, *parameters))
        relu = activation == "relu"
        options = Options(live, block, relu, branch_scale, precision, recompute, gradient_scale)
        apply: Callable[..., Tensor] = _Layers.apply
        keep = torch.is_grad_enabled() and asked
        outputs.append(apply(x_RD.contiguous(), options, keep, *parameters))
    if frozen is None:
        return outputs
    ours, of_frozen = outputs[0].split([len(rows[0]), len(frozen)])
    return [ours, *outputs[1:], of_frozen]
