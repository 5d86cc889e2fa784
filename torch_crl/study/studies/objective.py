"""Which objective first, at which depth, for which kind of task?"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch_crl.runs.curves import Curve
from torch_crl.study.compare import compare
from torch_crl.study.compare_report import curves_section, scores_section, speed_section
from torch_crl.study.first_method import (
    PLAIN,
    against_table,
    depth_table,
    first_method,
    first_table,
    sentence,
    summary,
)
from torch_crl.study.report import Section
from torch_crl.study.studies.common import SEEDS, SETTINGS, TASKS
from torch_crl.study.study import Answer, Scale, Study
from torch_crl.sweep.grid import Trial, grid

ANYWHERE = (PLAIN, "survival", "chrono")
"""Objectives for every task with a success radius."""
WITH_FAILURES = (*ANYWHERE, "safe")
"""Objectives for tasks whose episodes can fail."""
_BEST_OTHER = "chrono"
"""The objective beside contrastive RL on the tasks of scale small that do not try all of them."""

_MAZE: Mapping[str, Any] = {"evaluations": 20}
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
_ROBOTS = ("arm_reach", "pusher_easy", "ant")


class Cells(NamedTuple):
    """Runs on some tasks that differ in these axes only."""

    tasks: tuple[str, ...]
    axes: Mapping[str, Sequence[Any]]
    settings: Mapping[str, Any]


def _three_seeds(
    *tasks: str,
    objective: tuple[str, ...],
    chunk: tuple[int, ...] = (),
    depth: tuple[int, ...] = (4,),
    **settings: Any,
) -> Cells:
    """Three seeds of these objectives; chunks are the preset's if none are given."""
    chunks = {"chunk": chunk} if chunk else {}
    axes = {"objective": objective, **chunks, "depth": depth, "seed": range(3)}
    return Cells(tasks, axes, settings)


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
        _three_seeds("point_u_maze", objective=ANYWHERE, **_MAZE),
        _three_seeds("point_u_maze", objective=(PLAIN,), depth=(16,), **_MAZE),
        _three_seeds("point_hardest_maze", objective=(PLAIN,), depth=(4, 16), **_MAZE),
        _three_seeds("point_hardest_maze", objective=(_BEST_OTHER,), **_MAZE),
        _three_seeds(*_ROBOTS, objective=(PLAIN, _BEST_OTHER), **_LAPTOP),
        _three_seeds(*_ROBOTS, objective=(PLAIN,), chunk=(3,), **_LAPTOP),
        _three_seeds("ant", objective=("safe",), **_LAPTOP),
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


def answer(curves: Sequence[Curve]) -> Answer:
    """Which method is first on each task, and every method against contrastive RL."""
    comparison = compare(curves)
    firsts = [first_method(comparison, task) for task in comparison.tasks]
    return Answer(
        findings=(summary(firsts), *(sentence(comparison, first) for first in firsts)),
        sections=(
            Section(title="Which one first", parts=(first_table(comparison, firsts),)),
            scores_section(comparison),
            Section(title="Against contrastive RL", parts=(against_table(comparison),)),
            Section(title="What depth adds", parts=(depth_table(comparison),)),
            curves_section(comparison, published=True),
            speed_section(comparison),
        ),
    )


STUDY = Study(
    question="Which objective first, at which depth, for which kind of task: how do failure-aware "
    "contrastive RL, critics of the time to the goal and chunks of actions compare with plain "
    "contrastive RL?",
    statistic="On a task all methods have the same actor, temperature, towers, env steps and "
    "updates; the cost of an update differs (docs/objectives.md), so minutes stand beside scores. "
    "They are wall-clock as the runs measured it, with evaluations; runs that share a machine "
    "slow each other down, and some runs may have been computed by faster kernels than others, "
    "which their result.json tells.",
    trials=trials,
    answer=answer,
)
