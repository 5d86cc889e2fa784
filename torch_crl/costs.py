"""What a run costs, as arithmetic on sizes: parameters, floating-point operations, bytes."""

from dataclasses import dataclass

# Dense layers in a residual block. Depth counts dense layers inside blocks.
BLOCK = 4


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

    def saved_floats(self, *, trained: bool) -> int:
        """Numbers that a forward pass keeps for its backward, per row.

        A layer keeps what its LayerNorm and its activation got, the two statistics of the
        LayerNorm, and, if the weights are trained, what the dense layer got. The output layer
        keeps its input if it is trained. The input itself belongs to the batch.
        """
        layers = 1 + self.depth
        normed = layers * (2 * self.width + 2)
        dense_inputs = layers * self.width if trained else 0
        return normed + dense_inputs


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
    def activation_bytes(self) -> int:
        """fp32 tensors that the four forward passes keep for the backward pass, logits included."""
        per_row = (
            self.actor.saved_floats(trained=True)
            + self.state_action_encoder.saved_floats(trained=True)
            + self.state_action_encoder.saved_floats(trained=False)
            + self.goal_encoder.saved_floats(trained=True)
        )
        return 4 * self.batch_size * (per_row + self.batch_size)

    @property
    def training_bytes(self) -> int:
        """fp32 parameters, gradients and two Adam moments."""
        return 4 * 4 * self.parameters


def replay_bytes(
    *, rows: int, num_envs: int, state_size: int, action_size: int, bytes_per_number: int
) -> int:
    """Of the replay: states, actions, and two int32 a step that say which trajectory it is in."""
    return rows * num_envs * (bytes_per_number * (state_size + action_size) + 2 * 4)
