"""Residual towers of any depth, and the three networks made of them (arXiv 2503.14858, section 3).

B batch, L depth, D width, S state, G goal, A action, R representation.
"""

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from torch_crl.agent.blocks import BLOCKS, Layer, unrolled
from torch_crl.agent.compute import PLAIN, Compute
from torch_crl.agent.mixture import Routes, mixture
from torch_crl.agent.sizes import MOE, SHARING_BLOCKS, MlpSizes, NetworkSizes, TowerSizes
from torch_crl.kernels.dense import PRECISIONS
from torch_crl.kernels.squashed_gaussian import action_distribution as action_distribution
from torch_crl.kernels.squashed_gaussian import squashed_sample as squashed_sample
from torch_crl.kernels.tower import BLOCK, Parts, Stack, default_gradient_scale
from torch_crl.kernels.tower.rounded import RoundedWeights

if TYPE_CHECKING:
    from torch_crl.kernels.tower.cpu import Parameters


class ResidualTower(nn.Module):
    """Dense - LayerNorm - activation, then residual blocks of four such layers, then Dense.

    A block multiplies its last activation by `branch_scale` and adds it to its input; the sum is
    not normalised again. `torch_crl.agent.blocks` has other blocks. The parameters of all L inner
    layers are stacked: `weight` [L, D, D], `bias`, `ln_weight` and `ln_bias` [L, D], so that an
    optimiser or a kernel sees one tensor for all of them. With a mixture of experts the experts are
    their second axis, and `gate_weight` [L / 4, E, D] has the gates.
    """

    def __init__(
        self, sizes: TowerSizes, *, generator: Generator | None, compute: Compute = PLAIN
    ) -> None:
        """Initialise as below; raises ValueError unless the depth is a positive multiple of four.

        | parameter   | initial value                                        |
        |-------------|------------------------------------------------------|
        | dense       | uniform on +-sqrt(1 / fan_in), heads, gates included |
        | bias        | 0                                                    |
        | LayerNorm   | weight 1, bias 0                                     |
        """
        super().__init__()
        depth, width = sizes.depth, sizes.width
        if depth <= 0 or depth % BLOCK:
            raise ValueError(f"depth must be a positive multiple of {BLOCK}, got {depth}")
        if sizes.experts > 1 and sizes.block != MOE:
            raise ValueError(f"{sizes.experts} experts need the block {MOE}, got {sizes.block}")
        self.sizes = sizes
        self.compute = compute
        self._held: Parameters | None = None
        self.rounded: RoundedWeights | None = None
        """Of its inner weights among others, if an optimiser keeps them; see `keep_rounded`."""
        # What a mixture of experts has besides its blocks is the published tower's.
        self._block = BLOCKS["published" if sizes.block == MOE else sizes.block]

        def dense(*shape: int) -> nn.Parameter:
            bound = math.sqrt(1.0 / shape[-1])
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))

        self.input_weight = dense(width, sizes.input_size)
        self.input_bias = nn.Parameter(torch.zeros(width))
        self.input_ln_weight = nn.Parameter(torch.ones(width))
        self.input_ln_bias = nn.Parameter(torch.zeros(width))
        layers = (sizes.own_layers, sizes.experts) if self.is_mixture else (sizes.own_layers,)
        self.weight = dense(*layers, width, width)
        self.bias = nn.Parameter(torch.zeros(*layers, width))
        self.ln_weight = nn.Parameter(torch.ones(*layers, width))
        self.ln_bias = nn.Parameter(torch.zeros(*layers, width))
        if self.is_mixture:
            self.gate_weight = dense(depth // BLOCK, sizes.experts, width)
        self.output_weight = dense(sizes.output_size, width)
        self.output_bias = nn.Parameter(torch.zeros(sizes.output_size))

    def at_depth(self, depth: int) -> "ResidualTower":
        """A tower of another depth with these very parameters, whose block is applied as often.

        Raises ValueError for a depth that is no multiple of four, or blocks with own weights.
        """
        if self.sizes.block not in SHARING_BLOCKS and depth != self.sizes.depth:
            raise ValueError(
                f"the depth of a tower with {self.sizes.flag} is fixed at "
                f"{self.sizes.depth}; those of {' and '.join(SHARING_BLOCKS)} may be chosen"
            )
        if depth <= 0 or depth % BLOCK:
            raise ValueError(f"depth must be a positive multiple of {BLOCK}, got {depth}")
        other = copy.copy(self)
        other.sizes = replace(self.sizes, depth=depth)
        return other

    @property
    def is_mixture(self) -> bool:
        """Whether its blocks are mixtures of experts, which are computed in plain torch."""
        return self.sizes.block == MOE

    @property
    def stack(self) -> Stack:
        """The parameters of the inner layers."""
        return Stack(self.weight, self.bias, self.ln_weight, self.ln_bias)

    def _first_layer(self, *, frozen: bool) -> Layer:
        first = (self.input_weight, self.input_bias, self.input_ln_weight, self.input_ln_bias)
        return Layer(*(read(parameter, frozen=frozen) for parameter in first))

    def embed(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """The first layer, [B, input] to [B, D]. `frozen`: no gradient for its parameters."""
        first = self._first_layer(frozen=frozen)
        return self._block.embed(x, first, self.sizes, self.compute)

    def head(self, x_BD: Tensor, *, frozen: bool = False) -> Tensor:
        """The last layer, [B, D] to [B, output]. `frozen`: no gradient for its parameters."""
        x_BD = self._block.finish(x_BD, self._first_layer(frozen=frozen))
        weight, bias = (read(p, frozen=frozen) for p in (self.output_weight, self.output_bias))
        return functional.linear(x_BD, weight, bias)

    def forward(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """Map [..., input] to [..., output]. `frozen`: no gradient for the parameters."""
        if self.is_mixture:
            return self.with_routes(x, frozen=frozen)[0]
        rows = x.reshape(-1, x.shape[-1])
        if self.compute.tower == "numba":
            rows = self.on_one_core(rows, live=0 if frozen else len(rows))
        elif self.is_on_triton:
            (rows,) = _on_triton([rows], [self], None, constant=frozen)
        else:
            rows = self.embed(rows, frozen=frozen)
            stack = self.stack.detached() if frozen else self.stack
            (inner,) = self._block.inner([rows], [stack], None, self.sizes, self.compute)
            rows = self.head(inner, frozen=frozen)
        return rows.view(*x.shape[:-1], -1)

    def with_routes(self, x: Tensor, *, frozen: bool = False) -> tuple[Tensor, Routes | None]:
        """`forward`, with the experts that each row passed; None for all but a mixture of them."""
        if not self.is_mixture:
            return self(x, frozen=frozen), None
        rows = self.embed(x.reshape(-1, x.shape[-1]), frozen=frozen)
        stack = self.stack.detached() if frozen else self.stack
        gate = read(self.gate_weight, frozen=frozen)
        inner, routes = mixture(rows, stack, gate, self.sizes, self.compute)
        return self.head(inner, frozen=frozen).view(*x.shape[:-1], -1), routes

    @property
    def is_on_triton(self) -> bool:
        """Whether Triton kernels compute the tower from input to output."""
        has_kernels = self._block.has_kernels and not self.is_mixture
        return self.compute.tower == "persistent" and has_kernels

    def parts(self, *, frozen: bool = False) -> Parts:
        """All parameters."""
        first = self._first_layer(frozen=frozen)
        last = (
            read(self.output_weight, frozen=frozen),
            read(self.output_bias, frozen=frozen),
        )
        return Parts(first, self.stack.detached() if frozen else self.stack, last)

    def on_one_core(self, x: Tensor, *, live: int) -> Tensor:
        """Map [R, input] to [R, output]; the parameters' gradients are those of the first rows."""
        # Imported here, so that numba is needed only if its kernels are requested.
        from torch_crl.kernels.tower.cpu import Parameters, whole_tower

        held = self._held
        # In the order of their definition; asking the module for each by name would take longer.
        if held is None or not held.are(self._parameters.values()):  # type: ignore[arg-type]
            held = Parameters(self.parts()._replace(stack=unrolled(self.stack, self.sizes)))
            self._held = held
        sizes = self.sizes
        return whole_tower(
            x,
            held,
            live=live,
            activation=sizes.activation,
            branch_scale=sizes.branch_scale,
            precision=self.compute.precision,
            block=sizes.block,
        )


def read(parameter: Tensor, *, frozen: bool) -> Tensor:
    """The parameter; `frozen`: as a constant, which gets no gradient."""
    return parameter.detach() if frozen else parameter


def run_towers(
    inputs: Sequence[Tensor], towers: Sequence[ResidualTower], *, frozen: Tensor | None = None
) -> list[Tensor]:
    """Towers of equal inner sizes on their inputs [B, I], in one pass; returns each output [B, O].

    Further rows, if given, pass through the first tower as if its parameters were constants; their
    output is the last one.
    """
    first, counts = towers[0], [len(inputs[0]), 0 if frozen is None else len(frozen)]
    if first.compute.tower == "numba":
        rows = inputs[0] if frozen is None else torch.cat([inputs[0], frozen])
        ours, of_frozen = first.on_one_core(rows, live=counts[0]).split(counts)
        others = [tower(x) for tower, x in zip(towers[1:], inputs[1:], strict=True)]
        return [ours, *others, *([] if frozen is None else [of_frozen])]
    if first.is_on_triton:
        return _on_triton(inputs, towers, frozen)
    embedded = [tower.embed(x) for tower, x in zip(towers, inputs, strict=True)]
    constant = None if frozen is None else first.embed(frozen, frozen=True)
    stacks = [tower.stack for tower in towers]
    inner = BLOCKS[first.sizes.block].inner(embedded, stacks, constant, first.sizes, first.compute)
    outputs = [tower.head(x) for tower, x in zip(towers, inner[: len(towers)], strict=True)]
    return outputs + [first.head(x, frozen=True) for x in inner[len(towers) :]]


def _on_triton(
    inputs: Sequence[Tensor],
    towers: Sequence[ResidualTower],
    frozen: Tensor | None,
    *,
    constant: bool = False,
) -> list[Tensor]:
    """`run_towers` on kernels for whole towers; `constant`: no gradient for any parameter."""
    # Imported here, so that Triton is needed only if its kernels are requested.
    from torch_crl.kernels.tower.whole import whole_towers

    like = towers[0]
    if wrong := [tower for tower in towers if tower.sizes.depth != like.sizes.depth]:
        depths = f"{like.sizes.depth} and {wrong[0].sizes.depth}"
        raise ValueError(f"towers in one pass must be equally deep, got {depths}")
    return whole_towers(
        inputs,
        [tower.parts(frozen=constant) for tower in towers],
        frozen=frozen,
        # A shared block is a published one.
        block="pre_norm" if like.sizes.block == "pre_norm" else "published",
        activation=like.sizes.activation,
        branch_scale=like.sizes.branch_scale,
        precision=like.compute.precision,
        gradient_scale=default_gradient_scale(inputs, like.compute.precision),
        recompute=like.compute.recompute,
        depth=like.sizes.depth,
        rounded=_rounded(towers),
    )


def _rounded(towers: Sequence[ResidualTower]) -> Tensor | None:
    """The towers' 16-bit weights, if an optimiser keeps them."""
    kept = towers[0].rounded
    dtype = PRECISIONS[towers[0].compute.precision]
    return None if kept is None else kept.of([tower.weight for tower in towers], dtype)


def keep_rounded(towers: Sequence[ResidualTower]) -> list[RoundedWeights]:
    """16-bit copies of the weights of all towers that read such, for their optimiser to write.

    Towers of equal inner sizes and precision share a tensor, in this order.
    """
    kept: list[RoundedWeights] = []
    groups: dict[tuple[torch.dtype, torch.Size], list[ResidualTower]] = {}
    for tower in towers:
        dtype = PRECISIONS[tower.compute.precision]
        if tower.rounded is not None and tower.rounded.of([tower.weight], dtype) is not None:
            # Another optimiser steps it too, and both write the same copies.
            kept.append(tower.rounded)
        elif tower.is_on_triton:
            groups.setdefault((dtype, tower.weight.shape), []).append(tower)
    for (dtype, _), group in groups.items():
        rounded = RoundedWeights([tower.weight for tower in group], dtype)
        for tower in group:
            tower.rounded = rounded
        kept.append(rounded)
    return kept


_MLP_ACTIVATIONS: dict[Literal["relu", "tanh"], type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}


def mlp(sizes: MlpSizes) -> nn.Sequential:
    """Dense layers with an activation between them."""
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes.layers):
        modules += [nn.Linear(inputs, outputs), _MLP_ACTIVATIONS[sizes.activation]()]
    return nn.Sequential(*modules[:-1])


def mlp_sizes(network: nn.Sequential) -> MlpSizes:
    """The sizes from which `mlp` builds a network of the same architecture."""
    dense = [module for module in network if isinstance(module, nn.Linear)]
    (activation,) = (name for name, kind in _MLP_ACTIVATIONS.items() if type(network[1]) is kind)
    layers = [dense[0].in_features, *(layer.out_features for layer in dense)]
    return MlpSizes(layers=layers, activation=activation)


@dataclass(frozen=True)
class Networks:
    """The actor and the two encoders of the critic. No weights are shared."""

    actor: ResidualTower
    """concat(state, goal) [B, S + G] to concat(mean, raw log-std) [B, 2 A]."""
    state_action_encoder: ResidualTower
    """concat(state, action) [B, S + A] to [B, R]."""
    goal_encoder: ResidualTower
    """goal [B, G] to [B, R]."""

    def encode(
        self, state_action: Tensor, goal: Tensor, policy_state_action: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """phi(s, a), psi(g) and phi(s, pi(s)), each [B, R], in one pass.

        The last is for the actor's loss: its gradient flows into the actions but into no parameter
        of the critic.
        """
        towers = [self.state_action_encoder, self.goal_encoder]
        phi, psi, of_policy = run_towers([state_action, goal], towers, frozen=policy_state_action)
        return phi, psi, of_policy

    def encode_pairs(self, state_action: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        """phi(s, a) and psi(g), each [B, R], in one pass."""
        towers = [self.state_action_encoder, self.goal_encoder]
        phi, psi = run_towers([state_action, goal], towers)
        return phi, psi

    def named(self) -> dict[str, ResidualTower]:
        """Name to network, in the order actor, state-action encoder, goal encoder."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> "Networks":
        """Move all three; returns self."""
        for network in self.named().values():
            network.to(device)
        return self


def build_networks(
    sizes: NetworkSizes, *, generator: Generator, compute: Compute = PLAIN
) -> Networks:
    """Newly initialised networks on the CPU; equal generators give equal weights anywhere."""
    return Networks(
        *(ResidualTower(tower, generator=generator, compute=compute) for tower in sizes)
    )
