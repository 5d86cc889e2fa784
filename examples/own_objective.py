"""An objective of your own: a ranking loss in place of classification. Run this file, or in its
folder `torch-crl train reacher --objective own_objective:RankingObjective`.

The actor, the temperature, the towers, the replay and the evaluation stay as they are. Here the
critic's energy of each step and its own goal must beat that with every other goal by a margin.
"""

import os

import torch
from torch import Tensor

from torch_crl import preset, train, with_changes
from torch_crl.agent.learner import Batch
from torch_crl.agent.losses import ENERGIES
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.agent.objectives.objective import Aux

MARGIN = 1.0


class RankingObjective(ContrastiveObjective):
    """max(0, margin + E_ij - E_ii), averaged over all pairs of different rows."""

    def classify(self, phi_BR: Tensor, psi_BR: Tensor, batch: Batch) -> tuple[Tensor, Aux]:
        # Of a batch, only chunks of actions that may be cut short would be of use here.
        del batch
        energy_BB = ENERGIES[self.energy].pairwise(phi_BR, psi_BR)
        short_BB = torch.relu(MARGIN + energy_BB - energy_BB.diagonal()[:, None])
        rows = len(energy_BB)
        # A row's own goal is short by the margin itself.
        loss = (short_BB.sum() - rows * MARGIN) / (rows * (rows - 1))
        beaten = (short_BB == 0).sum() / (rows * (rows - 1))
        return loss, {"ranking_loss": loss.detach(), "beaten_by_the_margin": beaten}


if __name__ == "__main__":
    recipe = with_changes(
        preset("reacher"),
        algorithm={"objective": "own_objective:RankingObjective"},
        budget={"env_steps": int(os.environ.get("TORCH_CRL_EXAMPLE_STEPS", "120000"))},
    )
    result = train(recipe, overwrite=True)
    print(f"success_any {result.evaluation['success_any']:.0%}, run directory {result.run_dir}")
