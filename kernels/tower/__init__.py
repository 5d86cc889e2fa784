"""The residual blocks of one or two towers: [R, D] to [R, D] through L dense layers."""

import math
from collections.abc import Sequence

from torch import Tensor

from torch_crl.kernels.dense import PRECISIONS
from torch_crl.kernels.norm_act import LARGEST_WIDTH
from torch_crl.kernels.tower import reference
from torch_crl.kernels.tower.reference import BLOCK as BLOCK
from torch_crl.kernels.tower.reference import BLOCKS as BLOCKS
from torch_crl.kernels.tower.reference import Arithmetic
from torch_crl.kernels.tower.reference import Parts as Parts
from torch_crl.kernels.tower.reference import Stack as Stack

IMPLEMENTATIONS = ("reference", "norm_act", "persistent")
# Width to the largest amount of shared memory, in bytes, that a program needs on any GPU.
PERSISTENT_MEMORY = {128: 69_632, 256: 163_840}
PERSISTENT_WIDTHS = tuple(PERSISTENT_MEMORY)
PERSISTENT_PRECISIONS = ("fp16", "bf16")


def tower(
    rows: Sequence[Tensor],
    stacks: Sequence[Stack],
    *,
    frozen: Tensor | None = None,
    block: str = "published",
    activation: str = "swish",
    branch_scale: float = 1.0,
    precision: str = "fp32",
    implementation: str = "reference",
    gradient_scale: float | None = None,
    recompute: int = 0,
) -> list[Tensor]:
    """x + branch_scale * f(x) for every block f of four layers.

    A layer of the block `published` is dense - LayerNorm - activation (arXiv 2503.14858, where the
    scale is 1). In `pre_norm` it is LayerNorm - dense, with an activation between two layers, so
    that the last thing before the sum is linear (after SimBa, arXiv 2410.09754).

    Two towers of equal sizes can share a call, each with its own rows. Further rows may pass
    through the first tower as if its parameters were constants.

    Args:
        rows: fp32 [B, D] for each stack; B may differ. The residual sums stay fp32.
        stacks: parameters of one or two towers with equal numbers of layers, a multiple of four.
        frozen: fp32 [F, D], further rows for the first stack; they get a gradient, but its
            parameters get none from them.
        block: `published` or `pre_norm`.
        activation: `swish` or `relu`.
        branch_scale: factor on every block's output before it is added to the residual sum.
        precision: that of the inputs of every matmul: `fp32`, `tf32`, `fp16` or `bf16`.
        implementation: `reference` is plain torch; `norm_act` runs one matmul and one Triton kernel
            per layer, for widths up to 4096; `persistent` runs one kernel for all layers and rows,
            for widths 128 and 256 in fp16 or bf16.
        gradient_scale: a power of two by which gradients are multiplied before rounding; see
            `default_gradient_scale`.
        recompute: number of layers between two kept inputs, a multiple of four; the rest is
            recomputed in the backward pass. 0 keeps everything.

    Returns:
        [B, D] for each of `rows`, followed by [F, D] if there are frozen rows.

    Raises:
        ValueError: for arguments that do not match, or an implementation that cannot run here.
    """
    problem = _problem(rows, stacks, frozen, block, precision, implementation, recompute)
    if problem:
        raise ValueError(f"tower: {problem}")
    scale = gradient_scale or default_gradient_scale(rows, precision)
    if implementation != "reference":
        # Imported here, so that Triton is needed only if its kernels are requested.
        if implementation == "persistent":
            from torch_crl.kernels.tower.op import tower as on_kernels
        else:
            from torch_crl.kernels.layers.op import tower as on_kernels
        return on_kernels(
            rows,
            stacks,
            frozen=frozen,
            block=block,
            activation=activation,
            branch_scale=branch_scale,
            precision=precision,
            gradient_scale=scale,
            recompute=recompute,
        )
    arithmetic = Arithmetic(block, activation, precision, scale, branch_scale)
    groups = [*zip(rows, stacks, strict=True)]
    if frozen is not None:
        groups.append((frozen, stacks[0].detached()))
    return [
        reference.tower(x_RD, stack, arithmetic=arithmetic, recompute=recompute)
        for x_RD, stack in groups
    ]


def default_gradient_scale(rows: Sequence[Tensor], precision: str) -> float:
    """The number of rows rounded up to a power of two, for a loss that is a mean over rows.

    1 where operands have the range of fp32 or nearly so, so that nothing there depends on the
    number of rows, which a program that traces the network may not know yet.
    """
    if precision in ("fp32", "tf32"):
        return 1.0
    return 2.0 ** math.ceil(math.log2(max(sum(map(len, rows)), 1)))


def _problem(
    rows: Sequence[Tensor],
    stacks: Sequence[Stack],
    frozen: Tensor | None,
    block: str,
    precision: str,
    implementation: str,
    recompute: int,
) -> str | None:
    width = stacks[0].weight_LDD.shape[1]
    inputs = [*rows] if frozen is None else [*rows, frozen]
    if implementation not in IMPLEMENTATIONS:
        return f"implementation must be one of {IMPLEMENTATIONS}, got {implementation!r}"
    if block not in BLOCKS:
        return f"block must be one of {tuple(BLOCKS)}, got {block!r}"
    if len(rows) != len(stacks):
        return f"takes one or two stacks and rows for each; got {len(stacks)} and {len(rows)}"
    if any(x.dim() != 2 or x.shape[1] != width for x in inputs):
        return f"rows must be [B, {width}], got {[tuple(x.shape) for x in inputs]}"
    return stack_problem(stacks, precision, implementation, recompute)


def stack_problem(
    stacks: Sequence[Stack], precision: str, implementation: str, recompute: int
) -> str | None:
    """Why an implementation cannot compute these stacks, or None."""
    layers, width = stacks[0].weight_LDD.shape[:2]
    if precision not in PRECISIONS:
        return f"precision must be one of {tuple(PRECISIONS)}, got {precision!r}"
    if len(stacks) not in (1, 2):
        return f"takes one or two stacks and rows for each; got {len(stacks)} stacks"
    if any(stack.weight_LDD.shape != (layers, width, width) for stack in stacks):
        return f"stacks must have equal sizes, got {[tuple(s.weight_LDD.shape) for s in stacks]}"
    if layers % BLOCK or recompute % BLOCK:
        return f"layers and recompute must be multiples of {BLOCK}, got {layers} and {recompute}"
    if implementation == "norm_act" and width > LARGEST_WIDTH:
        return f"norm_act's kernels are for widths up to {LARGEST_WIDTH}, got {width}"
    possible = width in PERSISTENT_WIDTHS and precision in PERSISTENT_PRECISIONS
    if implementation == "persistent" and not possible:
        return (
            f"the persistent kernel is for widths {PERSISTENT_WIDTHS} and precisions "
            f"{PERSISTENT_PRECISIONS}, got {width} and {precision!r}; 'norm_act' has fewer limits"
        )
    return None
