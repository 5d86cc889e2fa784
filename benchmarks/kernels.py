"""Times the parts of an update one by one: towers, LayerNorm, scores of pairs, sampling, Adam."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from torch_crl.agent.optimizer import adam
from torch_crl.benchmarks.scenario import Row, Scenario
from torch_crl.benchmarks.timing import time_calls
from torch_crl.kernels.dense import weight_gradients
from torch_crl.kernels.infonce import pair_scores
from torch_crl.kernels.norm_act import norm_act
from torch_crl.kernels.relabel import Ring, relabel
from torch_crl.kernels.squashed_gaussian import squashed_gaussian
from torch_crl.kernels.tower import PERSISTENT_WIDTHS, Stack
from torch_crl.kernels.tower.rounded import RoundedWeights

REPRESENTATION = 64
# Rows of the ring buffer that batches are drawn from, and sizes of the vectors in it.
ROWS, STATE, GOAL, ACTION = 200, 29, 2, 8


def kernel_rows(scenario: Scenario, device: torch.device) -> list[Row]:
    """A row for each part, with `us_per_layer` if the part has layers."""
    rows = []
    for name, function, layers in _parts(scenario, device):
        timing = time_calls(function, device=device, seconds=scenario.seconds)
        row: Row = {"part": name} | timing.row()
        rows.append(row | ({"us_per_layer": 1e3 * timing.p50 / layers} if layers else {}))
    return rows


def _parts(scenario: Scenario, device: torch.device) -> list[tuple[str, Callable[[], object], int]]:
    """Name, call, and number of layers that the call goes through."""
    generator = Generator(device).manual_seed(0)
    batch, width, depth = scenario.batch, scenario.width, scenario.depth

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    x, residual, weight, bias = (normal(*shape) for shape in [(batch, width)] * 2 + [(width,)] * 2)
    phi, psi = (normal(batch, REPRESENTATION).requires_grad_() for _ in range(2))
    implementations = ["reference"] + (["triton"] if device.type == "cuda" else [])
    parts: list[tuple[str, Callable[[], object], int]] = []
    for implementation in implementations:

        def normalise(implementation: str = implementation) -> Tensor:
            return norm_act(
                x, weight, bias, residual, activation="swish", implementation=implementation
            )

        def pairs(implementation: Any = implementation) -> object:
            scores = pair_scores(
                phi, psi, energy="norm", columns=True, implementation=implementation
            )
            loss = (scores.row_logsumexp_B - scores.diagonal_B).mean()
            return torch.autograd.grad(loss, (phi, psi))

        parts += [(f"norm_act, {implementation}", normalise, 0)]
        parts += [(f"pair_scores with gradient, {implementation}", pairs, 0)]
        parts += _sampling_parts(normal, scenario, implementation)
    if device.type == "cuda" and width in PERSISTENT_WIDTHS:
        stack = Stack(
            normal(depth, width, width) / (3 * width) ** 0.5,
            *(normal(depth, width) for _ in range(3)),
        )
        parts += _tower_parts(stack, normal, batch)
    if device.type == "cuda":
        for layers in sorted({4, depth, 256}):
            parts += _adam_parts([normal(layers, width, width) for _ in range(3)])
    return parts


def _adam_parts(weights: list[Tensor]) -> list[tuple[str, Callable[[], object], int]]:
    """A step of ours, with and without rounded weights, and one of torch with them."""
    device, rate = weights[0].device, 3e-4
    count = sum(weight.numel() for weight in weights) / 1e6
    parts: list[tuple[str, Callable[[], object], int]] = []
    for name, kept in (("with rounded weights", True), ("alone", False)):
        trained = [weight.clone().requires_grad_() for weight in weights]
        for weight in trained:
            weight.grad = torch.ones_like(weight)
        rounded = RoundedWeights(trained if kept else ())
        # With rounded weights, even none, ours takes more than `MOST_ELEMENTS` too.
        ours = adam({rate: trained}, device, "triton", [rounded])
        theirs = adam({rate: trained}, device, "reference")

        def of_torch(theirs: Any = theirs, rounded: Any = rounded) -> None:
            theirs.step()
            rounded.round()

        for whose, step in (("triton", ours.step), ("reference", of_torch)):
            parts += [(f"Adam {name}, {count:.3g} million, {whose}", _captured(step), 0)]
    return parts


def _captured(function: Callable[[], object]) -> Callable[[], object]:
    """The function's kernels as a CUDA graph, without what the host needs to launch them."""
    function()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _sampling_parts(
    normal: Callable[..., Tensor], scenario: Scenario, implementation: str
) -> list[tuple[str, Callable[[], object], int]]:
    """Drawing a batch from a full ring buffer, and the action from the actor's output."""
    noise = normal(scenario.batch, ACTION)
    output = normal(scenario.batch, 2 * ACTION).requires_grad_()
    upstream = (normal(scenario.batch, ACTION), normal(scenario.batch))
    device = noise.device
    trajectory = torch.zeros(ROWS, scenario.envs, dtype=torch.int32, device=device)
    state, action_taken, achieved = (
        normal(ROWS, scenario.envs, size) for size in (STATE, ACTION, GOAL)
    )
    last_row = torch.full_like(trajectory, ROWS - 1)
    ring = Ring(state, action_taken, achieved, trajectory, last_row)
    position = torch.tensor(ROWS, device=device)
    uniform = torch.rand(4, scenario.batch, dtype=torch.float64, device=device)

    def batch() -> object:
        options: dict[str, Any] = {"goal_slice": (0, GOAL), "discount": 0.99}
        return relabel(uniform, position, ring, implementation=implementation, **options)

    def action() -> object:
        sample = squashed_gaussian(output, noise, implementation=implementation)
        return torch.autograd.grad(sample, output, upstream)

    return [
        (f"relabel, {implementation}", batch, 0),
        (f"squashed_gaussian with gradient, {implementation}", action, 0),
    ]


