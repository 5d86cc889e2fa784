"""Which objective first, at which depth, for which kind of task?"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch_crl.runs.curves import Curve
from torch_crl.study.studies.common import SEEDS, SETTINGS, TASKS
from torch_crl.study.studies.variants import compare_variants
from torch_crl.study.study import Answer, Scale, Study
from torch_crl.sweep.grid import Trial, grid

BASE = "crl"
ANYWHERE = (BASE, "survival", "chrono")
"""Objectives for every task with a success radius."""
WITH_FAILURES = (*ANYWHERE, "safe")
"""Objectives for tasks whose episodes can fail."""
_BEST_OTHER = "chrono"
"""The objective beside contrastive RL on the tasks of scale small that do not try all of them."""

_THREE_SEEDS: Mapping[str, Sequence[Any]] = {"seed": range(3)}
_MAZE = {"evaluations": 20}
# Tasks with published presets, at a size that one core trains in a quarter of an hour, with the
# temperature and the averaged weights of the small presets.
_LAPTOP: Mapping[str, Any] = {
    "width": 128,
    "batch_size": 256,
    "env_steps": 1_500_000,
    "evaluations": 20,
    "initial_temperature": 0.1,
    "temperature_learning_rate": 3e-3,
    "average_weights": 0.999,
}


class Cells(NamedTuple):
    """Runs on some tasks that differ in these axes only."""

    tasks: tuple[str, ...]
    axes: Mapping[str, Sequence[Any]]
    settings: Mapping[str, Any]


CELLS: Mapping[Scale, tuple[Cells, ...]] = {
    "smoke": (
        Cells(
            TASKS["smoke"],
            {"objective": ANYWHERE, "depth": (4, 8), "seed": SEEDS["smoke"]},
            SETTINGS["smoke"],
        ),
    ),
    "small": (
        Cells(
            ("reacher",),
            {"objective": ANYWHERE, "depth": (4, 16), "seed": range(5)},
            {"evaluations": 50},
        ),
        Cells(("point_u_maze",), {"objective": ANYWHERE, "depth": (4,), **_THREE_SEEDS}, _MAZE),
        Cells(("point_u_maze",), {"objective": (BASE,), "depth": (16,), **_THREE_SEEDS}, _MAZE),
        Cells(
            ("point_hardest_maze",), {"objective": (BASE,), "depth": (4, 16), **_THREE_SEEDS}, _MAZE
        ),
        Cells(
            ("point_hardest_maze",),
            {"objective": (_BEST_OTHER,), "depth": (4,), **_THREE_SEEDS},
            _MAZE,
        ),
        Cells(
            ("arm_reach", "pusher_easy", "ant"),
            {"objective": (BASE, _BEST_OTHER), "depth": (4,), **_THREE_SEEDS},
            _LAPTOP,
        ),
        Cells(
            ("arm_reach", "pusher_easy", "ant"),
            {"objective": (BASE,), "chunk": (3,), "depth": (4,), **_THREE_SEEDS},
            _LAPTOP,
        ),
        Cells(("ant",), {"objective": ("safe",), "depth": (4,), **_THREE_SEEDS}, _LAPTOP),
    ),
    "full": tuple(
        Cells(
            (task,),
            {
                "objective": WITH_FAILURES if task.startswith(("ant", "humanoid")) else ANYWHERE,
                "depth": (4, 16, 64),
                "seed": SEEDS["full"],
            },
            SETTINGS["full"],
        )
        for task in TASKS["full"]
    ),
}


def trials(scale: Scale) -> list[Trial]:
    """Objectives x depths x seeds; at scale small, what two cores train in a night."""
    return [
        trial
        for cells in CELLS[scale]
        for trial in grid(cells.tasks, axes=cells.axes, settings=cells.settings)
    ]


def variant_of(curve: Curve) -> str:
    """The objective."""
    return curve.recipe.algorithm.objective


def answer(curves: Sequence[Curve]) -> Answer:
    """Every objective against contrastive RL at equal depth."""
    return compare_variants(curves, variant_of=variant_of, base=BASE)


STUDY = Study(
    question="Which objective, at which depth, for which kind of task: how do failure-aware "
    "contrastive RL and critics of the time to the goal compare with contrastive RL?",
    statistic="All objectives have the same actor, temperature, towers, env steps and updates; the "
    "cost of an update differs (docs/objectives.md). Scores are compared with those of contrastive "
    "RL at the same depth by permutation tests, which exchange labels within each task.",
    trials=trials,
    answer=answer,
)
