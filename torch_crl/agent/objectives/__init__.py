"""Objectives: what the critic of an actor-critic update learns, and how it scores actions.

An objective is one file here and a line in `OBJECTIVES`; `objective.py` has the interface.
"""

from collections.abc import Callable

from torch_crl.agent.objectives.chrono import ChronoObjective
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.agent.objectives.objective import Objective, Setup
from torch_crl.agent.objectives.safe import SafeObjective
from torch_crl.agent.objectives.survival import SurvivalObjective

OBJECTIVES: dict[str, Callable[[Setup], Objective]] = {
    "crl": ContrastiveObjective.build,
    "safe": SafeObjective.build,
    "survival": SurvivalObjective.build,
    "chrono": ChronoObjective.build,
}
"""Name of `--objective` to what builds it."""
