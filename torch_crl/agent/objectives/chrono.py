"""ChronoSRL: survival RL with a geometry of time and an occupancy of the goal (arXiv 2609.36238).

As the published code has it: to the hazards come distances |phi - psi| that are to be proportional
to the time to the goal, and large where goals differ; and for each bin of offsets the share that is
spent at the goal, which the actor is rewarded for in proportion to the failures of the batch.
B batch, R representation, O bins of offsets.
"""

from typing import Any

import torch
from torch import Tensor, nn

from torch_crl.agent.learner import Batch
from torch_crl.agent.networks import Networks
from torch_crl.agent.objectives.objective import Aux, Setup
from torch_crl.agent.objectives.survival import HazardHead, Hazards, SurvivalObjective
from torch_crl.agent.objectives.time_to_goal import (
    bin_discounts,
    distinct,
    occupancy_loss,
    pair_distances,
    separation,
    time_distance,
)
from torch_crl.agent.sizes import bin_edges


class ChronoObjective(SurvivalObjective):
    """Hazards, distances and occupancy; all four losses have weight 1."""

    def __init__(self, networks: Networks, head: HazardHead, **options: Any) -> None:
        """See `SurvivalObjective`."""
        super().__init__(networks, head, **options)
        discounts = bin_discounts(self.hits.edges, discount=self.value_discount)
        # Being at the goal at once is not an effect of the action.
        discount_O = torch.tensor([0.0, *discounts[1:]])
        # A buffer, which moves with the head to its device.
        head.register_buffer("occupancy_discount", discount_O, persistent=False)

    @classmethod
    def _edges(cls, setup: Setup) -> list[int]:
        return bin_edges(setup.window)

    def _loss(
        self, batch: Batch, phi_BR: Tensor, psi_BR: Tensor, hazards: Hazards
    ) -> tuple[Tensor, Aux]:
        hazard, metrics = self._likelihood(batch, hazards)
        hits, event_B = self.hits, batch["event"]
        whole_B = batch.get("whole")
        valid_B = torch.ones_like(event_B) if whole_B is None else whole_B > 0
        distance_BB = pair_distances(phi_BR, psi_BR)
        # The whole window is at distance 1, so that a step is at 1 / W.
        time = time_distance(
            distance_BB.diagonal(), batch["time"], event_B & valid_B, per_step=1.0 / hits.window
        )
        apart = separation(
            distance_BB,
            distinct(batch["goal"], distance=hits.distance, radius=hits.radius),
            missed_B=~event_B & valid_B,
            least=1.0,
        )
        occupancy = occupancy_loss(
            hazards.occupancy_BO,
            occupied_BO=batch["occupied"],
            seen_BO=batch["seen"] & valid_B[:, None],
        )
        more = {"time_loss": time, "separation_loss": apart, "occupancy_loss": occupancy}
        metrics |= {name: loss.detach() for name, loss in more.items()}
        return hazard + time + apart + occupancy, metrics

    def _score(self, batch: Batch, hazards: Hazards) -> Tensor:
        value_B = super()._score(batch, hazards)
        discount_O = self.head.get_buffer("occupancy_discount")
        occupied_B = hazards.occupancy_BO.sigmoid() @ discount_O
        failures: Tensor = batch["failed"].float().mean()
        return value_B + failures * occupied_B

    def _make_norms(self, size: int) -> dict[str, nn.Module]:
        del size
        return {}
