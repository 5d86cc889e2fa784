"""`tower` on the persistent kernels as one op: autograd, recomputed chunks, weight gradients.

R rows, D width, L layers, T towers, C chunks of layers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torch_crl.kernels.dense import PRECISIONS, weight_gradients
from torch_crl.kernels.launch import require_device
from torch_crl.kernels.tower.passes import Layers, backward_layers, empty_kept, forward_layers
from torch_crl.kernels.tower.reference import Stack
from torch_crl.kernels.tower.rounded import rounded_weights


@torch.library.custom_op("torch_crl::tower_forward", mutates_args=())
def tower_forward(
    x: Tensor,
    weights: list[Tensor],
    weight16: Tensor,
    vectors: list[Tensor],
    depth: int,
    live: list[int],
    frozen: int,
    block: str,
    activation: str,
    branch_scale: float,
    recompute: int,
    scale: float,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """y [R, D], and the tensors kept for the backward pass.

    `weights` only tell autograd whose gradients the backward pass gives; what is read are the
    rounded ones (see `Layers`). `vectors` holds bias, LayerNorm weight and LayerNorm bias of each
    tower in turn. The kept tensors are those of `empty_kept`, or with `recompute` the fp32 input
    [R, D] of each chunk of layers. `scale` is used only by the backward pass.
    """
    layers = _layers(weight16, vectors, depth, live, frozen, block, activation, branch_scale)
    kept = empty_kept(x, layers) if keep and not recompute else None
    if kept is not None or not keep:
        return forward_layers(x, layers, kept=kept), kept or []
    inputs = []
    y = x.clone()
    for chunk in _chunks(layers, recompute):
        inputs.append(y)
        y = forward_layers(y, layers.part(chunk), kept=None)
    return y, inputs


@torch.library.custom_op("torch_crl::tower_backward", mutates_args=())
def tower_backward(
    dy: Tensor,
    weight16: Tensor,
    vectors: list[Tensor],
    kept: list[Tensor],
    depth: int,
    live: list[int],
    frozen: int,
    block: str,
    activation: str,
    branch_scale: float,
    recompute: int,
    scale: float,
) -> tuple[Tensor, list[Tensor], Tensor]:
    """dx [R, D], and for each tower the gradients [L, D, D] of W and [T, 3, L, D] of the vectors.

    Those of layers that are applied several times are sums over them. Without live rows the
    parameters' gradients are left as they are.
    """
    layers = _layers(weight16, vectors, depth, live, frozen, block, activation, branch_scale)
    dweights, sums = _empty_gradients(dy, weight16)
    times = depth // weight16.shape[1]
    if times > 1:
        sums = dy.new_empty(*sums.shape[:2], depth, dy.shape[1])
    dx = dy
    chunks = _chunks(layers, recompute)
    for index, chunk in reversed(list(enumerate(chunks))):
        part, part_kept = layers.part(chunk), kept
        if recompute:
            part_kept = empty_kept(dy, part)
            forward_layers(kept[index], part, kept=part_kept)
        dx, dh = backward_layers(
            dx, part, kept=part_kept, scale=scale, sums=sums, first_layer=chunk.start
        )
        if sum(live):
            rows = zip(dh.split(live, dim=1), part_kept[0].split(live, dim=1), strict=True)
            for tower, (dh_tower, inputs) in enumerate(rows):
                whole = dweights[tower]
                out = whole[chunk] if times == 1 else dy.new_empty(len(dh), *whole.shape[1:])
                weight_gradients(dh_tower, inputs, "fp16", scale=scale, out=out)
                if times > 1:
                    total = out.unflatten(0, (-1, len(whole))).sum(0)
                    dweights[tower] = total if chunk is chunks[-1] else whole + total
    if times > 1:
        sums = sums.unflatten(2, (times, -1)).sum(2)
    return dx, dweights, sums


def _layers(
    weight16: Tensor,
    vectors: list[Tensor],
    depth: int,
    live: list[int],
    frozen: int,
    block: str,
    activation: str,
    branch_scale: float,
) -> Layers:
    grouped = [vectors[start : start + 3] for start in range(0, len(vectors), 3)]
    rows = (live[0], live[1] if len(live) > 1 else 0, frozen)
    return Layers(weight16, grouped, depth, rows, block, activation == "relu", branch_scale)


def _chunks(layers: Layers, recompute: int) -> list[slice]:
    step = recompute or layers.depth
    starts = range(0, layers.depth, step)
    return [slice(start, min(start + step, layers.depth)) for start in starts]


def _empty_gradients(dy: Tensor, weight16: Tensor) -> tuple[list[Tensor], Tensor]:
    towers, (depth, width) = len(weight16), weight16.shape[-3:-1]
    dweights = [dy.new_empty(depth, width, width) for _ in range(towers)]
    return dweights, dy.new_empty(towers, 3, depth, width)


@tower_forward.register_fake
def _(
    x: Tensor,
    weights: list[Tensor],
    weight16: Tensor,
    vectors: list[Tensor],
    depth: int,
    live: list[int],
    frozen: int,
    block: str,
    activation: str,
    branch_scale: float,
    recompute: int,
    scale: float,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    layers = _layers(weight16, vectors, depth, live, frozen, block, activation, branch_scale)
    kept: list[Tensor] = []
    if keep:
        chunks = _chunks(layers, recompute)
        kept = [torch.empty_like(x) for _ in chunks] if recompute else empty_kept(x, layers)
    return torch.empty_like(x), kept


@tower_backward.register_fake
def _(dy: Tensor, weight16: Tensor, *_: Any) -> tuple[Tensor, list[Tensor], Tensor]:
    return torch.empty_like(dy), *_empty_gradients(dy, weight16)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
    _, _, weight16, vectors, *ctx.options, _ = inputs
    _, kept = output
    ctx.num_vectors = len(vectors)
    ctx.save_for_backward(weight16, *vectors, *kept)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, dy: Tensor, *_: object) -> tuple[object, ...]:
    weight16, *saved = ctx.saved_tensors
    vectors, kept = saved[: ctx.num_vectors], saved[ctx.num_vectors :]
    depth, live, frozen, block, activation, branch_scale, recompute, scale = ctx.options
    dx, dweights, sums = tower_backward(
        dy.contiguous(),
        weight16,
        vectors,
        kept,
        depth,
        live,
        frozen,
        block,
        activation,
        branch_scale,
        recompute,
        scale,
    )
    if not sum(live):
        return dx, [None] * len(dweights), None, [None] * ctx.num_vectors, *[None] * 9
    return dx, dweights, None, list(sums.flatten(0, 1).unbind(0)), *[None] * 9


tower_forward.register_autograd(_backward, setup_context=_setup_context)


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
    """See `torch_crl.kernels.tower.tower`."""
    parts = [*rows] if frozen is None else [*rows, frozen]
    counts = [len(part) for part in parts]
    x_RD = parts[0].contiguous() if len(parts) == 1 else torch.cat(parts)
    y_RD = tower_rows(
        x_RD,
        stacks,
        counts[: len(stacks)],
        block=block,
        activation=activation,
        branch_scale=branch_scale,
        precision=precision,
        gradient_scale=gradient_scale,
        recompute=recompute,
    )
    return list(y_RD.split(counts))


def tower_rows(
    x_RD: Tensor,
    stacks: Sequence[Stack],
    live: list[int],
    *,
    block: str,
    activation: str,
    branch_scale: float,
    precision: str,
    gradient_scale: float,
    recompute: int,
    depth: int = 0,
    rounded: Tensor | None = None,
) -> Tensor:
    """The same for rows [R, D] in one tensor; those behind the live ones are frozen.

    With a depth of more layers than the stacks have these are applied in turn. `rounded` are the
    weights [T, L, D, D] in the precision of the matmuls, if they are at hand.
    """
    require_device(x_RD, "tower")
    weights = [stack.weight_LDD for stack in stacks]
    vectors = [vector.contiguous() for stack in stacks for vector in stack[1:]]
    trained = any(parameter.requires_grad for parameter in (*weights, *vectors))
    keep = torch.is_grad_enabled() and (trained or x_RD.requires_grad)
    if not trained and len(stacks) == 1:
        # No row is kept for gradients that nobody asks for.
        live = [0]
    frozen = len(x_RD) - sum(live)
    options = (live, frozen, block, activation, branch_scale, recompute, gradient_scale, keep)
    if rounded is None:
        rounded = rounded_weights(weights, PRECISIONS[precision])
    own = len(weights[0])
    depth = depth or own
    if depth % own or (depth > own and recompute % own):
        raise ValueError(
            f"tower: depth and recompute must be multiples of the {own} layers that are applied in "
            f"turn, got {depth} and {recompute}"
        )
    y_RD: Tensor = tower_forward(x_RD, weights, rounded, vectors, depth, *options)[0]
    return y_RD
