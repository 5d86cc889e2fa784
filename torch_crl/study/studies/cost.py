"""Which depth is worth its cost, in training and in use?"""

import statistics
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from torch_crl.runs.curves import Curve
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import load_policy
from torch_crl.study.pareto import BEST_SHARE, cheapest_near_best, pareto_front
from torch_crl.study.pictures import Line, Unit, curves_figure
from torch_crl.study.report import Picture, Section, Table, Text
from torch_crl.study.studies import depth
from torch_crl.study.studies.common import (
    AT_GOAL,
    SCORE,
    by_task,
    estimates,
    estimates_table,
    grouped,
    scores,
)
from torch_crl.study.study import Answer, Study
from torch_crl.system.machine import machine
from torch_crl.system.threads import torch_threads

CALLS = 50


class Point(NamedTuple):
    """One depth on one task."""

    depth: int
    score: float
    """Mean over seeds."""
    hours: float
    """Wall-clock of a run, evaluations included, mean over seeds."""
    latency_ms: float | None
    """Median latency of the policy for one state on one CPU thread; None if no run kept one."""


def answer(curves: Sequence[Curve]) -> Answer:
    """Pareto fronts of the share of the episode at the goal against wall-clock and latency."""
    tasks = {
        task: {depth: group for (depth,), group in grouped(runs, "networks.critic_depth").items()}
        for task, runs in by_task(curves).items()
    }
    points = {
        task: [
            Point(
                depth=depth,
                score=float(np.mean(scores(runs))),
                hours=float(np.mean([run.seconds_E[-1] for run in runs])) / 3600,
                latency_ms=_latency_ms(runs),
            )
            for depth, runs in groups.items()
        ]
        for task, groups in tasks.items()
    }
    estimated = {
        task: estimates({f"depth {depth}": runs for depth, runs in groups.items()})
        for task, groups in tasks.items()
    }
    return Answer(
        findings=tuple(s for task, found in points.items() for s in recommendations(task, found)),
        sections=(
            Section(
                title="Fronts",
                parts=(_picture(points), _table(points), Text(text=_reading(curves))),
            ),
            Section(title="Scores", parts=(estimates_table(estimated),)),
        ),
    )


def recommendations(task: str, points: Sequence[Point]) -> list[str]:
    """The cheapest depth near the best, by the time of training and by the policy's latency."""
    values = [point.score for point in points]
    if max(values) <= 0:
        return [f"{task}: no depth ever stayed at the goal."]
    trained = points[cheapest_near_best([point.hours for point in points], values)]
    found = (
        f"{task}: the cheapest depth with {BEST_SHARE:.0%} of the best mean score is "
        f"{trained.depth} by training ({trained.hours:.3g} wall-clock hours)"
    )
    latencies = _latencies(points)
    if latencies is None:
        unknown = ", ".join(str(point.depth) for point in points if point.latency_ms is None)
        missing = f"the runs of depth {unknown} were kept without policies"
        return [f"{found}; by latency none can be told, since {missing}."]
    used = cheapest_near_best(latencies, values)
    return [f"{found} and {points[used].depth} by latency ({latencies[used]:.3g} ms)."]


def _latencies(points: Sequence[Point]) -> list[float] | None:
    """The latency of every depth; None if one is not known, which may be the cheapest."""
    known = [point.latency_ms for point in points if point.latency_ms is not None]
    return known if len(known) == len(points) else None


@torch_threads(1)
def _latency_ms(curves: Sequence[Curve]) -> float | None:
    run_dirs = [curve.run_dir for curve in curves if RunDirectory(curve.run_dir).saved_policies]
    if not run_dirs:
        return None
    policy = load_policy(run_dirs[0])
    state, goal = torch.zeros(policy.state_size), torch.zeros(policy.goal_size)
    times = []
    for _ in range(CALLS):
        begin = time.perf_counter()
        policy.plan(state, goal)
        times.append(time.perf_counter() - begin)
    # The first calls are left out, since caches are still cold.
    return 1e3 * statistics.median(times[CALLS // 5 :])


def _table(points: Mapping[str, Sequence[Point]]) -> Table:
    rows = []
    for task, found in points.items():
        values = [point.score for point in found]
        fronts = [
            None if costs is None else pareto_front(costs, values)
            for costs in ([point.hours for point in found], _latencies(found))
        ]
        for index, point in enumerate(found):
            on = (None if front is None else "yes" if index in front else "no" for front in fronts)
            rows.append((task, *point, *on))
    return Table(
        caption="every depth; it is on a front if no other is cheaper and as good, or as cheap and "
        "better",
        columns=(
            "task",
            "depth",
            "score",
            "wall-clock of a run, hours",
            "latency, ms",
            "front: wall-clock",
            "front: latency",
        ),
        rows=tuple(rows),
    )


def _picture(points: Mapping[str, Sequence[Point]]) -> Picture:
    views = {}
    axes: dict[str, tuple[str, Unit]] = {
        "wall-clock": ("wall-clock of a run", "seconds"),
        "latency": ("latency of the policy, ms", "plain"),
    }
    for view, axis in axes.items():
        panels = {}
        for task, found in points.items():
            seconds = [3600 * point.hours for point in found]
            costs = seconds if view == "wall-clock" else _latencies(found)
            if costs is None:
                continue
            values = [point.score for point in found]
            front = pareto_front(costs, values)
            lines = [
                Line(
                    label="front",
                    x_X=np.array([costs[index] for index in front]),
                    y_X=np.array([values[index] for index in front]),
                )
            ]
            for point, cost in zip(found, costs, strict=True):
                x_X, y_X = np.array([cost]), np.array([point.score])
                lines.append(Line(label=f"depth {point.depth}", x_X=x_X, y_X=y_X))
            panels[task] = lines
        if panels:
            views[view] = curves_figure(panels, x=axis, y=(AT_GOAL, "share"))
    return Picture(name="fronts", caption=f"{SCORE}: mean over seeds, and its cost", views=views)


def _trained_on(curve: Curve) -> str:
    result = RunDirectory(curve.run_dir).read_result()
    # Runs of older versions do not record it.
    where = result.machine.get("device", "machine not known")
    return f"--device {curve.recipe.system.device}, {where}"


def _reading(curves: Sequence[Curve]) -> str:
    machines = " and ".join(sorted({_trained_on(curve) for curve in curves}))
    return (
        f"Wall-clock is that of a whole run on one device ({machines}), with collection and "
        "evaluations; it does not measure how busy the device was. It compares depths only if all "
        "runs had an equal share of the machine: if --parallel is more than the machine has room "
        "for, they slow each other down. Latency is on one CPU thread of the machine that wrote "
        f"this report: {machine()['device']}."
    )


STUDY = Study(
    question="Which depths are worth their cost: the share of the episode at the goal against "
    "the wall-clock of training and against the policy's latency, and the cheapest depth that "
    "reaches 95 % of the best?",
    statistic="The runs are those of the study `depth`. A depth is on the front if no other is "
    "cheaper and as good, or as cheap and better, by mean scores over seeds.",
    trials=depth.trials,
    answer=answer,
    runs_of="depth",
)
