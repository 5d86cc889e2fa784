"""What a run costs, as arithmetic on sizes: parameters, floating-point operations, bytes, time."""

from dataclasses import dataclass

# Dense layers in a residual block. Depth counts dense layers inside blocks.
BLOCK = 4

UNITS_OF_TIME = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
"""Seconds and name of each, largest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerSize:
    """Sizes of one residual tower."""

    inputs: int
    outputs: int
    width: int
    depth: int

    @property
    def parameters(self) -> int:
        """Weights, biases and LayerNorm parameters."""
        layers = 1 + self.depth
        dense = self.width * (self.inputs + self.depth * self.width + self.outputs)
        return dense + 3 * layers * self.width + self.outputs

    @property
    def dense_flop(self) -> int:
        """Multiplications and additions of the dense layers, for one row, forward."""
        return 2 * self.width * (self.inputs + self.depth * self.width + self.outputs)

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
class UpdateCost:
    """One gradient update of actor and critic on a batch."""

    actor: TowerSize
    state_action_encoder: TowerSize
    goal_encoder: TowerSize
    batch_size: int

    @property
    def parameters(self) -> int:
        """Of all three networks; the temperature is one more."""
        towers = (self.actor, self.state_action_encoder, self.goal_encoder)
        return sum(tower.parameters for tower in towers)

    @property
    def flop(self) -> int:
        """Of the dense layers; a backward pass costs two forwards where weights are trained.

        Actor 3, state-action encoder 3 for the stored action and 2 for the policy's (no weight
        gradient), goal encoder 3: its one forward pass serves both losses.
        """
        rows = 3 * self.actor.dense_flop + 5 * self.state_action_encoder.dense_flop
        return self.batch_size * (rows + 3 * self.goal_encoder.dense_flop)

    @property
    def cloning_flop(self) -> int:
        """The same for behaviour cloning, which has the actor alone."""
        return self.batch_size * 3 * self.actor.dense_flop

    def activation_bytes(self, *, fused: bool = False, recompute: int = 0) -> int:
        """What the four forward passes keep for the backward pass, and plain torch's logits."""
        towers = (self.actor, self.state_action_encoder, self.goal_encoder)
        per_row = sum(
            tower.saved_bytes(trained=True, fused=fused, recompute=recompute) for tower in towers
        )
        per_row += self.state_action_encoder.saved_bytes(
            trained=False, fused=fused, recompute=recompute
        )
        logits = 0 if fused else 4 * self.batch_size
        return self.batch_size * (per_row + logits)

    @property
    def training_bytes(self) -> int:
        """fp32 parameters, gradients, two Adam moments, and the parameters before an update."""
        return 5 * 4 * self.parameters


def replay_bytes(
    *,
    rows: int,
    num_envs: int,
    state_size: int,
    goal_size: int,
    action_size: int,
    bytes_per_number: int,
) -> int:
    """Of the replay: state, action and achieved goal a step, and two int32 for its trajectory."""
    numbers = state_size + action_size + goal_size
    return rows * num_envs * (bytes_per_number * numbers + 2 * 4)


def duration(seconds: float) -> str:
    """`40 s`, `1.5 min`, `2 h`: the largest unit of which there are two or more."""
    for size, name in UNITS_OF_TIME:
        if abs(seconds) >= 2 * size:
            count = seconds / size
            return f"{count:,.0f} {name}" if count >= 1000 else f"{count:.3g} {name}"
    return f"{seconds:.3g} s"
