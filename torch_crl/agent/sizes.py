"""Sizes of the networks, and counts of their parameters, FLOP and bytes. Imports no torch."""

from dataclasses import dataclass, replace
from typing import Annotated, Literal, NamedTuple, TypeAlias

from annotated_types import Ge, Gt, Le, Len

from torch_crl.agent.branch_scale import branch_scale

BlockName: TypeAlias = Literal[
    "published", "no_skip", "no_norm", "hyperspherical", "pre_norm", "shared", "gated"
]
MOE = "moe"
"""Name of the block that is a mixture of experts, which only actors have."""
SHARING_BLOCKS = ("shared", "gated")
"""Blocks of which a tower has one, and applies it again and again."""
HAZARD_RANK = 64
"""Number of coefficients from which a hazard head makes the hazards of all steps."""
BLOCK_LAYERS = 4
"""Number of layers in one residual block, the smallest depth."""
Size: TypeAlias = Annotated[int, Ge(1), Le(2**31 - 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSizes:
    """All that defines the function of a `ResidualTower` except its parameters."""

    input_size: Size
    output_size: Size
    width: Size
    """Number of units of every hidden layer."""
    depth: Annotated[int, Le(2**20)]
    """Number of dense layers that a row passes inside the residual blocks; a multiple of four."""
    activation: Literal["swish", "relu"] = "swish"
    branch_scale: Annotated[float, Gt(0.0)] = 1.0
    """Factor on the output of a block before it is added to the residual sum."""
    block: BlockName | Literal["moe"] = "published"
    """Name of the residual block; see `torch_crl.agent.blocks`, and for `moe` `agent.mixture`."""
    experts: Size = 1
    """Number of branches of each block, of which a row passes one; above 1 for `moe` only."""

    @property
    def flag(self) -> str:
        """The flag that chooses the block, with its value."""
        return f"--actor-block {MOE}" if self.block == MOE else f"--block {self.block}"

    @property
    def own_layers(self) -> int:
        """Number of inner layers with parameters of their own, those of one expert."""
        return BLOCK_LAYERS if self.block in SHARING_BLOCKS else self.depth

    @property
    def _gate_outputs(self) -> int:
        """Number of outputs of the gates of all blocks together."""
        return self.experts * self.depth // BLOCK_LAYERS if self.block == MOE else 0

    @property
    def parameters(self) -> int:
        """Number of parameters: weights, biases and those of the LayerNorms."""
        inner = self.own_layers * self.experts
        outputs = inner * self.width + self._gate_outputs + self.output_size
        return self.width * (self.input_size + outputs + 3 * (1 + inner)) + self.output_size

    @property
    def dense_flop(self) -> int:
        """Multiplications and additions of the dense layers in the forward pass of one row.

        With a mixture of experts these are the gates and the branches that the row passes. It is
        computed with empty rows between those of the experts, at most a quarter more.
        """
        outputs = self.depth * self.width + self._gate_outputs + self.output_size
        return 2 * self.width * (self.input_size + outputs)

    def saved_bytes(self, *, trained: bool, fused: bool, recompute: int) -> int:
        """Bytes per row that a forward pass keeps for the backward pass.

        In plain torch a layer keeps the inputs of its LayerNorm and of its activation, the two
        statistics of the LayerNorm, and, if the weights are trained, the input of its dense layer.
        The last layer keeps its input if it is trained. The input of the network is part of the
        batch and not counted.

        `fused` stands for the persistent kernel, whose inner layers keep 16-bit numbers, the
        normalised values and, if the weights are trained, the input of the dense layer and as much
        again for the gradient of its output, and statistics in fp32. `recompute` keeps the fp32
        residual sum once in that many layers, and everything else for that many layers only. A
        mixture of experts keeps at most a quarter more rows.
        """
        kept_layers = min(recompute, self.depth) if recompute else self.depth
        sums = 4 * self.width * (self.depth // recompute if recompute else 0)
        if fused:
            statistics = 8 if self.block == "pre_norm" else 4
            inner = 2 * self.width * (3 if trained else 1) + statistics
        else:
            inner = 4 * (self.width * (3 if trained else 2) + 2)
        ends = 4 * (self.width * (3 if trained else 2) + 2)
        if self.block == MOE:
            inner += inner // 4
        return kept_layers * inner + sums + ends


@dataclass(frozen=True, kw_only=True, slots=True)
class MlpSizes:
    """All that defines the function of an `mlp` except its parameters."""

    layers: Annotated[list[Size], Len(2, 64)]
    """Number of entries of the input, then number of units of every dense layer."""
    activation: Literal["relu", "tanh"]
    """Activation between the dense layers."""


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
    actor_block: Literal["same", "moe"] = "same",
    experts: int = 1,
) -> NetworkSizes:
    """Sizes of the three towers, for a task of sizes S, G and A and representations of size R."""

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

    actor = tower(state_size + goal_size, 2 * action_size, actor_depth)
    if actor_block == "moe":
        actor = replace(actor, block="moe", experts=experts)
    return NetworkSizes(
        actor=actor,
        state_action_encoder=tower(state_size + action_size, representation_size, critic_depth),
        goal_encoder=tower(goal_size, representation_size, critic_depth),
    )


def encoder_depth(objective: str, critic_depth: int) -> int:
    """Depth of the critic's encoders; with `survival` it is half, beside a head of full depth."""
    if objective != "survival":
        return critic_depth
    return max(BLOCK_LAYERS, critic_depth // 2 // BLOCK_LAYERS * BLOCK_LAYERS)


def bin_edges(window: int, count: int = 32) -> list[int]:
    """Edges of bins of offsets: 0 and round(window^(k / count)) for k = 0 ... count, each once."""
    return [0, *sorted({round(window ** (k / count)) for k in range(count + 1)})]


def objective_towers(
    objective: str, networks: NetworkSizes, *, critic_depth: int, branch: str, window: int
) -> dict[str, TowerSizes]:
    """Sizes of the towers that an objective has beside the three networks, by name.

    `window` is the number of steps whose hazards a head tells.
    """
    encoder = networks.state_action_encoder

    def tower(inputs: int, outputs: int, depth: int) -> TowerSizes:
        return replace(
            encoder,
            input_size=inputs,
            output_size=outputs,
            depth=depth,
            branch_scale=branch_scale(branch, depth),
        )

    if objective == "safe":
        # Deeper ones gained nothing in arXiv 2608.26571.
        return {"survival": tower(encoder.input_size, 1, BLOCK_LAYERS)}
    if objective in ("survival", "chrono"):
        bins = len(bin_edges(window)) - 1 if objective == "chrono" else 0
        return {"head": tower(4 * encoder.output_size, 1 + HAZARD_RANK + bins, critic_depth)}
    return {}
