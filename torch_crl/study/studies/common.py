"""What the studies share: scales, grouping of curves, tables, pictures. X points of a curve."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torch_crl.runs.curves import Curve, common_grid, on_grid, score
from torch_crl.study.pictures import Line, curves_figure, estimates_figure, heat_map_figure
from torch_crl.study.report import Picture, Table
from torch_crl.study.statistics import Estimate, estimate, stratified_bootstrap_interval
from torch_crl.study.study import Scale

# A share rather than a count: tasks whose scores are averaged have episodes of different lengths.
METRIC = "time_at_goal_share"
AT_GOAL = "share of the episode at the goal"
SCORE = f"{AT_GOAL}, mean of the last five evaluations"

TASKS: Mapping[Scale, tuple[str, ...]] = {
    "smoke": ("reacher",),
    "small": ("reacher", "point_u_maze"),
    "full": (
        "humanoid",
        "ant_big_maze",
        "ant_u4_maze",
        "ant_u5_maze",
        "ant_hardest_maze",
        "arm_push_easy",
        "arm_push_hard",
        "arm_binpick_hard",
        "humanoid_u_maze",
        "humanoid_big_maze",
    ),
}
"""Tasks of each scale; those of scale full are the ones in figure 1 of arXiv 2503.14858."""

THREE_TASKS: Mapping[Scale, tuple[str, ...]] = {
    **TASKS,
    "full": ("humanoid", "ant_big_maze", "arm_push_easy"),
}
"""Tasks for grids with two axes beside the seeds; at full scale those of published ablations."""

# With three seeds against three, p on one task cannot be less than 0.1.
SEEDS: Mapping[Scale, range] = {"smoke": range(2), "small": range(5), "full": range(5)}

SETTINGS: Mapping[Scale, Mapping[str, Any]] = {
    "smoke": {
        "num_envs": 16,
        "num_eval_envs": 32,
        "episode_length": 50,
        "width": 32,
        "batch_size": 64,
        "env_steps": 4_000,
        "unroll_length": 20,
        "env_steps_per_update": 32.0,
        "prefill_rows": 60,
        "replay_rows": 1000,
        "evaluations": 5,
        "checkpoints": 1,
        "device": "cpu",
        "torch_threads": 1,
    },
    # The last five evaluations give the score. Of 50 they are the last tenth of the run, not half.
    "small": {"evaluations": 50},
    "full": {"env_steps": 100_000_000},
}
"""Changes to each task's preset. A run of scale smoke takes six seconds on one core, three of them
for the start of its process."""


def grouped(curves: Sequence[Curve], *leaves: str) -> dict[tuple[Any, ...], list[Curve]]:
    """Values of these fields of the recipe to the curves that have them, sorted by the values."""
    groups = defaultdict(list)
    for curve in curves:
        values = curve.recipe.leaves()
        groups[tuple(values[leaf] for leaf in leaves)].append(curve)
    return dict(sorted(groups.items()))


def by_task(curves: Sequence[Curve]) -> dict[str, list[Curve]]:
    """Name of the task to its curves."""
    return {task: group for (task,), group in grouped(curves, "task.name").items()}


def scores(curves: Sequence[Curve]) -> list[float]:
    """The score of each run."""
    return [score(curve, METRIC) for curve in curves]


def estimates(groups: Mapping[str, Sequence[Curve]]) -> dict[str, Estimate]:
    """Label to the interquartile mean over its runs, all of one task."""
    return {label: estimate([scores(curves)]) for label, curves in groups.items()}


def estimates_table(panels: Mapping[str, Mapping[str, Estimate]]) -> Table:
    """A row for each label of each task."""
    return Table(
        caption=f"{SCORE}: interquartile mean over seeds [95 % interval by bootstrap]",
        columns=("task", "setting", "score", "seeds"),
        rows=tuple(
            (task, label, found, sum(found.seeds))
            for task, rows in panels.items()
            for label, found in rows.items()
        ),
    )


def estimates_picture(panels: Mapping[str, Mapping[str, Estimate]]) -> Picture:
    """The same estimates as dots, with bars for their intervals."""
    figure = estimates_figure(panels, x=(AT_GOAL, "share"))
    return Picture(name="scores", caption=SCORE, views={"scores": figure})


def curves_picture(panels: Mapping[str, Mapping[str, Sequence[Curve]]]) -> Picture:
    """Share at the goal by env steps, mean over seeds, in a panel for each task."""
    drawn = {
        task: [_line(label, curves) for label, curves in groups.items()]
        for task, groups in panels.items()
    }
    figure = curves_figure(drawn, x=("env steps", "env steps"), y=(AT_GOAL, "share"))
    caption = "learning curves: mean over seeds, band: 95 % interval by bootstrap over seeds"
    return Picture(name="curves", caption=caption, views={"curves": figure})


def heat_map_picture(
    panels: Mapping[str, Mapping[tuple[int, int], Sequence[Curve]]], *, rows: str, columns: str
) -> Picture:
    """Mean scores of cells (row, column), a panel a title; `rows`, `columns` name what varies."""
    row_values, column_values = (
        sorted({cell[side] for cells in panels.values() for cell in cells}) for side in (0, 1)
    )
    means = {
        title: np.array(
            [
                [
                    np.mean(scores(cells[row, column])) if (row, column) in cells else np.nan
                    for column in column_values
                ]
                for row in row_values
            ]
        )
        for title, cells in panels.items()
    }
    figure = heat_map_figure(
        means, rows=(rows, row_values), columns=(columns, column_values), value=AT_GOAL
    )
    return Picture(name="heat_map", caption=f"{SCORE}: mean over seeds", views={"means": figure})


def _line(label: str, curves: Sequence[Curve]) -> Line:
    grid_X = common_grid(curves, "env_steps")
    values_RX = np.array([on_grid(curve, METRIC, grid_X, "env_steps") for curve in curves])
    interval = stratified_bootstrap_interval([values_RX], statistic=np.average)
    return Line(label=label, x_X=grid_X, y_X=values_RX.mean(axis=0), band=interval)
