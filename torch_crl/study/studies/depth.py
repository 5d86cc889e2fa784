"""From which depth on does depth pay?"""

from collections.abc import Mapping, Sequence

from torch_crl.runs.curves import Curve
from torch_crl.study.critical_depth import CriticalDepth, critical_depth
from torch_crl.study.report import Section, Table
from torch_crl.study.statistics import LEVEL
from torch_crl.study.studies.common import (
    SEEDS,
    SETTINGS,
    TASKS,
    by_task,
    curves_picture,
    estimates,
    estimates_picture,
    estimates_table,
    grouped,
    scores,
)
from torch_crl.study.study import Answer, Scale, Study
from torch_crl.sweep.grid import Trial, grid

DEPTHS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (4, 8, 16),
    "small": (4, 8, 16, 32),
    "full": (4, 8, 16, 32, 64),
}


def trials(scale: Scale) -> list[Trial]:
    """Depths x seeds."""
    axes = {"depth": DEPTHS[scale], "seed": SEEDS[scale]}
    return grid(TASKS[scale], axes=axes, settings=SETTINGS[scale])


def answer(curves: Sequence[Curve]) -> Answer:
    """The critical depth of each task."""
    depths = {
        task: {depth: group for (depth,), group in grouped(runs, "networks.critic_depth").items()}
        for task, runs in by_task(curves).items()
    }
    labelled = {
        task: {f"depth {depth}": group for depth, group in groups.items()}
        for task, groups in depths.items()
    }
    found = {
        task: critical_depth({depth: scores(group) for depth, group in groups.items()})
        for task, groups in depths.items()
        if len(groups) > 1
    }
    points = {task: estimates(groups) for task, groups in labelled.items()}
    pictures = (estimates_picture(points), estimates_table(points), curves_picture(labelled))
    return Answer(
        findings=tuple(_sentence(task, critical) for task, critical in found.items()),
        sections=(
            Section(title="Scores by depth", parts=pictures),
            Section(title="The jump", parts=(_steps(found), _stability(found))),
        ),
        data={"critical_depth": found},
    )


def _sentence(task: str, found: CriticalDepth) -> str:
    step = found.jump
    if step is None:
        return f"{task}: no deeper network was better than the next shallower one."
    stable = (
        "one seed, so its stability is unknown"
        if found.stability is None
        else f"the same in {found.stability[found.depth]:.0%} of the resamples of the seeds"
    )
    luck = "more than luck" if step.p_value < LEVEL else "no more than luck can do"
    return (
        f"{task}: the largest jump is at depth {found.depth}, {step.rise:+.3g} of the episode at "
        f"the goal from depth {step.shallow}, {found.share_of_rise:.0%} of all rises; it is {luck} "
        f"(corrected p = {step.p_value:.2g}, at best {step.smallest_p:.2g} with these seeds); "
        f"{stable}."
    )


def _steps(found: Mapping[str, CriticalDepth]) -> Table:
    return Table(
        caption="steps between neighbouring depths; permutation test, corrected by Holm's method",
        columns=("task", "from", "to", "rise of the mean", "p", "smallest possible p"),
        rows=tuple(
            (task, step.shallow, step.deep, step.rise, step.p_value, step.smallest_p)
            for task, critical in found.items()
            for step in critical.steps
        ),
    )


def _stability(found: Mapping[str, CriticalDepth]) -> Table:
    return Table(
        caption="share of the resamples of the seeds in which a depth is the critical one",
        columns=("task", "depth", "share"),
        rows=tuple(
            (task, "none" if depth is None else str(depth), share)
            for task, critical in found.items()
            for depth, share in (critical.stability or {}).items()
        ),
    )


STUDY = Study(
    question="From which depth on does depth pay: where is the jump between neighbouring depths, "
    "is it more than luck, and would other seeds show it at the same depth?",
    statistic="The critical depth of a task is the deeper end of the step with the largest rise of "
    "the mean score. Each step is tested by a two-sided permutation test, which exchanges the "
    "seeds' labels, with p values corrected for the number of steps. Stability is the share of "
    "bootstrap resamples, drawn within each depth, that have the same critical depth.",
    trials=trials,
    answer=answer,
)
