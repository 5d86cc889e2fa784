"""Matmuls whose inputs are rounded to a chosen precision and whose sums are in fp32.

B rows, I inputs, O outputs, E experts, K blocks of R rows, M rows of one expert.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

PRECISIONS = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


def rounded(x: Tensor, precision: str) -> Tensor:
    """`x` rounded to the precision of a matmul's inputs, in its own dtype; fp32 changes nothing."""
    if precision == "fp32":
        return x
    if precision == "tf32":
        # To ten bits of mantissa, to nearest, ties away from zero, as CUDA's cvt.rna.tf32 does.
        bits = x.float().view(torch.int32)
        return ((bits + (1 << 12)) & ~((1 << 13) - 1)).view(torch.float32).to(x.dtype)
    return x.to(PRECISIONS[precision]).to(x.dtype)


def dense(
    x_BI: Tensor,
    weight_OI: Tensor,
    bias_O: Tensor,
    *,
    precision: str = "fp32",
    gradient_scale: float = 1.0,
) -> Tensor:
    """x W^T + b in the dtype of x, with x and W rounded to `precision`.

    The backward pass multiplies the gradient by `gradient_scale`, a power of two, before rounding,
    and divides the results of both matmuls by it, so that small gradients do not underflow in fp16.
    The bias and its gradient are not rounded.
    """
    if precision == "fp32":
        return functional.linear(x_BI, weight_OI, bias_O)
    apply: Callable[..., Tensor] = _RoundedDense.apply
    return apply(x_BI, weight_OI, bias_O, precision, gradient_scale)


class _RoundedDense(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BI: Tensor,
        weight_OI: Tensor,
        bias_O: Tensor,
        precision: str,
        gradient_scale: float,
    ) -> Tensor:
        x_BI, weight_OI = _operand(x_BI, precision), _operand(weight_OI, precision)
        ctx.save_for_backward(x_BI, weight_OI)
        ctx.precision, ctx.gradient_scale = precision, gradient_scale
        return product(x_BI, weight_OI.T, precision).add_(bias_O)

    @staticmethod
    def backward(ctx: Any, gradient_BO: Tensor) -> tuple[Tensor | None, ...]:
        x_BI, weight_OI = ctx.saved_tensors
        scale, precision = ctx.gradient_scale, ctx.precision
        dy_BO = _operand(gradient_BO * scale, precision)
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        return (
            product(dy_BO, weight_OI, precision).div_(scale) if need_x else None,
            product(dy_BO.T, x_BI, precision).div_(scale) if need_weight else None,
            gradient_BO.sum(0) if need_bias else None,
            None,
            None,
        )


def expert_dense(
    x_KRI: Tensor,
    weight_EOI: Tensor,
    bias_EO: Tensor,
    expert_K: Tensor,
    *,
    precision: str = "fp32",
    gradient_scale: float = 1.0,
) -> Tensor:
    """`dense` for blocks of rows, each with the weight and the bias of its expert: [K, R, O].

    The experts of the blocks must ascend. No pass keeps weights that were gathered for the blocks.
    """
    apply: Callable[..., Tensor] = _ExpertDense.apply
    return apply(x_KRI, weight_EOI, bias_EO, expert_K, precision, gradient_scale)


class _ExpertDense(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_KRI: Tensor,
        weight_EOI: Tensor,
        bias_EO: Tensor,
        expert_K: Tensor,
        precision: str,
        gradient_scale: float,
    ) -> Tensor:
        x_KRI, weight_EOI = _operand(x_KRI, precision), _operand(weight_EOI, precision)
        ctx.save_for_backward(x_KRI, weight_EOI, expert_K)
        ctx.precision, ctx.gradient_scale = precision, gradient_scale
        y_KRO = _expert_products(x_KRI, weight_EOI.mT, expert_K, precision)
        return y_KRO.add_(bias_EO.index_select(0, expert_K)[:, None])

    @staticmethod
    def backward(ctx: Any, gradient_KRO: Tensor) -> tuple[Tensor | None, ...]:
        x_KRI, weight_EOI, expert_K = ctx.saved_tensors
        scale, precision, experts = ctx.gradient_scale, ctx.precision, len(weight_EOI)
        dy_KRO = _operand(gradient_KRO * scale if scale != 1.0 else gradient_KRO, precision)
        need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
        dx_KRI = dweight_EOI = dbias_EO = None
        if need_x:
            dx_KRI = _expert_products(dy_KRO, weight_EOI, expert_K, precision)
        if need_weight:
            dweight_EOI = _expert_weights(dy_KRO, x_KRI, expert_K, experts, precision)
        if need_bias:
            dbias_EO = gradient_KRO.new_zeros(experts, gradient_KRO.shape[-1])
            dbias_EO.index_add_(0, expert_K, gradient_KRO.sum(1))
        for gradient in (dx_KRI, dweight_EOI):
            if gradient is not None and scale != 1.0:
                gradient.div_(scale)
        return dx_KRI, dweight_EOI, dbias_EO, None, None, None


