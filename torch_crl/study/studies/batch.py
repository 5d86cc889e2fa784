"""Do large batches pay, and only in deep networks?"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch_crl.recipe.presets import preset
from torch_crl.runs.curves import Curve
from torch_crl.study.report import Section, Table
from torch_crl.study.statistics import permutation_test
from torch_crl.study.studies.common import (
    SEEDS,
    SETTINGS,
    TASKS,
    by_task,
    estimates,
    estimates_table,
    heat_map_picture,
    scores,
)
from torch_crl.study.study import SCALES, Answer, Scale, Study
from torch_crl.sweep.grid import Trial, grid

# Batch sizes as multiples of the preset's.
FACTORS: Mapping[Scale, tuple[float, ...]] = {
    "smoke": (0.5, 2),
    "small": (0.25, 1, 4),
    "full": (0.25, 0.5, 1, 2, 4),
}
DEPTHS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (4, 16),
    "small": (4, 16),
    "full": (4, 8, 16, 64),
}
FULL_TASKS = ("humanoid",)
# (depth, batch size) to runs.
Cells = dict[tuple[int, int], list[Curve]]


def trials(scale: Scale) -> list[Trial]:
    """Batch sizes x depths x seeds, each at equal updates and at equal samples."""
    seeds = range(1) if scale == "smoke" else SEEDS[scale]
    found = []
    for task in FULL_TASKS if scale == "full" else TASKS[scale]:
        batch, interval = _base(task, scale)
        varied = ("batch_size", "env_steps_per_update")
        settings = {name: value for name, value in SETTINGS[scale].items() if name not in varied}
        for factor in FACTORS[scale]:
            # At equal samples, a batch twice as large has half as many updates.
            axes: dict[str, Any] = {
                "batch_size": (int(batch * factor),),
                "env_steps_per_update": tuple(dict.fromkeys((interval, interval * factor))),
                "depth": DEPTHS[scale],
                "seed": seeds,
            }
            found += grid([task], axes=axes, settings=settings)
    return found


def _base(task: str, scale: Scale) -> tuple[int, float]:
    """The batch size and the env steps per update of which a task's others are multiples."""
    base, settings = preset(task), SETTINGS[scale]
    return (
        settings.get("batch_size", base.algorithm.batch_size),
        settings.get("env_steps_per_update", base.budget.env_steps_per_update),
    )


def split(curves: Sequence[Curve]) -> dict[str, Cells]:
    """The runs of one task by comparison, `equal updates` or `equal samples`, and by Cells' key.

    Which run belongs to which is read from the trials of their scale, since runs may be missing.
    """
    first = curves[0].recipe
    scale = next(scale for scale in SCALES if first in {trial.recipe for trial in trials(scale)})
    batch, common = _base(first.task.name, scale)
    cells: dict[str, Cells] = {"equal updates": {}, "equal samples": {}}
    for curve in curves:
        recipe = curve.recipe
        size, interval = recipe.algorithm.batch_size, recipe.budget.env_steps_per_update
        key = (recipe.networks.critic_depth, size)
        if interval == common:
            cells["equal updates"].setdefault(key, []).append(curve)
        if size / interval == batch / common:
            cells["equal samples"].setdefault(key, []).append(curve)
    return cells


def gains(cells: Cells) -> list[tuple[int, int, int, float, float, float]]:
    """(depth, smallest batch, largest batch, rise, p, smallest possible p) for every depth."""
    rows = []
    for depth in sorted({depth for depth, _ in cells}):
        batches = [batch for other, batch in cells if other == depth]
        low, high = min(batches), max(batches)
        if low < high:
            test = permutation_test([scores(cells[depth, high])], [scores(cells[depth, low])])
            found = (test.difference, test.p_value, test.smallest_p)
            rows.append((depth, low, high, *found))
    return rows


def answer(curves: Sequence[Curve]) -> Answer:
    """What the largest batch adds over the smallest, by depth, in both comparisons."""
    panels = {
        f"{task}, {kind}": cells
        for task, runs in by_task(curves).items()
        for kind, cells in split(runs).items()
        if cells
    }
    labelled = {
        panel: {f"depth {depth}, batch {batch}": group for (depth, batch), group in cells.items()}
        for panel, cells in panels.items()
    }
    rows = [(panel, *row) for panel, cells in panels.items() for row in gains(cells)]
    table = Table(
        caption="rise of the mean score from the smallest to the largest batch; permutation test, "
        "not corrected",
        columns=("comparison", "depth", "from", "to", "rise", "p", "smallest possible p"),
        rows=tuple(rows),
    )
    estimated = {panel: estimates(groups) for panel, groups in labelled.items()}
    return Answer(
        findings=tuple(
            f"{panel}: at depth {depth} batch {high} against {low}: {rise:+.3g} of the episode at "
            f"the goal, p = {p:.2g}."
            for panel, depth, low, high, rise, p, _ in rows
        ),
        sections=(
            Section(
                title="Scores",
                parts=(
                    heat_map_picture(panels, rows="depth", columns="batch size"),
                    estimates_table(estimated),
                ),
            ),
            Section(title="What a larger batch adds", parts=(table,)),
        ),
    )


STUDY = Study(
    question="Do larger batches help deep networks more than shallow ones, at equal updates and at "
    "equal samples?",
    statistic="At equal updates every batch size has the same number of updates, so that larger "
    "ones see each transition more often; at equal samples, updates times batch size is constant. "
    "At each depth the largest batch is compared with the smallest by a permutation test, which "
    "exchanges the seeds' labels.",
    trials=trials,
    answer=answer,
)
