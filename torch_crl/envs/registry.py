"""Every task that ships with torch_crl, by name. Import is light: no torch, no MuJoCo."""

import difflib
import importlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from torch_crl.envs.layouts import LAYOUTS
from torch_crl.envs.spec import TaskSpec

if TYPE_CHECKING:
    from torch_crl.envs.task import Task

_NEAR_AND_EASY = {"success": 0.5, "success_easy": 2.0}


class UnknownTaskError(ValueError):
    """No task of that name; the message lists the nearest names."""


def _builtin_specs() -> list[TaskSpec]:
    ant = {
        "state_size": 29,
        "goal_slice": (0, 2),
        "action_size": 8,
        "success_radius": _NEAR_AND_EASY,
    }
    point = {
        "state_size": 4,
        "goal_slice": (0, 2),
        "action_size": 2,
        "success_radius": _NEAR_AND_EASY,
    }
    specs = [
        TaskSpec(
            name="reacher",
            state_size=10,
            goal_slice=(4, 7),
            action_size=2,
            success_radius={"success": 0.05},
            build="torch_crl.envs.reacher:make",
        ),
        TaskSpec(name="ant", build="torch_crl.envs.ant:make", **ant),
        TaskSpec(
            name="humanoid",
            state_size=246,
            goal_slice=(0, 3),
            action_size=17,
            success_radius=_NEAR_AND_EASY,
            build="torch_crl.envs.humanoid:make",
        ),
    ]
    for layout in LAYOUTS:
        if layout == "big_maze_eval_10_goals":
            continue
        specs.append(
            TaskSpec(
                name=f"ant_{layout}",
                build="torch_crl.envs.ant:make_maze",
                options={"layout": layout},
                **ant,
            )
        )
        point_layout = "big_maze_eval_10_goals" if layout == "big_maze_eval" else layout
        specs.append(
            TaskSpec(
                name=f"point_{layout}",
                build="torch_crl.envs.point:make_maze",
                options={"layout": point_layout},
                **point,
            )
        )
    return specs


def _index(specs: list[TaskSpec]) -> dict[str, TaskSpec]:
    index: dict[str, TaskSpec] = {}
    for spec in specs:
        if spec.name in index:
            raise ValueError(f"task {spec.name!r} is registered twice")
        index[spec.name] = spec
    return index


TASKS: dict[str, TaskSpec] = _index(_builtin_specs())


def task_spec(name: str) -> TaskSpec:
    """The spec of a registered task, or of the task that `module:function` makes.

    Raises UnknownTaskError with the nearest names, or what went wrong with the import.
    """
    if ":" in name:
        return make_task(name).spec
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=4, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise UnknownTaskError(
            f"unknown task {name!r}; {hint}`torch-crl envs` lists all {len(TASKS)}, "
            "and `module:function` names one of your own"
        )
    return TASKS[name]


@cache
def make_task(name: str) -> "Task":
    """Build the task: compile its model. Tasks hold no state, so equal names share one object."""
    if ":" in name:
        return _load(name)()
    spec = task_spec(name)
    return _load(spec.build)(spec, **spec.options)


def _load(path: str) -> Callable[..., "Task"]:
    module_name, _, function_name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UnknownTaskError(
            f"task {path!r} was read as module:function and could not be loaded: {error}"
        ) from error
