"""Costs of a run, computed from sizes: parameters, floating-point operations, bytes."""

from dataclasses import dataclass

from torch_crl.agent.sizes import NetworkSizes, TowerSizes


@dataclass(frozen=True, kw_only=True, slots=True)
class UpdateCost:
    """Costs of one gradient update of actor and critic on a batch."""

    networks: NetworkSizes
    batch_size: int
    more_towers: tuple[TowerSizes, ...] = ()
    """Further towers of the critic, for the batch's actions and for the policy's."""
    averaged: bool = False
    """Whether an average of the actor's weights is kept."""

    @property
    def parameters(self) -> int:
        """Number of parameters of all networks; the log entropy coefficient is one more."""
        return sum(tower.parameters for tower in (*self.networks, *self.more_towers))

    @property
    def flop(self) -> int:
        """Floating-point operations of the dense layers, forward and backward.

        A backward pass costs two forward passes where weights are trained, else one. Counted in
        forward passes: actor 3, state-action encoder 3 for the stored action and 2 for the policy's
        (no weight gradient), goal encoder 3, since its one forward pass serves both losses. Further
        towers are counted like the state-action encoder.
        """
        actor, state_action, goal = (tower.dense_flop for tower in self.networks)
        more = sum(tower.dense_flop for tower in self.more_towers)
        return self.batch_size * (3 * actor + 5 * (state_action + more) + 3 * goal)

    @property
    def cloning_flop(self) -> int:
        """The same for behaviour cloning, which trains the actor only."""
        return self.batch_size * 3 * self.networks.actor.dense_flop

    def activation_bytes(self, *, fused: bool = False, recompute: int = 0) -> int:
        """Bytes kept for the backward pass: of all forward passes, and of plain torch's logits."""
        per_row = sum(
            tower.saved_bytes(trained=True, fused=fused, recompute=recompute)
            for tower in (*self.networks, *self.more_towers)
        )
        per_row += sum(
            tower.saved_bytes(trained=False, fused=fused, recompute=recompute)
            for tower in (self.networks.state_action_encoder, *self.more_towers)
        )
        logits = 0 if fused else 4 * self.batch_size
        return self.batch_size * (per_row + logits)

    @property
    def training_bytes(self) -> int:
        """Bytes in fp32: parameters, their values before an update, gradients, two Adam moments."""
        average = 4 * self.networks.actor.parameters if self.averaged else 0
        return 5 * 4 * self.parameters + average


def replay_bytes(
    *,
    rows: int,
    num_envs: int,
    state_size: int,
    goal_size: int,
    action_size: int,
    bytes_per_number: int,
) -> int:
    """Bytes of the replay buffer: state, action, achieved goal and two int32 numbers per step."""
    numbers = state_size + action_size + goal_size
    return rows * num_envs * (bytes_per_number * numbers + 2 * 4)
