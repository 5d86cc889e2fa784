"""A grid of recipes: every combination of some fields' values, each a trial with a name."""

import difflib
import itertools
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch_crl.envs.registry import UnknownTaskError, task_spec
from torch_crl.fields import whole_number
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe

# Depth and algorithm, together with the task, choose the preset that a trial starts from.
_DEPTH, _ALGO, _TASK = "depth", "algorithm.algo", "task.name"
# File systems allow 255; the log and the lock beside a run directory have longer names than it.
_MOST_BYTES = 240


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run of a sweep."""

    name: str
    """Name of its run directory; contains what varies, as in `reacher_crl_depth4_seed0`."""
    recipe: Recipe


def grid(
    tasks: Sequence[str],
    *,
    axes: Mapping[str, Sequence[Any]],
    settings: Mapping[str, Any] | None = None,
) -> list[Trial]:
    """All combinations of the values of `axes`, the last varying fastest, on each task's preset.

    Args:
        tasks: names of tasks, the outermost axis.
        axes: name to values. A name is a field of the recipe (`seed`, `system.seed`, with dashes or
            underscores), or `depth` for actor and critic together. Values given as text are
            converted to the field's type.
        settings: name to one value, for all trials; settings do not appear in the trials' names.

    Raises:
        RecipeError: all unknown names and all values that cannot be read.
    """
    problems: list[str] = []
    varied = _read(axes, problems)
    single = {name: [value] for name, value in (settings or {}).items()}
    fixed = {name: values[0] for name, values in _read(single, problems).items() if values}
    problems += [
        f"{name}: given as a setting (--set) and as an axis (--grid)"
        for name in varied
        if name in fixed
    ]
    repeated = [task for task, count in Counter(tasks).items() if count > 1]
    problems += [f"task {task}: given twice" for task in repeated]
    if not tasks:
        problems.append("no task is given; `torch-crl envs` lists them")
    for task in dict.fromkeys(tasks):
        try:
            task_spec(task)
        except UnknownTaskError as error:
            problems.append(str(error))
    if problems:
        raise RecipeError(problems)
    trials = []
    for task, *values in itertools.product(tasks, *varied.values()):
        point = dict(zip(varied, values, strict=True))
        recipe = _recipe(task, fixed | point)
        trials.append(Trial(name=_name(recipe, point), recipe=recipe))
    return trials


def check_trials(trials: Sequence[Trial]) -> None:
    """Raise RecipeError with every problem of any recipe or name and the trials that have it."""
    who: dict[str, list[str]] = {}
    for trial in trials:
        if len(os.fsencode(trial.name)) > _MOST_BYTES:
            problem = (
                f"the name is longer than {_MOST_BYTES} bytes, too long for a folder and its "
                "log; settings of one value are left out of names when they are given with --set"
            )
            who.setdefault(problem, []).append(trial.name)
        try:
            check(trial.recipe)
        except RecipeError as error:
            for problem in error.problems:
                who.setdefault(problem, []).append(trial.name)
    problems = [f"{_some_of(names, len(trials))}: {problem}" for problem, names in who.items()]
    repeated = [name for name, count in Counter(t.name for t in trials).items() if count > 1]
    problems += [f"{name}: two trials have this name" for name in repeated]
    if problems:
        raise RecipeError(problems)


def _some_of(names: list[str], total: int) -> str:
    if len(names) == total > 1:
        return f"all {total} trials"
    rest = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + rest


def _types() -> dict[str, Any]:
    """`part.field` to type for every field of a recipe, and `depth`."""
    types: dict[str, Any] = {_DEPTH: int}
    for name, part in get_type_hints(Recipe).items():
        types |= {f"{name}.{field}": kind for field, kind in get_type_hints(part).items()}
    return types


def _read(given: Mapping[str, Sequence[Any]], problems: list[str]) -> dict[str, list[Any]]:
    """Full name to values of the right type; errors are appended to `problems`."""
    types = _types()
    found: dict[str, list[Any]] = {}
    for asked, texts in given.items():
        try:
            name = _full_name(asked, types)
            values = [_value(asked, text, types[name]) for text in texts]
        except ValueError as error:
            problems.append(str(error))
            continue
        if name in found or not values or len(set(values)) < len(values):
            what = "no value is given" if not values else "given twice"
            repeated = [repr(value) for value, count in Counter(values).items() if count > 1]
            problems.append(f"{asked}: {' '.join([*repeated[:1], what])}")
        found[name] = values
    return found


def _full_name(asked: str, types: Mapping[str, Any]) -> str:
    wanted = asked.strip().removeprefix("--").replace("-", "_")
    if wanted in ("task", "name", _TASK):
        raise ValueError(f"{asked}: tasks are given without a flag: torch-crl sweep reacher ant")
    if wanted in types:
        return wanted
    matches = [name for name in types if name.rpartition(".")[2] == wanted]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ValueError(f"{asked}: which one of {', '.join(matches)}?")
    short = {name.rpartition(".")[2]: name for name in types if name != _TASK}
    near = difflib.get_close_matches(wanted.rpartition(".")[2], short, n=3, cutoff=0.5)
    raise ValueError(
        f"{asked}: no field of a recipe has this name; "
        + (f"nearest: {', '.join(near)}" if near else "`torch-crl train --help` lists them")
    )


def _value(name: str, text: Any, kind: Any) -> Any:
    """Convert text to the field's type; a value that is not text is returned as it is."""
    if not isinstance(text, str):
        return text
    text = text.strip()
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        near = difflib.get_close_matches(text, get_args(kind), n=1, cutoff=0.6)
        hint = f"; nearest: {near[0]}" if near else ""
        raise ValueError(f"{name}: must be one of {', '.join(get_args(kind))}, got {text!r}{hint}")
    if kind not in (int, float):
        return text
    try:
        return whole_number(text) if kind is int else float(text)
    except ValueError as error:
        reason = error if kind is int else f"must be a number, got {text!r}"
        raise ValueError(f"{name}: {reason}") from None


def _recipe(task: str, values: dict[str, Any]) -> Recipe:
    chosen = {name.rpartition(".")[2]: values[name] for name in (_DEPTH, _ALGO) if name in values}
    changes: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in (_DEPTH, _ALGO):
            part, field = name.split(".")
            changes.setdefault(part, {})[field] = value
    return with_changes(preset(task, **chosen), **changes)


def _name(recipe: Recipe, point: dict[str, Any]) -> str:
    """Name of a trial: its task, its algorithm, and its value on every axis.

    Axes of one value are included, so that adding values to an axis later on does not change the
    names of earlier trials.
    """
    parts = [recipe.task.name, recipe.algorithm.algo]
    for name, value in point.items():
        if name != _ALGO:
            separator = "" if isinstance(value, int | float) else "-"
            parts.append(f"{name.rpartition('.')[2]}{separator}{value}")
    return re.sub(r"[^\w.+-]", "_", "_".join(parts))
