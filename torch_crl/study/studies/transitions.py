"""Does learning start slowly, and is the start counted in transitions or in updates?"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from torch_crl.recipe.presets import preset
from torch_crl.runs.curves import Curve, common_grid, on_grid
from torch_crl.study.change_points import SMALLEST, Onset, onset
from torch_crl.study.report import Section, Table, Text
from torch_crl.study.statistics import LEVEL
from torch_crl.study.studies.common import (
    METRIC,
    SEEDS,
    SETTINGS,
    THREE_TASKS,
    by_task,
    curves_picture,
    grouped,
)
from torch_crl.study.study import Answer, Scale, Study
from torch_crl.sweep.grid import Trial, grid

# Multiples of the preset's env steps per update.
FACTORS = (0.5, 2.0)
DEPTHS: Mapping[Scale, tuple[int, ...]] = {"smoke": (4,), "small": (4, 16), "full": (4, 16, 64)}
EVALUATIONS: Mapping[Scale, int] = {"smoke": 10, "small": 50, "full": 100}


class Start(NamedTuple):
    """The change point of the learning curve of one setting."""

    task: str
    depth: int
    env_steps_per_update: float
    found: Onset
    updates: float
    """Number of updates at the onset."""


def trials(scale: Scale) -> list[Trial]:
    """Update-to-data ratios x depths x seeds, with many evaluations."""
    found = []
    for task in THREE_TASKS[scale]:
        settings = {**SETTINGS[scale], "evaluations": EVALUATIONS[scale]}
        interval = settings.pop("env_steps_per_update", preset(task).budget.env_steps_per_update)
        axes = {
            "env_steps_per_update": tuple(interval * factor for factor in FACTORS),
            "depth": DEPTHS[scale],
            "seed": SEEDS[scale],
        }
        found += grid([task], axes=axes, settings=settings)
    return found


def starts(curves: Sequence[Curve]) -> list[Start]:
    """The start of every task, depth and update-to-data ratio with enough evaluations."""
    leaves = ("task.name", "networks.critic_depth", "budget.env_steps_per_update")
    rows = []
    for (task, depth, interval), runs in grouped(curves, *leaves).items():
        steps_X = common_grid(runs, "env_steps")
        if len(steps_X) < SMALLEST:
            continue
        values_RX = [on_grid(curve, METRIC, steps_X, "env_steps") for curve in runs]
        found = onset(steps_X, values_RX)
        updates = float(np.interp(found.ramp.onset, runs[0].env_steps_E, runs[0].updates_E))
        rows.append(Start(task, depth, interval, found, updates))
    return rows


def answer(curves: Sequence[Curve]) -> Answer:
    """Change points, their tests, and whether onsets agree better in transitions or in updates."""
    rows = starts(curves)
    table = Table(
        caption="change points of the mean learning curve over seeds [95 % of resampled seeds]",
        columns=(
            "task",
            "depth",
            "env steps per update",
            "onset, env steps",
            "interval",
            "onset, updates",
            "from",
            "to",
            "p of change",
            "p of a slow start",
            "seeds",
        ),
        rows=tuple(
            (
                row.task,
                row.depth,
                row.env_steps_per_update,
                row.found.ramp.onset,
                "none"
                if row.found.interval is None
                else "{:,.0f} to {:,.0f}".format(*row.found.interval),
                row.updates,
                row.found.ramp.low,
                row.found.ramp.high,
                row.found.change_p,
                row.found.slow_start_p,
                row.found.seeds,
            )
            for row in rows
        ),
    )
    labelled = {
        task: {
            f"depth {depth}, one update for {interval:g} env steps": group
            for (depth, interval), group in grouped(
                runs, "networks.critic_depth", "budget.env_steps_per_update"
            ).items()
        }
        for task, runs in by_task(curves).items()
    }
    return Answer(
        findings=(*map(_sentence, rows), *agreement(rows)),
        sections=(
            Section(title="Learning curves", parts=(curves_picture(labelled),)),
            Section(title="Change points", parts=(table, Text(text=_READING))),
        ),
    )


def agreement(rows: Sequence[Start]) -> list[str]:
    """For each task and depth with slow starts: do onsets differ less in steps or in updates?"""
    sentences = []
    for task, depth in dict.fromkeys((row.task, row.depth) for row in rows):
        real = [row for row in rows if (row.task, row.depth) == (task, depth) and _is_real(row)]
        if len(real) < 2:
            continue
        steps, updates = (
            max(values) / max(min(values), 1.0)
            for values in ([row.found.ramp.onset for row in real], [row.updates for row in real])
        )
        by_steps, by_updates = f"{steps:.2g}", f"{updates:.2g}"
        verdict = f"nearer to a count of {'transitions' if steps < updates else 'updates'}"
        if by_steps == by_updates:
            verdict = "equally near to both"
        sentences.append(
            f"{task}, depth {depth}: across update-to-data ratios the onset differs by a factor of "
            f"{by_steps} in transitions and {by_updates} in updates: it is {verdict}."
        )
    return sentences


def _is_real(row: Start) -> bool:
    return row.found.change_p <= LEVEL and row.found.slow_start_p <= LEVEL


def _sentence(row: Start) -> str:
    where = f"{row.task}, depth {row.depth}, one update for {row.env_steps_per_update:g} env steps"
    found = row.found
    if found.change_p > LEVEL:
        return f"{where}: no change in the learning curve, p = {found.change_p:.2g}."
    if found.slow_start_p > LEVEL:
        return (
            f"{where}: learning begins with training, p of a slow start {found.slow_start_p:.2g}."
        )
    return (
        f"{where}: a slow start, with little learned before {found.ramp.onset:,.0f} transitions "
        f"({row.updates:,.0f} updates), p = {found.slow_start_p:.2g}."
    )


_READING = """A ramp is fitted: flat until the onset, then linear to a plateau. `p of change` tests
it against a constant curve, `p of a slow start` against a ramp that begins at the first
evaluation; neither is corrected for the number of curves. A slow start need not be a jump: a smooth
curve that begins slowly is found too. If the noise of neighbouring evaluations is correlated,
`p of change` is too small: at 0.05 it finds a change in up to 13 % of the flat curves."""

STUDY = Study(
    question="Is there a number of transitions before which little is learned, by task and by "
    "update-to-data ratio?",
    statistic="The onset of the least-squares ramp through the mean learning curve, tested against "
    "no change and against learning from the start, each with simulated noise that is as "
    "correlated as the residuals (torch_crl.study.change_points).",
    trials=trials,
    answer=answer,
)
