"""Sizes of the networks, and what they cost as arithmetic. Imports no torch."""

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

from annotated_types import Ge, Gt, Le, Len

DEEPEST_PUBLISHED_ACTOR = 512
"""The authors of arXiv 2503.14858 found that a deeper actor does not train."""

BlockName: TypeAlias = Literal["published", "no_skip", "no_norm", "hyperspherical", "pre_norm"]
Size: TypeAlias = Annotated[int, Ge(1), Le(2**31 - 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSizes:
    """All that decides the function of a `ResidualTower` but its parameters."""

    input_size: Size
    output_size: Size
    width: Size
    """Units of every layer."""
    depth: Annotated[int, Le(2**20)]
    """Dense layers inside the residual blocks, a multiple of four."""
    activation: Literal["swish", "relu"] = "swish"
    branch_scale: Annotated[float, Gt(0.0)] = 1.0
    """What a block's output is multiplied by before it is added to the sum."""
    block: BlockName = "published"
    """Which residual block, see `torch_crl.agent.blocks`."""

    @property
    def parameters(self) -> int:
        """Weights, biases and LayerNorm parameters."""
        layers = 1 + self.depth
        dense = self.width * (self.input_size + self.depth * self.width + self.output_size)
        return dense + 3 * layers * self.width + self.output_size

    @property
    def dense_flop(self) -> int:
        """Multiplications and additions of the dense layers, for one row, forward."""
        return 2 * self.width * (self.input_size + self.depth * self.width + self.output_size)

    def saved_bytes(self, *, trained: bool, fused: bool, recompute: int) -> int:
        """Bytes that a forward pass keeps for its backward, per row.

        In plain torch a layer keeps what its LayerNorm and its activation got, the two statistics
        of the LayerNorm, and, if the weights are trained, what the dense layer got. The last layer
        keeps its input if it is trained. The input itself belongs to the batch.

        `fused`: the persistent kernel, whose inner layers keep 16-bit numbers: what LayerNorm
        made, and what the dense layer got if it is trained, whose gradient takes as much again.
        `recompute`: fp32 sums every so many layers, and the rest for that many layers only.
        """
        kept_layers = min(recompute, self.depth) if recompute else self.depth
        sums = 4 * self.width * (self.depth // recompute if recompute else 0)
        if fused:
            inner = 2 * self.width * (3 if trained else 1) + 4
        else:
            inner = 4 * (self.width * (3 if trained else 2) + 2)
        ends = 4 * (self.width * (3 if trained else 2) + 2)
        return kept_layers * inner + sums + ends


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpSizes:
    """All that decides the function of an `mlp` but its parameters."""

    layers: Annotated[list[Size], Len(2, 64)]
    """Units of the input and of every dense layer."""
    activation: Literal["relu", "tanh"]
    """Between the layers."""


class NetworkSizes(NamedTuple):
    """The three networks of contrastive RL."""

    actor: TowerSizes
    """concat(state, goal) [B, S + G] to concat(mean, raw log-std) [B, 2 A]."""
    state_action_encoder: TowerSizes
    """concat(state, action) [B, S + A] to [B, R]."""
    goal_encoder: TowerSizes
    """goal [B, G] to [B, R]."""


def network_sizes(
    *,
    state_size: int,
    goal_size: int,
    action_size: int,
    actor_depth: int,
    critic_depth: int,
    width: int,
    representation_size: int,
    activation: Literal["swish", "relu"] = "swish",
    branch: str = "auto",
    block: BlockName = "published",
) -> NetworkSizes:
    """The three towers for a task of these sizes, S, G and A, with representations of size R."""

    def tower(input_size: int, output_size: int, depth: int) -> TowerSizes:
        return TowerSizes(
            input_size=input_size,
            output_size=output_size,
            width=width,
            depth=depth,
            activation=activation,
            branch_scale=branch_scale(branch, depth),
            block=block,
        )

    return NetworkSizes(
        actor=tower(state_size + goal_size, 2 * action_size, actor_depth),
        state_action_encoder=tower(state_size + action_size, representation_size, critic_depth),
        goal_encoder=tower(goal_size, representation_size, critic_depth),
    )


def branch_scale(branch: str, depth: int) -> float:
    """The factor that `--branch` means for a network of this depth.

    Every block adds the same positive mean to the sum, and Adam moves every block by about the
    learning rate in a direction that all samples share. With factor 1, both the head's input and
    what one update does to it therefore grow with the number of blocks. At depth 1024 the first
    updates push every action into the flat part of its tanh, where no gradient is left. With
    16 / depth neither grows any more, and networks of up to 16 layers are as published
    (benchmarks/LOG.md).
    """
    scaled = branch == "scaled" or (branch == "auto" and depth > DEEPEST_PUBLISHED_ACTOR)
    return min(1.0, 16 / depth) if scaled and depth else 1.0
