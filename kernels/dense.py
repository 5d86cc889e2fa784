"""Matmuls whose inputs are rounded to a chosen precision and whose sums are in fp32.

B rows, I inputs, O outputs.
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
    """left @ right in fp32 from operands rounded to `precision`, into `out`, or added to it."""
    left, right, options = _operands(left, right, precision)
    with _tf32(precision == "tf32" and left.is_cuda):
        if add:
            assert out is not None
            return torch.addmm(out, left, right, out=out, **options)
        return torch.mm(left, right, out=out, **options)


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
