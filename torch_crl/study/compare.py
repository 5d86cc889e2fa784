"""Comparison of methods on the same tasks: their trials, their runs grouped, and the numbers.

A method is an algorithm with its depth and all other settings that differ between runs on a task.
Legend: R seeds, X points of a grid.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from torch_crl.recipe.checks import RecipeError
from torch_crl.recipe.marks import Mark, marked
from torch_crl.recipe.method import METHODS, method_name
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.curves import (
    ROUNDING,
    Axis,
    Curve,
    CurveError,
    check_comparable,
    common_grid,
    first_reached,
    on_grid,
    score,
)
from torch_crl.study.pictures import Line
from torch_crl.study.statistics import (
    Array,
    Estimate,
    PermutationTest,
    estimate,
    permutation_test,
    pooled,
    probability_of_improvement,
    stratified_bootstrap_interval,
)
from torch_crl.sweep.grid import Trial, grid

METRIC = "time_at_goal_share"
# Fields that the method's name already contains, and fields that do not change the results. Any
# other field that differs between runs of one name on one task becomes part of the name, on every
# task: otherwise one method would have two names, and two methods the same one.
_NOT_IN_NAME = {
    *marked(Recipe, Mark.IN_METHOD_NAME),
    *marked(Recipe, Mark.NOT_OF_METHOD),
}
_POINTS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Comparable runs by task and method, each seed once."""

    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    """Sorted by algorithm and depth; their order decides colours and rows."""
    runs: dict[tuple[str, str], list[Curve]]
    """(task, method) to its runs, sorted by seed; not every method needs runs on every task."""

    @property
    def everywhere(self) -> tuple[str, ...]:
        """The methods with runs on every task: only these can be averaged over tasks."""
        return tuple(
            method
            for method in self.methods
            if all((task, method) in self.runs for task in self.tasks)
        )

    def on(self, task: str) -> list[Curve]:
        """All runs on a task."""
        return [
            curve for (name, _), curves in self.runs.items() if name == task for curve in curves
        ]

    def scores(self, task: str, method: str, metric: str = METRIC) -> list[float]:
        """Score of each seed: the mean of its last five evaluations."""
        return [score(curve, metric) for curve in self.runs[task, method]]

    def estimate(self, method: str, *, task: str = "", metric: str = METRIC) -> Estimate:
        """Interquartile mean of the scores on a task, or on all tasks if none is given.

        All tasks count alike, however many seeds each has.
        """
        tasks = (task,) if task else self.tasks
        return estimate([self.scores(name, method, metric) for name in tasks])

    def over_run(self, task: str, method: str, metric: str = METRIC) -> Estimate:
        """As `estimate`, of the mean of all evaluations of each run: who learns sooner has more."""
        curves = self.runs[task, method]
        return estimate([[float(curve.metric(metric).mean()) for curve in curves]])

    def ranked(self) -> list[str]:
        """The methods with runs on every task, best first."""
        return sorted(self.everywhere, key=lambda method: -self.estimate(method).point)

    def test(self, ours: str, theirs: str, *, task: str = "") -> PermutationTest:
        """Permutation test of whether two methods' scores differ on a task, or over all tasks."""
        if task:
            return permutation_test([self.scores(task, ours)], [self.scores(task, theirs)])
        return permutation_test(self._strata(ours), self._strata(theirs))

    def improvement(self, ours: str, theirs: str) -> Estimate:
        """Probability that a seed of `ours` scores more than one of `theirs`."""
        return probability_of_improvement(self._strata(ours), self._strata(theirs))

    def seeds(self, task: str = "") -> list[int]:
        """Number of seeds of each method, on one task or on every task."""
        return [len(curves) for (name, _), curves in self.runs.items() if task in ("", name)]

    def single_seeds(self) -> list[str]:
        """Methods and tasks with only one seed, which give no interval."""
        return [
            f"{method} on {task}" for (task, method), curves in self.runs.items() if len(curves) < 2
        ]

    def _strata(self, method: str) -> list[list[float]]:
        return [self.scores(task, method) for task in self.tasks]


def comparison_trials(
    tasks: Sequence[str],
    *,
    algos: Sequence[str],
    depths: Sequence[int] = (),
    seeds: int = 3,
    reward: str = "sparse",
    settings: dict[str, Any] | None = None,
) -> list[Trial]:
    """Trials of every task x algorithm x depth x seed, from each task's preset.

    Without depths each trial has its preset's own. The reward is that of the baselines; `settings`
    are fields of the recipe that all trials share, such as `env_steps`. Raises RecipeError with all
    unknown names and values.
    """
    axes: dict[str, Sequence[Any]] = {"algo": algos}
    if depths:
        axes["depth"] = depths
    trials = grid(tasks, axes=axes | {"seed": list(range(seeds))}, settings=settings)
    # Depth 0 is the preset's own, which may be given as a number too: equal trials are kept once.
    distinct = {trial.recipe: trial for trial in reversed(trials)}
    _check_budgets(list(distinct.values()))
    return [_rewarded(trial, reward) for trial in reversed(distinct.values())]