def _expert_products(
    left_KRX: Tensor, right_EXY: Tensor, expert_K: Tensor, precision: str
) -> Tensor:
    """The product of each block with the matrix of its expert, [K, R, Y]."""
    if not _is_by_expert(left_KRX):
        return product(left_KRX, right_EXY[expert_K], precision)
    wide = left_KRX.new_empty(*left_KRX.shape[:2], right_EXY.shape[-1])
    for right_XY, (begin, end) in zip(right_EXY, _parts(expert_K, len(right_EXY)), strict=True):
        rows, out = (blocks[begin:end].flatten(0, 1) for blocks in (left_KRX, wide))
        product(rows, right_XY, precision, out=out)
    return wide


def _expert_weights(
    dy_KRO: Tensor, x_KRI: Tensor, expert_K: Tensor, experts: int, precision: str
) -> Tensor:
    """The sum of dy^T x over the blocks of each expert, [E, O, I]."""
    sizes = (experts, dy_KRO.shape[-1], x_KRI.shape[-1])
    if not _is_by_expert(x_KRI):
        of_blocks_KOI = product(dy_KRO.mT, x_KRI, precision)
        return of_blocks_KOI.new_zeros(sizes).index_add_(0, expert_K, of_blocks_KOI)
    sums_EOI = x_KRI.new_empty(sizes)
    for sum_OI, (begin, end) in zip(sums_EOI, _parts(expert_K, experts), strict=True):
        dy_MO, x_MI = (blocks[begin:end].flatten(0, 1) for blocks in (dy_KRO, x_KRI))
        product(dy_MO.T, x_MI, precision, out=sum_OI)
    return sums_EOI


def _is_by_expert(x: Tensor) -> bool:
    """Whether all blocks of an expert are one product: the host must know where they are."""
    return x.is_cpu


def _parts(expert_K: Tensor, experts: int) -> list[tuple[int, int]]:
    """The first block of each expert, and the one after its last."""
    ends = expert_K.bincount(minlength=experts).cumsum(0).tolist()
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _operand(x: Tensor, precision: str) -> Tensor:
    """`x` rounded; on CUDA, a 16-bit precision is also the dtype of the result."""
    if x.is_cuda and precision in ("fp16", "bf16"):
        return x.to(PRECISIONS[precision])
    return rounded(x, precision)


def product(
    left: Tensor,
    right: Tensor,
    precision: str,
    *,
    out: Tensor | None = None,
    add: bool = False,
) -> Tensor:
    """left @ right in fp32 from operands rounded to `precision`, into `out`, or added to it.

    Three axes are products of matrices one by one; these are not added.
    """
    left, right, options = _operands(left, right, precision)
    with _tf32(precision == "tf32" and left.is_cuda):
        if add:
            assert out is not None
            return torch.addmm(out, left, right, out=out, **options)
        multiply = torch.bmm if left.dim() == 3 else torch.mm
        return multiply(left, right, out=out, **options)


def weight_gradients(
    dy_LBO: Tensor, x_LBI: Tensor, precision: str, *, scale: float, out: Tensor
) -> None:
    """out [L, O, I] = dy^T x / scale: the matmuls of all layers in one call, with fp32 sums."""
    left, right, options = _operands(dy_LBO.mT, x_LBI, precision)
    with _tf32(precision == "tf32" and left.is_cuda):
        torch.baddbmm(out, left, right, beta=0, alpha=1.0 / scale, out=out, **options)


def _operands(left: Tensor, right: Tensor, precision: str) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The operands of a matmul as it takes them, with its options."""
    if left.dtype in (torch.float16, torch.bfloat16):
        if left.is_cuda:
            return left, right, {"out_dtype": torch.float32}
        return left.float(), right.float(), {}
    if precision == "tf32" and not left.is_cuda:
        return rounded(left, precision), rounded(right, precision), {}
    return left, right, {}


@contextmanager
def _tf32(wanted: bool) -> Iterator[None]:
    """Let cuBLAS round the operands of fp32 products to TF32, if wanted."""
    if not wanted:
        yield
        return
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
