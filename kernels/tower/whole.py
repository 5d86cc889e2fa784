"""Towers from input to output on Triton kernels."""

from collections.abc import Sequence

import torch
from torch import Tensor

from torch_crl.kernels.launch import require_device
from torch_crl.kernels.tower import BLOCKS, stack_problem
from torch_crl.kernels.tower.op import tower_rows
from torch_crl.kernels.tower.reference import Parts
from torch_crl.kernels.tower_ends.op import embed, head


def whole_towers(
    inputs: Sequence[Tensor],
    towers: Sequence[Parts],
    *,
    frozen: Tensor | None,
    block: str,
    activation: str,
    branch_scale: float,
    precision: str,
    gradient_scale: float,
    recompute: int,
    depth: int = 0,
    rounded: Tensor | None = None,
) -> list[Tensor]:
    """First layer, residual blocks and last layer of one or two towers of equal inner sizes.

    With the block `pre_norm` the first layer is linear, and its LayerNorm stands before the last.

    Args:
        inputs: fp32 [B, I] for each tower; B and I may differ.
        towers: the parameters of each.
        frozen: fp32 [F, I], further rows for the first tower, whose parameters get no gradient from
            them.
        block, activation, branch_scale, precision, gradient_scale, recompute: as in
            `torch_crl.kernels.tower.tower`.
        depth: number of inner layers, a multiple of those of the stacks, which are applied in turn
            as often as that takes; 0 applies them once.
        rounded: the weights of all inner layers [T, L, D, D] in the precision, as `RoundedWeights`
            keeps them; None has them rounded here.

    Returns:
        [B, O] for each of `inputs`, followed by [F, O] if there are frozen rows.

    Raises:
        ValueError: for tensors that do not match, are not fp32, or that the kernels do not take.
    """
    problem = _problem(inputs, towers, frozen, block, depth) or stack_problem(
        [tower.stack for tower in towers], precision, "persistent", recompute
    )
    if problem:
        raise ValueError(f"tower: {problem}")
    rows = [*inputs] if frozen is None else [*inputs, frozen]
    rows = [x.contiguous() for x in rows]
    require_device(rows[0], "tower")
    first = [parameter.contiguous() for tower in towers for parameter in tower.first]
    last = [parameter.contiguous() for tower in towers for parameter in tower.last]
    counts = [len(x) for x in rows]
    keep = torch.is_grad_enabled() and any(x.requires_grad for x in (*rows, *first))
    x_RD = embed(rows, first, block, activation, keep)[0]
    y_RD = tower_rows(
        x_RD,
        [tower.stack for tower in towers],
        counts[: len(towers)],
        block=block,
        activation=activation,
        branch_scale=branch_scale,
        precision=precision,
        gradient_scale=gradient_scale,
        recompute=recompute,
        depth=depth,
        rounded=rounded,
    )
    norm = [] if block == "published" else [p for k, p in enumerate(first) if k % 4 > 1]
    outputs: list[Tensor] = head(y_RD, last, norm, counts)[0]
    return outputs


def _problem(
    inputs: Sequence[Tensor],
    towers: Sequence[Parts],
    frozen: Tensor | None,
    block: str,
    depth: int,
) -> str | None:
    if block not in BLOCKS:
        return f"block must be one of {tuple(BLOCKS)}, got {block!r}"
    layers, width = towers[0].stack.bias_LD.shape
    if depth % layers:
        return f"depth must be a multiple of the {layers} layers, got {depth}"
    if len(inputs) != len(towers):
        return f"takes inputs for each tower; got {len(inputs)} inputs and {len(towers)} towers"
    groups = [*zip(inputs, towers, strict=True)]
    if frozen is not None:
        groups.append((frozen, towers[0]))
    for x, tower in groups:
        first, last = tower.first[0], tower.last[0]
        if x.dim() != 2 or first.shape != (width, x.shape[1]) or last.shape[1] != width:
            return (
                f"inputs {tuple(x.shape)} do not fit a first layer {tuple(first.shape)}, inner "
                f"layers of {width} and a last layer {tuple(last.shape)}"
            )
        if {x.dtype, first.dtype, last.dtype} != {torch.float32}:
            return f"the kernels take fp32 tensors, got {x.dtype}, {first.dtype} and {last.dtype}"
    return None
