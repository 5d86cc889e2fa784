"""Learning curves of runs: reading, checks that they are comparable, scores, a common grid.

Legend: E evaluations of one run, X points of a grid.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from torch_crl.errors import TorchCrlError, listed
from torch_crl.recipe.marks import Mark, marked
from torch_crl.recipe.record import Recipe, flag_of
from torch_crl.runs.directory import RunDirectory, RunDirectoryError
from torch_crl.runs.finding import find_run_directories
from torch_crl.system.files import DamagedFileError

Axis = Literal["env_steps", "seconds"]
Array = NDArray[np.float64]

SCORED_EVALUATIONS = 5
_COUNTERS = ("env_steps", "updates", "seconds")
_LAST_STEPS = "env steps at the last evaluation"
# Runs of one budget may end at different steps, since each rounds up to its own whole collections.
ROUNDING = 0.05


class CurveError(TorchCrlError):
    """Runs that cannot be read or compared; the message names them and says why."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Curve:
    """The evaluations of one run, in order."""

    run_dir: Path
    recipe: Recipe
    env_steps_E: Array
    """Control steps of all training envs before each evaluation."""
    updates_E: Array
    seconds_E: Array
    """Wall-clock seconds since the start of training, evaluations included."""
    metrics: dict[str, Array]
    """The metrics of `torch_crl.evaluate` that every evaluation has, [E] each."""
    finished: bool
    """Whether the run has reached its end."""
    computed: str = ""
    """Precision and kernels of its updates, as text; empty if the run does not tell."""

    def axis(self, name: Axis) -> Array:
        """Env steps or seconds of each evaluation, [E]."""
        return self.env_steps_E if name == "env_steps" else self.seconds_E

    def metric(self, name: str) -> Array:
        """One metric, [E]. Raises CurveError, which lists the existing ones, if it is missing."""
        if name not in self.metrics:
            raise CurveError(
                f"{self.run_dir} has no metric {name!r}; it has {', '.join(sorted(self.metrics))}"
            )
        return self.metrics[name]


def read_curve(run_dir: Path) -> Curve:
    """The curve of one run directory. Raises CurveError if it cannot be read."""
    recipe, records = _read(run_dir)
    if not records and RunDirectory(run_dir).is_finished:
        raise CurveError(
            f"{run_dir} has no learning curve: policies that distil or prune made have none, and "
            "the report.md beside them compares them"
        )
    if not records:
        raise CurveError(f"{run_dir} has no evaluation yet; let it train on")
    return _curve(run_dir, recipe, records)


def read_curves(folders: Path | Sequence[Path]) -> list[Curve]:
    """The curves of all runs at any level of these folders, each once, by path within a folder.

    Raises CurveError, which names every folder without runs and every run that cannot be read.
    """
    run_dirs, problems = _find(folders)
    curves = []
    for run_dir in run_dirs:
        try:
            curves.append(read_curve(run_dir))
        except CurveError as error:
            problems.append(str(error))
    _raise_any(problems)
    return curves


def read_finished_curves(folders: Path | Sequence[Path]) -> tuple[list[Curve], dict[str, str]]:
    """The curves of finished runs, and for each other run directory how far that run is.

    Raises CurveError as `read_curves` does, and if no run is finished.
    """
    run_dirs, problems = _find(folders)
    curves, left_out = [], {}
    for run_dir in run_dirs:
        try:
            recipe, records = _read(run_dir)
        except CurveError as error:
            problems.append(str(error))
            continue
        curve = _curve(run_dir, recipe, records) if records else None
        if curve is not None and curve.finished:
            curves.append(curve)
        else:
            left_out[str(run_dir)] = "no evaluation yet" if curve is None else _reached(curve)
    if not curves and not problems:
        told = "".join(f"\n  - {run_dir}: {reason}" for run_dir, reason in left_out.items())
        problems = [f"none of the runs is finished:{told}"]
    _raise_any(problems)
    return curves, left_out


def check_comparable(curves: Sequence[Curve], *, varied: Collection[str] = ()) -> None:
    """Raise CurveError unless all runs on a task had the same budget and the same evaluation.

    The message names every difference, with two runs that show it, and all unfinished runs.
    `varied` are settings that may differ, such as `budget.env_steps`, because the caller compares
    them on purpose.
    """
    problems = [
        f"{curve.run_dir} is not finished: {_reached(curve)}; `torch-crl compare --finished-only` "
        "leaves it out"
        for curve in curves
        if not curve.finished
    ]
    tasks = defaultdict(list)
    for curve in curves:
        tasks[curve.recipe.task.name].append(curve)
    for task, runs in tasks.items():
        for leaf in marked(Recipe, Mark.SAME_IN_COMPARISONS):
            if leaf not in varied:
                problems += _differing(task, f"{leaf} ({flag_of(leaf)})", runs, _leaf_of(leaf))
        budget_differs = len({run.recipe.budget.env_steps for run in runs}) > 1
        if not (budget_differs or "budget.env_steps" in varied):
            problems += _reached_differing(task, [run for run in runs if run.finished])
    _raise_any(problems)


def score(curve: Curve, metric: str, *, last: int = SCORED_EVALUATIONS) -> float:
    """Mean of the last five evaluations, the paper's score (arXiv 2503.14858, table 1).

    With fewer evaluations it is the mean of all.
    """
    return float(curve.metric(metric)[-last:].mean())


