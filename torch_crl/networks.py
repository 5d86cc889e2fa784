"""Residual towers of any depth, and the three networks made of them (arXiv 2503.14858, section 3).

B batch, L depth, D width, S state, G goal, A action, R representation.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional

from torch_crl.blocks import BLOCKS, Arithmetic, Layer, run_blocks
from torch_crl.compute import PLAIN, Compute
from torch_crl.costs import BLOCK
from torch_crl.kernels.norm_act import norm_act
from torch_crl.kernels.squashed_gaussian import action_distribution as action_distribution
from torch_crl.kernels.squashed_gaussian import squashed_sample as squashed_sample
from torch_crl.kernels.tower import Stack, default_gradient_scale, tower

# Its authors found that a deeper one does not train.
DEEPEST_PUBLISHED_ACTOR = 512


class ResidualTower(nn.Module):
    """Dense - LayerNorm - activation, then blocks of four of these with a skip, then Dense.

    The skip is added after a block's last activation, which `branch_scale` multiplies, and the sum
    is not normalised again. `torch_crl.blocks` has other blocks. The parameters of all L inner
    layers are stacked: `weight` [L, D, D], `bias`, `ln_weight` and `ln_bias` [L, D], so that an
    optimiser or a kernel sees one tensor for all of them.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        width: int,
        depth: int,
        activation: str,
        generator: Generator | None,
        branch_scale: float = 1.0,
        block: str = "published",
        compute: Compute = PLAIN,
    ) -> None:
        """Initialise as below; raises ValueError for a depth that is no multiple of four.

        | parameter   | initial value                                        |
        |-------------|------------------------------------------------------|
        | dense       | uniform on +-sqrt(1 / fan_in), heads included        |
        | bias        | 0                                                    |
        | LayerNorm   | weight 1, bias 0                                     |
        """
        super().__init__()
        if depth <= 0 or depth % BLOCK:
            raise ValueError(f"depth must be a positive multiple of {BLOCK}, got {depth}")
        self.activation = activation
        self.depth = depth
        self.branch_scale = branch_scale
        self.block = block
        self.compute = compute

        def dense(*shape: int) -> nn.Parameter:
            bound = math.sqrt(1.0 / shape[-1])
            return nn.Parameter(torch.empty(shape).uniform_(-bound, bound, generator=generator))

        self.input_weight = dense(width, input_size)
        self.input_bias = nn.Parameter(torch.zeros(width))
        self.input_ln_weight = nn.Parameter(torch.ones(width))
        self.input_ln_bias = nn.Parameter(torch.zeros(width))
        self.weight = dense(depth, width, width)
        self.bias = nn.Parameter(torch.zeros(depth, width))
        self.ln_weight = nn.Parameter(torch.ones(depth, width))
        self.ln_bias = nn.Parameter(torch.zeros(depth, width))
        self.output_weight = dense(output_size, width)
        self.output_bias = nn.Parameter(torch.zeros(output_size))

    def sizes(self) -> dict[str, Any]:
        """The arguments that build a tower of the same function."""
        return {
            "input_size": self.input_weight.shape[1],
            "output_size": len(self.output_bias),
            "width": len(self.input_bias),
            "depth": self.depth,
            "activation": self.activation,
            "branch_scale": self.branch_scale,
            "block": self.block,
        }

    @property
    def stack(self) -> Stack:
        """The parameters of the inner layers."""
        return Stack(self.weight, self.bias, self.ln_weight, self.ln_bias)

    def _first_layer(self, *, frozen: bool) -> Layer:
        read = _constant if frozen else _itself
        first = (self.input_weight, self.input_bias, self.input_ln_weight, self.input_ln_bias)
        return Layer(*map(read, first))

    def embed(self, x: Tensor, *, frozen: bool = False) -> Tensor:
        """The first layer, [B, input] to [B, D]. `frozen`: no gradient for its parameters."""
        first = self._first_layer(frozen=frozen)
        if self.block != "published":
            return BLOCKS[self.block].embed(x, first, self.activation)
        x_BD = functional.linear(x, first.weight_DD, first.bias_D)
        embedded_BD: Tensor = norm_act(
            x_BD,
            first.ln_weight_D,
            first.ln_bias_D,
            activation=self.activation,
            implementation=self.compute.other_kernels,
        )
        return embedded_BD

    def head(self, x_BD: Tensor, *, frozen: bool = False) -> Tensor:
        """The last layer, [B, D] to [B, output]. `frozen`: no gradient for its parameters."""
        if self.block != "published":
            x_BD = BLOCKS[self.block].finish(x_BD, self._first_layer(frozen=frozen))
        read = _constant if frozen else _itself
        return functional.linear(x_BD, read(self.output_weight), read(self.output_bias))

    def forward(self, x: Tensor) -> Tensor:
        """[..., input] to [..., output]."""
        rows = x.reshape(-1, x.shape[-1])
        (inner,) = run_stacks([self.embed(rows)], [self])
        return self.head(inner).view(*x.shape[:-1], -1)


