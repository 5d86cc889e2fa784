"""Which method is first on each task, and how others compare with plain contrastive RL."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from torch_crl.envs.task_name import parse_task_name
from torch_crl.recipe.record import Recipe
from torch_crl.study.compare import Comparison
from torch_crl.study.report import Cell, Table, shown
from torch_crl.study.statistics import LEVEL, corrected, permutation_test
from torch_crl.study.study import NOT_RUN

PLAIN = "crl"
"""The objective that others are compared with."""
# Prefix of registered names to what kind of task it is; the first that fits counts.
_KINDS = (
    ("reacher", "arm of two joints"),
    ("point_", "maze, without falls"),
    ("arm_reach", "robot arm, free space"),
    ("arm_", "robot arm with an object"),
    ("pusher", "robot arm with an object"),
    ("ant_", "maze, walking"),
    ("humanoid_", "maze, walking"),
    ("ant", "walking"),
    ("humanoid", "walking"),
)


_LEAST_SHARE = 0.01
"""Of an episode at the goal; whoever has less has met it by chance, and nobody is first there."""


class First(NamedTuple):
    """The method with the highest score on a task, and the plainest one."""

    task: str
    method: str
    plain: str
    """Contrastive RL at the least depth, without chunks of actions if it was run so; empty if it
    was not run."""
    p_value: float
    """Of a permutation test of the seeds of the two; 1 if the plain method is the first or was not
    run. Three seeds each never give less than 0.1."""
    told_apart: bool
    """Whether the plain method's interval ends below that of the first, and p is at most 0.05."""
    reached: bool
    """Whether the first one is at the goal for more than passing by: a hundredth of the time."""
    alone: bool
    """Whether nothing else was run."""


def first_method(comparison: Comparison, task: str) -> First:
    """The first and the plainest method on a task."""
    methods = _methods(comparison, task)
    best = max(methods, key=lambda method: comparison.estimate(method, task=task).point)
    plainness = {method: _plainness(comparison, task, method) for method in methods}
    plain = min(plainness, key=plainness.__getitem__)
    theirs, ours = (comparison.estimate(method, task=task).interval for method in (plain, best))
    contrastive = not plainness[plain].other_objective
    below = contrastive and theirs is not None and ours is not None and theirs[1] < ours[0]
    p_value = _p_value(comparison, task, best, plain) if contrastive and plain != best else 1.0
    return First(
        task=task,
        method=best,
        plain=plain if contrastive else "",
        p_value=p_value,
        told_apart=below and p_value <= LEVEL,
        reached=comparison.estimate(best, task=task).point >= _LEAST_SHARE,
        alone=len(methods) == 1,
    )


def _p_value(comparison: Comparison, task: str, ours: str, theirs: str) -> float:
    scores = ([comparison.scores(task, method)] for method in (ours, theirs))
    return permutation_test(*scores).p_value


def _methods(comparison: Comparison, task: str) -> list[str]:
    return [method for method in comparison.methods if (task, method) in comparison.runs]


def _recipe(comparison: Comparison, task: str, method: str) -> Recipe:
    return comparison.runs[task, method][0].recipe


class _Plainness(NamedTuple):
    """The plainest method has the least of these."""

    other_objective: bool
    depth: int
    chunk: int


def _plainness(comparison: Comparison, task: str, method: str) -> _Plainness:
    recipe = _recipe(comparison, task, method)
    algorithm = recipe.algorithm
    return _Plainness(algorithm.objective != PLAIN, recipe.networks.critic_depth, algorithm.chunk)


def _kind(task: str) -> str:
    """What kind of task it is; empty for one that is not registered."""
    if parse_task_name(task).kind != "registered":
        return ""
    return next((kind for prefix, kind in _KINDS if task.startswith(prefix)), "")


def summary(firsts: Sequence[First]) -> str:
    """Where plain contrastive RL is enough, where something else is better, and what is open."""
    compared = [first for first in firsts if first.plain and first.reached and not first.alone]
    enough = ", ".join(first.task for first in compared if not first.told_apart)
    better = "; ".join(f"{first.method} on {first.task}" for first in compared if first.told_apart)
    nowhere = ", ".join(first.task for first in firsts if not first.reached)
    alone = ", ".join(first.task for first in firsts if first.reached and first.alone)
    sentences = [
        "Start with contrastive RL at the least depth: it is first, or the seeds do not tell it "
        f"from the first, on {enough}."
        if enough
        else "",
        f"Ahead of plain contrastive RL beyond chance: {better}." if better else "",
        f"One method alone was run on {alone}." if alone else "",
        f"No method was at the goal for {_LEAST_SHARE:.0%} of its last evaluations on {nowhere}."
        if nowhere
        else "",
    ]
    return " ".join(filter(None, sentences)) or "Contrastive RL was not run on any task."


