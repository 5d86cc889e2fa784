"""Functions of single numbers that several Triton kernels compute."""

import triton
import triton.language as tl


@triton.jit
def softplus(b_x):
    """log(1 + exp(x)), to the last digits wherever x is."""
    # log(1 + e) with e = exp(-|x|) in (0, 1]; the quotient corrects the rounding of 1 + e.
    b_e = tl.exp(-tl.abs(b_x))
    b_u = 1.0 + b_e
    b_exact = b_u == 1.0
    b_log1p = tl.where(b_exact, b_e, tl.log(b_u) * (b_e / tl.where(b_exact, 1.0, b_u - 1.0)))
    return tl.maximum(b_x, 0.0) + b_log1p


@triton.jit
def sigmoid(b_x):
    """1 / (1 + exp(-x)), without an overflow."""
    b_e = tl.exp(-tl.abs(b_x))
    return tl.where(b_x >= 0.0, 1.0, b_e) / (1.0 + b_e)
