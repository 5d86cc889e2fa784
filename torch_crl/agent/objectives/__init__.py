"""Objectives: what the critic of an actor-critic update learns, and how it scores actions.

An objective is one file here and a line in `OBJECTIVES`; `objective.py` has the interface. One of
your own needs no change here: its name is `module:name`, see `find`.
"""

import importlib
from collections.abc import Callable

from torch_crl.agent.objectives.chrono import ChronoObjective
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.agent.objectives.objective import Objective, Setup
from torch_crl.agent.objectives.safe import SafeObjective
from torch_crl.agent.objectives.survival import SurvivalObjective
from torch_crl.errors import UsageError, in_one_line

OBJECTIVES: dict[str, Callable[[Setup], Objective]] = {
    "crl": ContrastiveObjective.build,
    "safe": SafeObjective.build,
    "survival": SurvivalObjective.build,
    "chrono": ChronoObjective.build,
}
"""Name of `--objective` to what builds it."""


def find(name: str) -> Callable[[Setup], Objective]:
    """What builds the objective of this name: one of `OBJECTIVES`, or `module:name` of your own.

    `module:name` is a class of yours with a class method `build(setup)`, as `Objective`'s own
    classes have, or a function of a `Setup`. The module is imported, which runs its code. Raises
    UsageError.
    """
    if name in OBJECTIVES:
        return OBJECTIVES[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise UsageError(
            f"objective {name!r} is unknown; choose one of {', '.join(OBJECTIVES)}, or name one of "
            "your own as module:name, see examples/own_objective.py"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    # A module may raise any error, or call sys.exit, while it is imported.
    except (Exception, SystemExit) as error:
        raise UsageError(
            f"objective {name!r} was read as module:name and could not be loaded: "
            f"{in_one_line(error)}"
        ) from error
    build = getattr(found, "build", None if isinstance(found, type) else found)
    if not callable(build):
        raise UsageError(
            f"objective {name!r} must be a class with a class method `build(setup)`, or a function "
            f"of a Setup, and is {found!r}"
        )
    made: Callable[[Setup], Objective] = build
    return made