def sentence(comparison: Comparison, first: First) -> str:
    """What was found on one task."""
    task = first.task
    methods = _methods(comparison, task)
    score = {method: shown(comparison.estimate(method, task=task)) for method in methods}
    kind = f" ({_kind(task)})" if _kind(task) else ""
    if not first.reached:
        tried = ", ".join(methods)
        most = score[first.method]
        return (
            f"{task}{kind}: hardly ever at the goal in the last evaluations, at most for a share "
            f"of {most}; tried: {tried}."
        )
    told = (
        f"{task}{kind}: {first.method} is first, at the goal for a share of {score[first.method]}"
    )
    if first.plain in ("", first.method):
        others = [method for method in methods if method != first.method]
        if not others:
            return f"{told}; nothing else was run."
        following = max(others, key=lambda method: comparison.estimate(method, task=task).point)
        return f"{told}; next is {following} with {score[following]}."
    told += f"; {first.plain} has {score[first.plain]}"
    share = _times_the_minutes(comparison, task, first.plain, first.method)
    told += "" if share is None else f" in {share:.2g} of the time"
    p = f"p = {first.p_value:.2g}"
    if first.told_apart:
        return f"{told} ({p})."
    return f"{told}; the seeds do not tell them apart ({p} by a permutation test)."


def _minutes(comparison: Comparison, task: str, method: str) -> float:
    """Median wall-clock of a run."""
    runs = comparison.runs[task, method]
    return float(np.median([run.seconds_E[-1] for run in runs])) / 60


def _times_the_minutes(comparison: Comparison, task: str, ours: str, theirs: str) -> float | None:
    """The ratio of their wall-clock; None unless all of their runs used the same kernels."""
    runs = [run for method in (ours, theirs) for run in comparison.runs[task, method]]
    if len({run.computed for run in runs}) > 1:
        return None
    return _minutes(comparison, task, ours) / _minutes(comparison, task, theirs)


def first_table(comparison: Comparison, firsts: Sequence[First]) -> Table:
    """A row for each task: its kind, its first method and the plainest one, with their minutes."""
    return Table(
        caption="The method with the highest score on each task beside plain contrastive RL. "
        "Intervals that overlap tell no difference; those of three seeds are short by chance.",
        columns=(
            *("task", "kind", "first", "time at goal", "minutes"),
            *("plain", "its time at goal", "its minutes"),
        ),
        rows=tuple(
            (
                first.task,
                _kind(first.task),
                *_cells(comparison, first.task, first.method),
                *_cells(comparison, first.task, first.plain),
            )
            for first in firsts
        ),
    )


def _cells(comparison: Comparison, task: str, method: str) -> tuple[Cell, Cell, Cell]:
    if not method:
        return NOT_RUN, None, None
    return (
        method,
        comparison.estimate(method, task=task),
        _minutes(comparison, task, method),
    )


def against_table(comparison: Comparison) -> Table:
    """Every method against contrastive RL of the same depth, with the least chunk."""
    pairs = []
    for task in comparison.tasks:
        methods = _methods(comparison, task)
        for method in methods:
            depth = _recipe(comparison, task, method).networks.critic_depth
            rivals = [
                other
                for other in methods
                if _plainness(comparison, task, other)[:2] == (False, depth)
            ]
            base = min(rivals, key=lambda name: _plainness(comparison, task, name), default=method)
            if base != method:
                pairs.append((task, method, base))
    return _tests_table(
        comparison,
        pairs,
        caption="mean score minus that of contrastive RL at the same depth; permutation test, p "
        "corrected by Holm's method over the rows",
        columns=("task", "method", "against"),
    )


def depth_table(comparison: Comparison) -> Table:
    """The deepest against the shallowest runs of methods that differ in nothing else."""
    pairs = []
    for task in comparison.tasks:
        alike: dict[tuple[str, int], list[str]] = {}
        for method in _methods(comparison, task):
            algorithm = _recipe(comparison, task, method).algorithm
            alike.setdefault((algorithm.objective, algorithm.chunk), []).append(method)
        pairs += [(task, methods[-1], methods[0]) for methods in alike.values() if methods[1:]]
    return _tests_table(
        comparison,
        pairs,
        caption="mean score minus that at the least depth; permutation test, p corrected by Holm's "
        "method over the rows",
        columns=("task", "deep", "shallow"),
    )


def _tests_table(
    comparison: Comparison,
    pairs: Sequence[tuple[str, str, str]],
    *,
    caption: str,
    columns: tuple[str, str, str],
) -> Table:
    tests = corrected(
        [
            permutation_test([comparison.scores(task, ours)], [comparison.scores(task, theirs)])
            for task, ours, theirs in pairs
        ]
    )
    return Table(
        caption=f"{caption}; no ratio of minutes where the runs did not use the same kernels",
        columns=(*columns, "difference", "p", "smallest possible p", "times the minutes"),
        rows=tuple(
            (
                *(task, ours, theirs),
                *(test.difference, test.p_value, test.smallest_p),
                _times_the_minutes(comparison, task, ours, theirs),
            )
            for (task, ours, theirs), test in zip(pairs, tests, strict=True)
        ),
    )
