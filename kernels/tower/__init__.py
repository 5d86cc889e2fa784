"""The residual layers of one or two towers: [R, D] to [R, D] through L dense layers."""

import math
from collections.abc import Sequence

from torch import Tensor

from torch_crl.kernels.dense import PRECISIONS
from torch_crl.kernels.tower import reference
from torch_crl.kernels.tower.reference import BLOCK as BLOCK
from torch_crl.kernels.tower.reference import Arithmetic
from torch_crl.kernels.tower.reference import Stack as Stack

IMPLEMENTATIONS = ("reference", "norm_act", "persistent")
PERSISTENT_WIDTHS = (128, 256)
PERSISTENT_PRECISIONS = ("fp16", "bf16")


def tower(
    x_RD: Tensor,
    stacks: Sequence[Stack],
    *,
    live: Sequence[int],
    frozen: int = 0,
    activation: str = "swish",
    branch_scale: float = 1.0,
    precision: str = "fp32",
    implementation: str = "reference",
    gradient_scale: float | None = None,
    recompute: int = 0,
) -> Tensor:
    """x + branch_scale * f(x) for every block f of four times dense - LayerNorm - activation.

    Source: arXiv 2503.14858, where the scale is 1.

    Several towers of equal sizes share a call, and rows may pass through the first of them as if
    its parameters were constants:

        rows of x   live[0]       live[1]       frozen
        stack       stacks[0]     stacks[1]     stacks[0], gradient to x only

    Args:
        x_RD: fp32 [R, D]; R is the sum of `live` and `frozen`. The carried sums stay fp32.
        stacks: one or two, with the same number of layers, a multiple of four.
        live: rows for each stack.
        frozen: further rows of the first stack.
        activation: `swish` or `relu`.
        branch_scale: of every block's output before it is added to the carried sums.
        precision: of the operands of every matrix product, `fp32`, `tf32`, `fp16` or `bf16`.
        implementation: `reference` is plain torch; `norm_act` has a matrix product and one Triton
            kernel a layer, any width; `persistent` one kernel for all layers, widths 128 and 256,
            fp16 and bf16.
        gradient_scale: a power of two that gradients carry while they are rounded; by default the
            rows rounded up, which suits a loss that is a mean over rows.
        recompute: layers between two kept inputs, a multiple of four; the rest is computed again
            in the backward. 0 keeps everything.

    Raises:
        ValueError: what does not fit together, or an implementation that cannot run here.
    """
    scale = gradient_scale or 2.0 ** math.ceil(math.log2(max(sum(live), 1)))
    problem = _problem(x_RD, stacks, live, frozen, precision, implementation, recompute)
    if problem:
        raise ValueError(f"tower: {problem}")
    if implementation == "persistent":
        # Here, so that Triton is imported only where its kernels are asked for.
        from torch_crl.kernels.tower import op

        return op.tower(
            x_RD,
            stacks,
            live=live,
            frozen=frozen,
            activation=activation,
            branch_scale=branch_scale,
            precision=precision,
            gradient_scale=scale,
            recompute=recompute,
        )
    fused = "triton" if implementation == "norm_act" else "reference"
    return reference.tower(
        x_RD,
        stacks,
        live=live,
        frozen=frozen,
        arithmetic=Arithmetic(activation, precision, scale, branch_scale, fused),
        recompute=recompute,
    )


def _problem(
    x_RD: Tensor,
    stacks: Sequence[Stack],
    live: Sequence[int],
    frozen: int,
    precision: str,
    implementation: str,
    recompute: int,
) -> str | None:
    layers, width = stacks[0].weight_LDD.shape[:2]
    if implementation not in IMPLEMENTATIONS:
        return f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}"
    if precision not in PRECISIONS:
        return f"precision must be one of {tuple(PRECISIONS)}, got {precision!r}"
    if len(stacks) not in (1, 2) or len(live) != len(stacks):
        return f"one or two stacks, each with a number of rows; got {len(stacks)} and {len(live)}"
    if any(stack.weight_LDD.shape != (layers, width, width) for stack in stacks):
        return f"stacks of equal sizes, got {[tuple(s.weight_LDD.shape) for s in stacks]}"
    if layers % BLOCK or recompute % BLOCK:
        return f"layers and recompute are multiples of {BLOCK}, got {layers} and {recompute}"
    if x_RD.shape != (sum(live) + frozen, width):
        return f"x must be [{sum(live) + frozen}, {width}], got {tuple(x_RD.shape)}"
    possible = width in PERSISTENT_WIDTHS and precision in PERSISTENT_PRECISIONS
    if implementation == "persistent" and not possible:
        return (
            f"the persistent kernel is for widths {PERSISTENT_WIDTHS} and precisions "
            f"{PERSISTENT_PRECISIONS}, got {width} and {precision!r}; 'norm_act' takes any"
        )
    return None
