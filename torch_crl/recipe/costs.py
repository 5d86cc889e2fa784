"""What a run costs, as arithmetic on sizes: parameters, floating-point operations, bytes."""

from dataclasses import dataclass

from torch_crl.agent.sizes import NetworkSizes

# Dense layers in a residual block. Depth counts dense layers inside blocks.
BLOCK = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateCost:
    """One gradient update of actor and critic on a batch."""

    networks: NetworkSizes
    batch_size: int

    @property
    def parameters(self) -> int:
        """Of all three networks; the temperature is one more."""
        return sum(tower.parameters for tower in self.networks)

    @property
    def flop(self) -> int:
        """Of the dense layers; a backward pass costs two forwards where weights are trained.

        Actor 3, state-action encoder 3 for the stored action and 2 for the policy's (no weight
        gradient), goal encoder 3: its one forward pass serves both losses.
        """
        actor, state_action, goal = (tower.dense_flop for tower in self.networks)
        return self.batch_size * (3 * actor + 5 * state_action + 3 * goal)

    @property
    def cloning_flop(self) -> int:
        """The same for behaviour cloning, which has the actor alone."""
        return self.batch_size * 3 * self.networks.actor.dense_flop

    def activation_bytes(self, *, fused: bool = False, recompute: int = 0) -> int:
        """What the four forward passes keep for the backward pass, and plain torch's logits."""
        per_row = sum(
            tower.saved_bytes(trained=True, fused=fused, recompute=recompute)
            for tower in self.networks
        )
        per_row += self.networks.state_action_encoder.saved_bytes(
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
