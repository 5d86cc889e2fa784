"""The open questions as named studies: each a grid of runs, a statistic and a report."""

from torch_crl.study.studies import (
    actor_critic,
    batch,
    block,
    cost,
    depth,
    limits,
    loss,
    objective,
    transitions,
    width,
)
from torch_crl.study.study import Study

STUDIES: dict[str, Study] = {
    "depth": depth.STUDY,
    "objective": objective.STUDY,
    "loss": loss.STUDY,
    "block": block.STUDY,
    "actor_critic": actor_critic.STUDY,
    "batch": batch.STUDY,
    "width": width.STUDY,
    "transitions": transitions.STUDY,
    "limits": limits.STUDY,
    "cost": cost.STUDY,
}
"""Name on the command line to study."""
