"""Objectives: what the critic of an actor-critic update learns, and how it scores actions.

An objective is one file here and a line in `OBJECTIVES`; `objective.py` has the interface. One of
your own needs no change here: see `register`.
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


def register(name: str, build: Callable[[Setup], Objective]) -> None:
    """Let recipes of this process name an objective of your own as `algorithm.objective`.

    `build` makes it from the settings of a run. `examples/own_objective.py` shows one. Raises
    ValueError if the name is taken by another one.
    """
    if OBJECTIVES.get(name, build) != build:
        raise ValueError(f"an objective called {name!r} is registered already; choose another name")
    OBJECTIVES[name] = build
