"""The report of a comparison: scores, curves, speed, and how the numbers were made."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from torch_crl.recipe.record import Recipe
from torch_crl.runs.curves import SCORED_EVALUATIONS, Axis, first_reached
from torch_crl.study.compare import (
    METRIC,
    Comparison,
    median_reached,
    overall_line,
    task_line,
)
from torch_crl.study.compare_text import (
    about_published,
    failures,
    findings,
    making,
    seeds_text,
)
from torch_crl.study.pictures import Line, Unit, curves_figure, estimates_figure
from torch_crl.study.published import EPISODE_LENGTH, published_curves, published_scores
from torch_crl.study.report import Picture, Report, Section, Table, Text, provenance
from torch_crl.study.statistics import Estimate
from torch_crl.system.terminal import duration

_ALL = "all tasks"
_AT_GOAL = "time at goal, share of the episode"
_VIEWS: dict[str, tuple[Axis, Unit]] = {
    "env steps": ("env_steps", "env steps"),
    "wall-clock": ("seconds", "seconds"),
}
# At least this many points of a published curve are drawn, however short our own runs are.
_LEAST_PUBLISHED_POINTS = 3


def comparison_report(
    comparison: Comparison,
    *,
    command: str,
    published: bool = False,
    failed: Mapping[str, str] | None = None,
) -> Report:
    """Build the report of a comparison.

    Args:
        command: the command line, which the report shows.
        published: whether to draw the authors' curves of the same task and depth under ours.
        failed: runs that are left out since they are not finished, name to reason; shown first.
    """
    names = ", ".join(comparison.tasks)
    sections = [scores_section(comparison), curves_section(comparison, published=published)]
    if len(comparison.tasks) > 1 and len(comparison.everywhere) > 1:
        sections.insert(1, _overall(comparison))
    sections += [
        speed_section(comparison),
        Section(title="How the numbers were made", parts=(Text(text=making(comparison)),)),
    ]
    return Report(
        title=f"{'; '.join(comparison.methods)} on {names}"
        if len(comparison.methods) == 1
        else f"{len(comparison.methods)} methods on {names}",
        question="Which method brings its agent to the goal and keeps it there, and how many env "
        "steps and how much time does it need?",
        findings=(*failures(failed or {}), *findings(comparison)),
        sections=tuple(sections),
        facts=provenance(command),
        data=_data(comparison),
    )


def score_table(comparison: Comparison) -> Table:
    """Task, method, seeds, score with interval, success, and what a run took."""
    rows = []
    for task in comparison.tasks:
        for method in comparison.methods:
            if curves := comparison.runs.get((task, method)):
                success = comparison.estimate(method, task=task, metric="success_any")
                rows.append(
                    (
                        task,
                        method,
                        len(curves),
                        comparison.estimate(method, task=task),
                        success,
                        int(curves[0].env_steps_E[-1]),
                        duration(max(curve.seconds_E[-1] for curve in curves)),
                    )
                )
    return Table(
        caption=f"Scores: time at goal as a share of the episode, mean of a run's last (up to) "
        f"{SCORED_EVALUATIONS} evaluations; interquartile mean over seeds [95 % interval].",
        columns=(
            "task",
            "method",
            "seeds",
            "time at goal",
            "episodes that reach it",
            "env steps",
            "slowest run",
        ),
        rows=tuple(rows),
    )


def scores_section(comparison: Comparison) -> Section:
    """Scores of every method on every task, as dots with intervals and as a table."""
    panels = {
        f"{task} ({seeds_text(comparison.seeds(task))})": {
            method: comparison.estimate(method, task=task)
            for method in comparison.methods
            if (task, method) in comparison.runs
        }
        for task in comparison.tasks
    }
    figure = estimates_figure(panels, x=(_AT_GOAL, "share"), order=comparison.methods)
    caption = (
        "The scores of the table: a dot at the interquartile mean, a bar over its interval. "
        "Axes fit the scores of each task."
    )
    if comparison.single_seeds():
        caption += " A dot alone has one seed, from which no interval can be given."
    picture = Picture(name="scores", caption=caption, views={"scores": figure})
    return Section(title="Scores", parts=(picture, score_table(comparison)))


def _overall(comparison: Comparison) -> Section:
    ranked = comparison.ranked()
    best = ranked[0]
    rows = []
    for method in ranked:
        pooled = comparison.estimate(method)
        against: tuple[Estimate | float | None, ...] = (None, None, None)
        if method != best:
            test = comparison.test(best, method)
            against = (comparison.improvement(best, method), test.difference, test.p_value)
        rows.append((method, seeds_text(pooled.seeds), pooled, *against))
    columns = ("method", "seeds", "time at goal", "best beats it", "best minus it", "p")
    caption = (
        f"Over {len(comparison.tasks)} tasks: interquartile mean of all scores, in which tasks "
        f"count alike [95 % interval]; how likely a seed of {best} beats one of the method; the "
        "mean difference, with the two-sided p of a permutation test within tasks. p is not "
        "corrected for the number of methods, nor for the choice of the best one by the same "
        "scores."
    )
    table = Table(caption=caption, columns=columns, rows=tuple(rows))
    left_out = [method for method in comparison.methods if method not in comparison.everywhere]
    notes = (
        (Text(text=f"Not on every task, so left out: {', '.join(left_out)}."),) if left_out else ()
    )
    return Section(title="Over all tasks", parts=(table, *notes))


def curves_section(comparison: Comparison, *, published: bool) -> Section:
    """Learning curves by env steps and by wall-clock, with published ones under them if asked."""
    overlay = {
        task: _published_lines(comparison, task) if published else [] for task in comparison.tasks
    }
    views = {}
    for name, (axis, unit) in _VIEWS.items():
        panels: dict[str, Sequence[Line]] = {}
        for task in comparison.tasks:
            lines = [
                task_line(comparison, task, method, axis)
                for method in comparison.methods
                if (task, method) in comparison.runs
            ]
            panels[f"{task} ({seeds_text(comparison.seeds(task))})"] = lines + (
                overlay[task] if axis == "env_steps" else []
            )
        views[name] = curves_figure(
            panels, x=(name, unit), y=(_AT_GOAL, "share"), order=comparison.methods
        )
    caption = (
        "Interquartile mean over the seeds, with the pointwise 95 % interval where there are two "
        "or more. Wall-clock is what each run measured, its evaluations included; runs that share "
        "a machine slow each other down. By wall-clock a run that has ended keeps its last value, "
        "as its policy does. Axes fit the scores of each task."
    )
    parts: list[Text | Picture] = [Picture(name="curves", caption=caption, views=views)]
    if published:
        parts.append(Text(text=about_published(overlay)))
    if len(comparison.tasks) > 1 and len(comparison.everywhere) > 1:
        parts.append(_overall_picture(comparison))
    return Section(title="Learning curves", parts=tuple(parts))


def _overall_picture(comparison: Comparison) -> Picture:
    axes: dict[str, tuple[Axis, str, Unit]] = {
        "env steps": ("env_steps", "share of each task's env steps", "share"),
        "wall-clock": ("seconds", "wall-clock", "seconds"),
    }
    views = {}
    for name, (axis, label, unit) in axes.items():
        lines = [overall_line(comparison, method, axis) for method in comparison.everywhere]
        title = f"{_ALL} ({seeds_text(comparison.seeds())})"
        views[name] = curves_figure(
            {title: lines}, x=(label, unit), y=(_AT_GOAL, "share"), order=comparison.methods
        )
    caption = (
        "Over all tasks, which count alike. By wall-clock a run that has ended keeps its last "
        "value, as its policy does."
    )
    return Picture(name="curves_all_tasks", caption=caption, views=views)


def speed_section(comparison: Comparison) -> Section:
    """How much of each run every method is at the goal, and how soon it reaches two levels."""
    over_run = tuple(
        (task, method, len(comparison.runs[task, method]), comparison.over_run(task, method))
        for task in comparison.tasks
        for method in comparison.methods
        if (task, method) in comparison.runs
    )
    whole = Table(
        caption="Time at goal as a share of the episode, mean of all evaluations of a run: a "
        "method that learns sooner has more. Interquartile mean over seeds [95 % interval].",
        columns=("task", "method", "seeds", "time at goal over the run"),
        rows=over_run,
    )
    rows = []
    for task in comparison.tasks:
        methods = [method for method in comparison.methods if (task, method) in comparison.runs]
        best = max(comparison.estimate(method, task=task).point for method in methods)
        if best <= 0:
            # Every first evaluation would have reached such a level.
            continue
        for level in (best / 2, 0.9 * best):
            for method in methods:
                curves = comparison.runs[task, method]
                times = [first_reached(curve, METRIC, level, "seconds") for curve in curves]
                reached = sum(time < float("inf") for time in times)
                steps = median_reached(curves, level, "env_steps")
                seconds = median_reached(curves, level, "seconds")
                never = seconds == float("inf")
                rows.append(
                    (
                        task,
                        level,
                        method,
                        f"{reached} of {len(curves)}",
                        None if never else int(steps),
                        None if never else round(seconds, 1),
                    )
                )
    caption = (
        "The first evaluation whose time at goal is at least a level. The levels are half and nine "
        "tenths of the best method's score on the task, left out where that is 0. Env steps and "
        "seconds are medians over all seeds, empty where half of them or more never reach it."
    )
    columns = ("task", "level", "method", "seeds that reach it", "env steps", "seconds")
    levels = Table(caption=caption, columns=columns, rows=tuple(rows))
    return Section(title="How soon", parts=(whole, levels))


def _published_lines(comparison: Comparison, task: str) -> list[Line]:
    """Published curves and scores of the methods that were evaluated here as they were there.

    That is on the same task, in episodes of the same length. Curves are cut where our runs end, and
    scores stand there, whatever their env steps.
    """
    lines = []
    for method in comparison.methods:
        runs = comparison.runs.get((task, method))
        if runs is None:
            continue
        recipe, until = runs[0].recipe, max(run.env_steps_E[-1] for run in runs)
        one_depth = recipe.networks.actor_depth == recipe.networks.critic_depth
        if one_depth and recipe.algorithm.algo == "crl":
            lines += _published_curve(method, recipe, until=until)
            lines += _published_score(method, recipe, at=until)
    return lines


def _published_curve(method: str, recipe: Recipe, *, until: float) -> list[Line]:
    if (recipe.algorithm.objective, recipe.algorithm.chunk) != ("crl", 1):
        return []
    lines = []
    for curve in published_curves(task=recipe.task.name):
        if curve.depth == recipe.networks.actor_depth and _evaluated_on(curve.eval_task, recipe):
            points = max(_LEAST_PUBLISHED_POINTS, int((curve.env_steps_P <= until).sum()))
            lines.append(
                Line(
                    label=method,
                    x_X=curve.env_steps_P[:points],
                    y_X=curve.share_P[:points],
                    published=True,
                )
            )
    return lines


def _published_score(method: str, recipe: Recipe, *, at: float) -> list[Line]:
    objective = recipe.algorithm.objective
    # The published chronometric objective always decides two actions at once.
    chunked = objective == "chrono" or recipe.algorithm.chunk > 1
    ours = (objective, chunked, recipe.networks.actor_depth)
    return [
        Line(
            label=method,
            x_X=np.array([at]),
            y_X=np.array([found.share]),
            band=(
                np.array([found.share - found.standard_error]),
                np.array([found.share + found.standard_error]),
            ),
            published=True,
        )
        for found in published_scores(task=recipe.task.name)
        if ours == (found.objective, found.chunked, found.depth)
        and _evaluated_on(found.task, recipe)
    ]


def _evaluated_on(task: str, recipe: Recipe) -> bool:
    """Whether these runs are evaluated as published ones are: on this task, for 1000 steps."""
    return (recipe.task.eval_name, recipe.task.episode_length) == (task, EPISODE_LENGTH)


def _data(comparison: Comparison) -> dict[str, Any]:
    runs = [
        {
            "run": curve.run_dir.name,
            "task": task,
            "method": method,
            "seed": curve.recipe.system.seed,
            "reward": curve.recipe.baseline.reward if curve.recipe.by_library else None,
            METRIC: curve.metric(METRIC),
            "env_steps": curve.env_steps_E,
            "seconds": curve.seconds_E,
        }
        for (task, method), curves in comparison.runs.items()
        for curve in curves
    ]
    estimates = [
        {
            "task": task,
            "method": method,
            "time_at_goal_share": comparison.estimate(method, task=task),
        }
        for task, method in comparison.runs
    ]
    overall = {method: comparison.estimate(method) for method in comparison.everywhere}
    return {"runs": runs, "scores": estimates, "overall": overall}
