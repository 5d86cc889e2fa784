"""Is it the actor or the critic that has to be deep?"""

from collections.abc import Mapping, Sequence

import numpy as np

from torch_crl.runs.curves import Curve
from torch_crl.study.pareto import BEST_SHARE, cheapest_near_best
from torch_crl.study.report import Section, Table
from torch_crl.study.statistics import permutation_test
from torch_crl.study.studies.common import (
    SEEDS,
    SETTINGS,
    THREE_TASKS,
    by_task,
    estimates,
    estimates_table,
    grouped,
    heat_map_picture,
    scores,
)
from torch_crl.study.study import Answer, Scale, Study
from torch_crl.sweep.grid import Trial, grid

DEPTHS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (4, 16),
    "small": (4, 8, 16),
    "full": (4, 8, 16, 32, 64),
}
# (critic depth, actor depth) to runs.
Cells = dict[tuple[int, int], list[Curve]]


def trials(scale: Scale) -> list[Trial]:
    """Critic depths x actor depths x seeds."""
    depths = DEPTHS[scale]
    axes = {"critic_depth": depths, "actor_depth": depths, "seed": SEEDS[scale]}
    return grid(THREE_TASKS[scale], axes=axes, settings=SETTINGS[scale])


def answer(curves: Sequence[Curve]) -> Answer:
    """Heat maps, what deepening each network adds, and the cheapest pair that is near the best."""
    leaves = ("networks.critic_depth", "networks.actor_depth")
    tasks: dict[str, Cells] = {
        task: grouped(runs, *leaves) for task, runs in by_task(curves).items()
    }
    labelled = {
        task: {f"critic {c}, actor {a}": group for (c, a), group in cells.items()}
        for task, cells in tasks.items()
    }
    effects = [effect for task, cells in tasks.items() for effect in deepening(task, cells)]
    table = Table(
        caption="rise of the mean score when one network or both go from the shallowest to the "
        "deepest; permutation test, not corrected",
        columns=("task", "deepened", "rise", "p", "smallest possible p"),
        rows=tuple(effects),
    )
    estimated = {task: estimates(groups) for task, groups in labelled.items()}
    return Answer(
        findings=(
            *(
                f"{task}: deepening {what}: {rise:+.3g} of the episode at the goal, p = {p:.2g}."
                for task, what, rise, p, _ in effects
            ),
            *(sentence for task, cells in tasks.items() for sentence in _cheapest(task, cells)),
        ),
        sections=(
            Section(
                title="Scores",
                parts=(
                    heat_map_picture(tasks, rows="critic depth", columns="actor depth"),
                    estimates_table(estimated),
                ),
            ),
            Section(title="Which one has to be deep", parts=(table,)),
        ),
    )


def deepening(task: str, cells: Cells) -> list[tuple[str, str, float, float, float]]:
    """(task, what is deepened, rise, p, smallest possible p) from the shallowest corner."""
    low, high = min(min(cells)), max(max(cells))
    corners = {"the actor": (low, high), "the critic": (high, low), "both": (high, high)}
    effects = []
    for what, corner in corners.items():
        if corner in cells and (low, low) in cells and low < high:
            test = permutation_test([scores(cells[corner])], [scores(cells[low, low])])
            effects.append((task, what, test.difference, test.p_value, test.smallest_p))
    return effects


def _cheapest(task: str, cells: Cells) -> list[str]:
    pairs = list(cells)
    means = [float(np.mean(scores(cells[pair]))) for pair in pairs]
    if max(means) <= 0:
        return []
    work = [float(cells[pair][0].recipe.update_cost.flop) for pair in pairs]
    index = cheapest_near_best(work, means)
    critic, actor = pairs[index]
    return [
        f"{task}: the cheapest pair with {BEST_SHARE:.0%} of the best mean score is critic "
        f"{critic}, actor {actor}: {work[index] / max(work):.0%} of the largest pair's operations."
    ]


STUDY = Study(
    question="Is it the actor or the critic that has to be deep, and which is the cheapest pair of "
    "depths that is as good as the best?",
    statistic="Mean score over seeds for every pair of depths. The corners of the map are compared "
    "with the shallowest pair by permutation tests, which exchange the seeds' labels. A pair is "
    "cheap if its updates take few floating-point operations.",
    trials=trials,
    answer=answer,
)