def _constant(parameter: Tensor) -> Tensor:
    return parameter.detach()


def _itself(parameter: Tensor) -> Tensor:
    return parameter


def run_stacks(
    rows: Sequence[Tensor], towers: Sequence[ResidualTower], *, frozen: Tensor | None = None
) -> list[Tensor]:
    """Rows through the inner layers of towers of equal sizes; see `torch_crl.kernels.tower`."""
    first = towers[0]
    if first.block != "published":
        return _run_other_blocks(rows, towers, frozen)
    outputs: list[Tensor] = tower(
        rows,
        [each.stack for each in towers],
        frozen=frozen,
        activation=first.activation,
        branch_scale=first.branch_scale,
        precision=first.compute.precision,
        implementation=first.compute.tower,
        recompute=first.compute.recompute,
    )
    return outputs


def _run_other_blocks(
    rows: Sequence[Tensor], towers: Sequence[ResidualTower], frozen: Tensor | None
) -> list[Tensor]:
    first = towers[0]
    arithmetic = Arithmetic(
        activation=first.activation,
        precision=first.compute.precision,
        gradient_scale=default_gradient_scale(rows),
        branch_scale=first.branch_scale,
        blocks=first.depth // BLOCK,
    )
    groups = [(x_BD, each.stack) for x_BD, each in zip(rows, towers, strict=True)]
    if frozen is not None:
        groups.append((frozen, first.stack.detached()))
    return [
        run_blocks(
            x_BD,
            stack,
            block=first.block,
            arithmetic=arithmetic,
            recompute=first.compute.recompute,
        )
        for x_BD, stack in groups
    ]


def branch_scale(branch: str, depth: int) -> float:
    """The factor that `branch` of the recipe means for a network of this depth.

    Every block adds the same positive mean to the sum, and Adam moves every block by about the
    learning rate in a direction that all samples share, so with factor 1 both the head's input
    and what one update does to it grow with the number of blocks. At depth 1024 the first updates
    push every action into the flat part of its tanh, where no gradient is left. With 16 / depth
    neither grows any more, and networks of up to 16 layers are as published (benchmarks/LOG.md).
    """
    scaled = branch == "scaled" or (branch == "auto" and depth > DEEPEST_PUBLISHED_ACTOR)
    return min(1.0, 16 / depth) if scaled else 1.0


_MLP_ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def mlp(layers: Sequence[int], activation: str) -> nn.Sequential:
    """Dense layers of these sizes, input first, with `relu` or `tanh` between them."""
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(layers):
        modules += [nn.Linear(inputs, outputs), _MLP_ACTIVATIONS[activation]()]
    return nn.Sequential(*modules[:-1])


def mlp_sizes(network: nn.Sequential) -> dict[str, Any]:
    """The arguments of `mlp` that build a network of the same function."""
    dense = [module for module in network if isinstance(module, nn.Linear)]
    (activation,) = (name for name, kind in _MLP_ACTIVATIONS.items() if type(network[1]) is kind)
    layers = [dense[0].in_features, *(layer.out_features for layer in dense)]
    return {"layers": layers, "activation": activation}


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

        The last is for the actor: its gradient reaches the actions and no parameter.
        """
        phi, psi = self.state_action_encoder, self.goal_encoder
        rows = [phi.embed(state_action), psi.embed(goal)]
        frozen = phi.embed(policy_state_action, frozen=True)
        encoded = run_stacks(rows, [phi, psi], frozen=frozen)
        return phi.head(encoded[0]), psi.head(encoded[1]), phi.head(encoded[2], frozen=True)

    def named(self) -> dict[str, ResidualTower]:
        """Name to network, in the order actor, state-action encoder, goal encoder."""
        return dict(vars(self))

    def to(self, device: torch.device | str) -> "Networks":
        """Move all three; returns self."""
        for network in self.named().values():
            network.to(device)
        return self


def build_networks(
    *,
    state_size: int,
    goal_size: int,
    action_size: int,
    actor_depth: int,
    critic_depth: int,
    width: int,
    representation_size: int,
    activation: str,
    generator: Generator,
    branch: str = "auto",
    block: str = "published",
    compute: Compute = PLAIN,
) -> Networks:
    """Freshly initialised networks on the CPU; equal generators give equal weights anywhere."""
    sizes = {
        "actor": (state_size + goal_size, 2 * action_size, actor_depth),
        "state_action_encoder": (state_size + action_size, representation_size, critic_depth),
        "goal_encoder": (goal_size, representation_size, critic_depth),
    }
    return Networks(
        **{
            name: ResidualTower(
                input_size,
                output_size,
                width=width,
                depth=depth,
                activation=activation,
                generator=generator,
                branch_scale=branch_scale(branch, depth),
                block=block,
                compute=compute,
            )
            for name, (input_size, output_size, depth) in sizes.items()
        }
    )
