"""An update of contrastive RL as two compiled calls for one CPU core; imported only to be used.

With small networks autograd takes longer to find the gradients than the arithmetic of all towers.
B batch, A action.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_crl.agent.learner import Batch
from torch_crl.agent.losses import CONTRASTIVE_LOSSES
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.agent.objectives.objective import Objective
from torch_crl.kernels.adam.cpu import Steps, gradient
from torch_crl.kernels.contrastive_update.cpu import METRICS, contrastive_gradients
from torch_crl.kernels.cpu import array
from torch_crl.kernels.infonce.cpu import DISTANCES
from torch_crl.kernels.tower.cpu import Space


class CompiledUpdate:
    """An update of actor, temperature and critic together, on given tensors and batches of a size.

    It changes the parameters, their gradients and the optimiser's state in place.
    """

    def __init__(
        self,
        actor: ResidualTower,
        objective: Objective,
        *,
        log_alpha: Tensor,
        target_entropy: float,
        optimizer: torch.optim.Adam,
        goal_of_B: Tensor,
    ) -> None:
        """`takes` must hold. Every parameter gets a gradient, in memory that stays.

        `optimizer` has all parameters, and `goal_of_B` says whose goal each row of the actor has.
        """
        assert isinstance(objective, ContrastiveObjective)
        networks, kind = objective.networks, CONTRASTIVE_LOSSES[objective.contrastive_loss]
        towers = actor, networks.state_action_encoder, networks.goal_encoder
        self._batch_size = size = len(goal_of_B)
        # Of the type of a mask, since every other type of an argument is compiled anew.
        self._no_mask = array(torch.zeros(size, dtype=log_alpha.dtype))
        self._no_place = np.zeros(size, np.int64)
        self._steps = Steps(optimizer)
        # They must be kept, since a space whose owner is gone is used again by others.
        self._spaces = [
            Space(
                *(tower.sizes.depth, rows, tower.sizes.width),
                dtype=tower.weight.dtype,
                precision=tower.compute.precision,
                block=tower.sizes.block,
            )
            for tower, rows in zip(towers, (size, 2 * size, size), strict=True)
        ]
        self._arguments = (
            np.arange(size),
            array(goal_of_B),
            *(array(x.reshape(1)) for x in (log_alpha, gradient(log_alpha))),
            float(target_entropy),
            tuple(map(_function, towers)),
            tuple(tuple(array(gradient(x)) for x in tower.parameters()) for tower in towers),
            tuple(space.arrays for space in self._spaces),
            DISTANCES[objective.energy],
            kind.rows,
            kind.columns,
            kind.softplus,
            float(objective.logsumexp_penalty),
        )

    @staticmethod
    def takes(objective: Objective, tensors: Iterable[Tensor]) -> bool:
        """Whether it has this very objective, and all tensors have the same dtype."""
        return (
            type(objective) is ContrastiveObjective
            and objective.energy in DISTANCES
            and CONTRASTIVE_LOSSES[objective.contrastive_loss].rows is not None
            and len({x.dtype for x in tensors}) == 1
        )

    def is_for(self, batch: Batch) -> bool:
        """Whether the batch has the right size, and all parameters are where they were."""
        return len(batch["state"]) == self._batch_size and self._steps.are_in_place

    def __call__(self, batch: Batch, noise_BA: Tensor) -> dict[str, Tensor]:
        """The metrics of `ActorCritic.update` with these standard normal numbers."""
        parts = (batch[name].contiguous() for name in ("state", "action", "goal"))
        state, action, goal = map(array, parts)
        whole, place = batch.get("whole"), batch.get("place")
        metrics = torch.empty(len(METRICS), dtype=noise_BA.dtype)
        contrastive_gradients(
            *(state, action, goal, self._no_mask if whole is None else array(whole)),
            whole is not None,
            self._no_place if place is None else array(place),
            place is not None,
            *(array(noise_BA), *self._arguments, array(metrics)),
        )
        self._steps.take()
        return dict(zip(METRICS, metrics.unbind(), strict=True))


def _function(tower: ResidualTower) -> tuple[Any, ...]:
    """Parameters, activation and scale of a tower, as its kernel takes them."""
    parameters = tuple(map(array, tower.parameters()))
    scale = parameters[0].dtype.type(tower.sizes.branch_scale)
    return *parameters, tower.sizes.activation == "relu", scale