def _check_budgets(trials: Sequence[Trial]) -> None:
    """Raise RecipeError if runs on one task would end too far apart to be compared.

    Each algorithm rounds its env steps up to whole collections of its own.
    """
    problems = []
    for task in dict.fromkeys(trial.recipe.task.name for trial in trials):
        steps = {
            trial.recipe.algorithm.algo: trial.recipe.total_env_steps
            for trial in trials
            if trial.recipe.task.name == task
        }
        fewest, most = min(steps, key=steps.__getitem__), max(steps, key=steps.__getitem__)
        if steps[most] > (1 + ROUNDING) * steps[fewest]:
            problems.append(
                f"{task}: {fewest} would end at {steps[fewest]:,} env steps and {most} at "
                f"{steps[most]:,}, each after whole collections of its own: they could not be "
                "compared; raise --env-steps"
            )
    if problems:
        raise RecipeError(problems)


def _rewarded(trial: Trial, reward: str) -> Trial:
    """A baseline's trial with this reward and its own run directory; other trials unchanged."""
    if not trial.recipe.by_library or reward == trial.recipe.baseline.reward:
        return trial
    recipe = with_changes(trial.recipe, baseline={"reward": reward})
    return Trial(name=f"{trial.name}_{reward}", recipe=recipe)


def compare(curves: Sequence[Curve]) -> Comparison:
    """Group runs by task and method.

    Raises CurveError if runs have different budgets or evaluations, or if a seed occurs twice.
    """
    if not curves:
        raise CurveError("there are no runs to compare")
    check_comparable(curves)
    named = defaultdict(list)
    for curve in curves:
        recipe = curve.recipe
        named[recipe.task.name, method_name(recipe)].append((curve, recipe.leaves()))
    varied: dict[str, set[str]] = defaultdict(set)
    for (_, name), same_name in named.items():
        varied[name].update(_varied([leaves for _, leaves in same_name]))
    runs: dict[tuple[str, str], list[Curve]] = defaultdict(list)
    for (task, name), same_name in named.items():
        for curve, own in same_name:
            parts = [name, *(_told(leaf, own[leaf]) for leaf in own if leaf in varied[name])]
            runs[task, ", ".join(parts)].append(curve)
    for same in runs.values():
        same.sort(key=lambda curve: curve.recipe.system.seed)
        for first, second in pairwise(same):
            if (seed := first.recipe.system.seed) == second.recipe.system.seed:
                raise CurveError(
                    f"{first.run_dir} and {second.run_dir} are the same run with the same seed "
                    f"{seed}, which would count twice; leave one out"
                )

    def place(key: tuple[str, str]) -> tuple[int, int, int, str]:
        recipe = runs[key][0].recipe
        networks, algo = recipe.networks, recipe.algorithm.algo
        return list(METHODS).index(algo), networks.critic_depth, networks.actor_depth, key[1]

    return Comparison(
        tasks=tuple(dict.fromkeys(task for task, _ in runs)),
        methods=tuple(dict.fromkeys(method for _, method in sorted(runs, key=place))),
        runs=dict(runs),
    )


def _varied(leaves: Sequence[Mapping[str, Any]]) -> list[str]:
    """The fields that differ between these runs and can be part of a name."""
    return [
        leaf
        for leaf in leaves[0]
        if leaf not in _NOT_IN_NAME and len({str(each[leaf]) for each in leaves}) > 1
    ]


def _told(leaf: str, value: object) -> str:
    """A field and its value as part of a name; of a checksum the beginning tells enough."""
    field = leaf.rpartition(".")[2]
    return f"{field} {str(value)[:8] if field.endswith('sha256') else value}"


def task_line(comparison: Comparison, task: str, method: str, axis: Axis) -> Line:
    """Interquartile mean of the seeds' curves, with its interval, on their common grid."""
    curves = comparison.runs[task, method]
    grid_X = common_grid(curves, axis, points=_POINTS)
    values_RX = np.stack([on_grid(curve, METRIC, grid_X, axis) for curve in curves])
    return _line(method, grid_X, [values_RX])


def overall_line(comparison: Comparison, method: str, axis: Axis) -> Line:
    """Interquartile mean over all tasks, by the share of each task's env steps or by wall-clock."""
    everything = [comparison.runs[task, method] for task in comparison.tasks]
    flat = [curve for curves in everything for curve in curves]
    if axis == "env_steps":
        first = max(curve.env_steps_E[0] / curve.env_steps_E[-1] for curve in flat)
        grid_X = np.linspace(first, 1.0, _POINTS)
        scale = [curve.env_steps_E[-1] for curve in flat]
    else:
        grid_X = common_grid(flat, axis, points=_POINTS)
        scale = [1.0] * len(flat)
    scale_of = dict(zip(map(id, flat), scale, strict=True))
    strata = [
        np.stack([on_grid(curve, METRIC, grid_X * scale_of[id(curve)], axis) for curve in curves])
        for curves in everything
    ]
    return _line(method, grid_X, strata)


def median_reached(curves: Sequence[Curve], level: float, axis: Axis) -> float:
    """Median over the seeds of where each first reaches a level, inf for one that never does."""
    return float(np.median([first_reached(curve, METRIC, level, axis) for curve in curves]))


def _line(method: str, grid_X: Array, strata: list[Array]) -> Line:
    interval = stratified_bootstrap_interval(strata)
    return Line(
        label=method,
        x_X=grid_X,
        y_X=pooled(strata),
        band=interval and (interval.low, interval.high),
    )