def scored_part(curves: Sequence[Curve], *, last: int = SCORED_EVALUATIONS) -> str:
    """What `score` averages, as text: `the last 5 of 10 evaluations: the last 50 % of the run`.

    Each evaluation covers the env steps since the one before it.
    """
    counts = sorted({len(curve.env_steps_E) for curve in curves})
    shares = sorted({round(100 * _scored_share(curve, last)) for curve in curves})
    few, many = (min(last, count) for count in (counts[0], counts[-1]))
    return (
        f"the last {_span(few, many)} of {_span(counts[0], counts[-1])} evaluations: the last "
        f"{_span(shares[0], shares[-1])} % of the run"
    )


def common_grid(curves: Sequence[Curve], axis: Axis, *, points: int = 60) -> Array:
    """Grid points from the latest first evaluation of the curves to the earliest last one, [X].

    By wall-clock they reach to the latest last one, since runs that have ended keep their policies.
    The points are the evaluations if all curves have them at the same places, else `points` evenly
    spaced ones.
    """
    places = [curve.axis(axis) for curve in curves]
    if all(np.array_equal(place_E, places[0]) for place_E in places):
        return places[0]
    ends = [place_E[-1] for place_E in places]
    first, last = (
        max(place_E[0] for place_E in places),
        max(ends) if axis == "seconds" else min(ends),
    )
    return np.linspace(min(first, last), last, points)


def on_grid(curve: Curve, metric: str, grid_X: Array, axis: Axis) -> Array:
    """The metric at each grid point, [X], interpolated linearly between evaluations.

    Before the first and after the last evaluation their values are kept constant: a finished run
    keeps its policy.
    """
    return np.asarray(np.interp(grid_X, curve.axis(axis), curve.metric(metric)))


def first_reached(curve: Curve, metric: str, level: float, axis: Axis) -> float:
    """Env steps or seconds at the first evaluation that is at least `level`; inf if none is."""
    reached_E = curve.metric(metric) >= level
    return float(curve.axis(axis)[reached_E.argmax()]) if reached_E.any() else float("inf")


def _read(run_dir: Path) -> tuple[Recipe, list[dict[str, Any]]]:
    """Recipe and evaluations of a run. Raises CurveError."""
    directory = RunDirectory(run_dir)
    try:
        return directory.read_recipe(), directory.read_metrics("evaluation")
    except (RunDirectoryError, DamagedFileError) as error:
        raise CurveError(str(error)) from error


def _curve(run_dir: Path, recipe: Recipe, records: list[dict[str, Any]]) -> Curve:
    names = set(records[0]).intersection(*records) - {"kind", *_COUNTERS}
    env_steps_E, updates_E, seconds_E = (_column(records, name) for name in _COUNTERS)
    return Curve(
        run_dir=run_dir,
        recipe=recipe,
        env_steps_E=env_steps_E,
        updates_E=updates_E,
        seconds_E=seconds_E,
        metrics={name: _column(records, name) for name in sorted(names)},
        finished=RunDirectory(run_dir).is_finished
        or bool(env_steps_E[-1] >= recipe.budget.env_steps),
        computed=_computed(run_dir),
    )


def _computed(run_dir: Path) -> str:
    try:
        return str(RunDirectory(run_dir).read_result().machine.get("computed", ""))
    except DamagedFileError:
        return ""


def _reached(curve: Curve) -> str:
    return f"{curve.env_steps_E[-1]:,.0f} of {curve.recipe.budget.env_steps:,} env steps"


def _find(folders: Path | Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Run directories at any level of these folders, each once, and a problem per empty folder."""
    run_dirs: list[Path] = []
    problems = []
    for folder in [folders] if isinstance(folders, Path) else folders:
        found = sorted(find_run_directories(folder))
        if not found:
            problems.append(f"{folder} holds no run (there is no recipe.json in or below it)")
        run_dirs += found
    return list(dict.fromkeys(run_dirs)), problems


def _column(records: list[dict[str, Any]], name: str) -> Array:
    return np.array([record[name] for record in records], dtype=np.float64)


def _scored_share(curve: Curve, last: int) -> float:
    steps_E = curve.env_steps_E
    before = steps_E[-last - 1] if len(steps_E) > last else 0.0
    return float(1 - before / steps_E[-1])


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} to {high}"


def _leaf_of(name: str) -> Callable[[Curve], object]:
    part, field = name.split(".")
    return lambda curve: getattr(getattr(curve.recipe, part), field)


def _differing(
    task: str, what: str, runs: list[Curve], value_of: Callable[[Curve], object]
) -> list[str]:
    """A line that names one run for each value, if the runs have several values; else no line."""
    runs_of = defaultdict(list)
    for run in runs:
        runs_of[value_of(run)].append(run)
    if len(runs_of) == 1:
        return []
    named = [
        f"{value!r} in {same[0].run_dir}" + (f" and {len(same) - 1} more" if same[1:] else "")
        for value, same in runs_of.items()
    ]
    return [f"{task}: {what} differs: {'; '.join(named)}"]


def _reached_differing(task: str, runs: list[Curve]) -> list[str]:
    if not runs:
        return []
    fewest = min(runs, key=lambda run: run.env_steps_E[-1])
    most = max(runs, key=lambda run: run.env_steps_E[-1])
    if most.env_steps_E[-1] <= (1 + ROUNDING) * fewest.env_steps_E[-1]:
        return []
    return _differing(task, _LAST_STEPS, [fewest, most], lambda run: int(run.env_steps_E[-1]))


def _raise_any(problems: list[str]) -> None:
    if problems:
        raise CurveError(listed(problems))
