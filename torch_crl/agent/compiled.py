"""An update of contrastive RL as two compiled calls for one CPU core; imported only to be used.

With small networks autograd takes longer to find the gradients than the arithmetic of all towers.
B batch, A action.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from torch_crl.agent.losses import CONTRASTIVE_LOSSES
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.kernels.adam.cpu import Steps, gradient
from torch_crl.kernels.contrastive_update.cpu import METRICS, contrastive_gradients
from torch_crl.kernels.cpu import array
from torch_crl.kernels.infonce.cpu import DISTANCES
from torch_crl.kernels.tower.cpu import Space

if TYPE_CHECKING:
    from torch_crl.agent.actor_critic import ActorCritic

_OF_ROWS = {
    "forward_info_nce": True,
    "symmetric_info_nce": True,
    "backward_info_nce": False,
    "binary_nce": False,
}
"""The contrastive losses that are compiled, and whether each reads the sums over rows."""


class CompiledUpdate:
    """`ActorCritic.update` on the learner's own tensors, for batches of one size."""

    def __init__(self, learner: "ActorCritic", batch_size: int) -> None:
        """`takes` must hold. Every parameter gets a gradient, in memory that stays."""
        objective = learner.objective
        assert isinstance(objective, ContrastiveObjective)
        networks, loss = objective.networks, objective.contrastive_loss
        towers = learner.actor, networks.state_action_encoder, networks.goal_encoder
        rows = batch_size, 2 * batch_size, batch_size
        self._learner, self._batch_size = learner, batch_size
        self._steps = Steps(learner.optimizer)
        # They must be kept, since a space whose owner is gone is used again by others.
        self._spaces = [
            Space(
                *(tower.sizes.depth, count, tower.sizes.width),
                dtype=tower.weight.dtype,
                precision=tower.compute.precision,
            )
            for tower, count in zip(towers, rows, strict=True)
        ]
        self._arguments = (
            np.arange(batch_size),
            array(learner.goals_of_actor(torch.arange(batch_size))),
            *(array(x.reshape(1)) for x in (learner.log_alpha, gradient(learner.log_alpha))),
            float(learner.target_entropy),
            *(_function(tower) for tower in towers),
            *(tuple(array(gradient(x)) for x in tower.parameters()) for tower in towers),
            *(space.arrays for space in self._spaces),
            DISTANCES[objective.energy],
            _OF_ROWS[loss],
            CONTRASTIVE_LOSSES[loss].columns,
            CONTRASTIVE_LOSSES[loss].softplus,
            float(objective.logsumexp_penalty),
        )

    @staticmethod
    def takes(learner: "ActorCritic", batch: TensorDict) -> bool:
        """Whether there is a compiled function for these networks, this objective and batch."""
        objective = learner.objective
        dtypes = {learner.log_alpha.dtype, learner.actor.weight.dtype, batch["state"].dtype}
        return (
            type(objective) is ContrastiveObjective
            and objective.energy in DISTANCES
            and objective.contrastive_loss in _OF_ROWS
            and learner.update_order == "together"
            and learner.actor.is_whole
            and len(dtypes) == 1
        )

    def is_for(self, batch: TensorDict) -> bool:
        """Whether the batch has the right size, and all parameters are where they were."""
        return len(batch) == self._batch_size and self._steps.are_in_place

    def __call__(self, batch: TensorDict) -> dict[str, Tensor]:
        """See `ActorCritic.update`."""
        parts = (batch[name].contiguous() for name in ("state", "action", "goal"))
        state, action, goal = map(array, parts)
        whole = batch.get("whole")
        noise_BA = self._learner.noise(batch)
        metrics = torch.empty(len(METRICS), dtype=noise_BA.dtype)
        contrastive_gradients(
            *(state, action, goal, state[:, 0] if whole is None else array(whole)),
            *(whole is not None, array(noise_BA), *self._arguments, array(metrics)),
        )
        self._steps.take()
        return dict(zip(METRICS, metrics.unbind(), strict=True))


def _function(tower: ResidualTower) -> tuple[Any, ...]:
    """Parameters, activation and scale of a tower, as its kernel takes them."""
    parameters = tuple(map(array, tower.parameters()))
    scale = parameters[0].dtype.type(tower.sizes.branch_scale)
    return *parameters, tower.sizes.activation == "relu", scale
