"""Objectives: what the critic of an actor-critic update learns, and how it scores actions.

An objective is one file here and a line in `OBJECTIVES`; `objective.py` has the interface.
"""

from collections.abc import Callable

from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.agent.objectives.objective import Objective
from torch_crl.agent.objectives.safe import SafeObjective

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "crl": ContrastiveObjective,
    "safe": SafeObjective,
}
"""Name of `--objective` to its class."""