def _tower_parts(
    stack: Stack, normal: Callable[..., Tensor], batch: int
) -> list[tuple[str, Callable[[], object], int]]:
    """Each pass of the persistent tower with every tile size, for the rows of actor and critic."""
    from torch_crl.kernels.tower.hopper.tiles import HopperTile, usable_tiles
    from torch_crl.kernels.tower.passes import (
        TILES,
        Layers,
        backward_layers,
        empty_kept,
        forward_layers,
    )

    depth, width = stack.bias_LD.shape
    parts: list[tuple[str, Callable[[], object], int]] = []
    dtypes = torch.float16, torch.bfloat16
    tiles: list[tuple[Any, Any]] = [(tile, tile) for tile in TILES[width]]
    tiles += usable_tiles(width, (batch,), stack.bias_LD.device)
    cases = [("published", *case) for case in itertools.product(dtypes, ("actor", "critic"), tiles)]
    in_fp16 = itertools.product(dtypes[:1], ("actor", "critic"), tiles)
    cases += [("pre_norm", *case) for case in in_fp16]
    for block, dtype, whose, (tile, backward_tile) in cases:
        rows = (batch, 0, 0) if whose == "actor" else (batch, batch, batch)
        towers = 1 if whose == "actor" else 2
        weight16 = torch.stack([stack.weight_LDD.to(dtype)] * towers)
        layers = Layers(weight16, [list(stack[1:])] * towers, depth, rows, block, False, 1.0)
        x, dy = normal(sum(rows), width), normal(sum(rows), width)
        kept = empty_kept(x, layers)
        forward_layers(x, layers, kept=kept)
        sums = normal(towers, 3, depth, width)
        kind = "hopper" if isinstance(tile, HopperTile) else "triton"
        kind += "" if block == "published" else f", {block}"
        name = f"{kind}, {whose}, {tile.rows} rows, {str(dtype).partition('.')[2]}"

        def forward(x: Any = x, layers: Any = layers, kept: Any = kept, tile: Any = tile) -> object:
            return forward_layers(x, layers, kept=kept, tile=tile)

        def backward(
            dy: Any = dy,
            layers: Any = layers,
            kept: Any = kept,
            tile: Any = backward_tile,
            sums: Any = sums,
        ) -> object:
            return backward_layers(dy, layers, kept=kept, scale=1.0, sums=sums, tile=tile)

        def weights(inputs: Any = kept[0], depth: int = depth, width: int = width) -> object:
            out = inputs.new_empty(depth, width, width, dtype=torch.float32)
            weight_gradients(inputs, inputs, "fp16", scale=1.0, out=out)
            return out

        parts += [(f"tower forward, {name}", forward, depth)]
        parts += [(f"tower backward, {name}", backward, depth)]
        if tile == tiles[0][0] and whose == "actor" and block == "published":
            parts += [(f"weight gradients, {name}", weights, depth)]
    return parts
