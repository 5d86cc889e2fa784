"""Which objective first, at which depth, for which kind of task?"""

from collections.abc import Mapping, Sequence
from typing import Any

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
DEPTHS: Mapping[Scale, tuple[int, ...]] = {"smoke": (4, 8), "small": (4, 16), "full": (4, 16, 64)}
# Ants at a size that two cores train overnight.
_SMALL_ANT: Mapping[str, Any] = {"width": 128, "batch_size": 256, "env_steps": 1_500_000}


def trials(scale: Scale) -> list[Trial]:
    """Objectives x depths x seeds; `safe` where episodes can fail."""
    settings = dict.fromkeys(TASKS[scale], SETTINGS[scale])
    if scale == "small":
        settings["ant"] = {**SETTINGS[scale], **_SMALL_ANT}
    return [
        trial
        for task, changes in settings.items()
        for trial in grid(
            (task,),
            axes={"objective": _objectives(task), "depth": DEPTHS[scale], "seed": SEEDS[scale]},
            settings=changes,
        )
    ]


def _objectives(task: str) -> tuple[str, ...]:
    return WITH_FAILURES if task.startswith(("ant", "humanoid")) else ANYWHERE


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
