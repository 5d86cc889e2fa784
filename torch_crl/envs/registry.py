"""Every task that ships with torch_crl, by name. Import is light: no torch, no MuJoCo."""

import difflib
import importlib
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.tasks.layouts import LAYOUTS

if TYPE_CHECKING:
    from torch_crl.envs.task import Task

GYMNASIUM = "gymnasium:"
"""`gymnasium:ID` or `gymnasium:module:ID` names a Gymnasium goal env; the module is imported."""

# The evaluation goals of the big maze for every robot but the ant.
_TEN_GOALS = "big_maze_eval_10_goals"


class UnknownTaskError(ValueError):
    """No task of that name; the message lists the nearest names."""


# Success level to distance in metres.
_WALKING = {"success": 0.5, "success_easy": 2.0}
# State entries, the slice of them that is the achieved goal, action entries.
_REACHER = (10, (4, 7), 2)
_ANT = (29, (0, 2), 8)
_HUMANOID = (246, (0, 3), 17)
_POINT = (4, (0, 2), 2)


def _spec(
    name: str,
    build: str,
    sizes: tuple[int, tuple[int, int], int],
    success_radius: dict[str, float],
    **options: object,
) -> TaskSpec:
    state_size, goal_slice, action_size = sizes
    return TaskSpec(
        name=name,
        state_size=state_size,
        goal_slice=goal_slice,
        action_size=action_size,
        success_radius=success_radius,
        build=f"torch_crl.envs.tasks.{build}",
        options=options,
    )


def _builtin_specs() -> list[TaskSpec]:
    specs = [
        _spec("reacher", "reacher:make", _REACHER, {"success": 0.05}),
        _spec("ant", "ant:make", _ANT, _WALKING),
        _spec("humanoid", "humanoid:make", _HUMANOID, _WALKING),
    ]
    for name in (name for name in LAYOUTS if name != _TEN_GOALS):
        layout = _TEN_GOALS if name == "big_maze_eval" else name
        specs += [
            _spec(f"ant_{name}", "ant:make_maze", _ANT, _WALKING, layout=name),
            _spec(f"point_{name}", "point:make_maze", _POINT, _WALKING, layout=layout),
        ]
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
    """The spec of a registered task, of the task that `module:function` makes, or `gymnasium:ID`.

    Raises UnknownTaskError with the nearest names, or what is wrong with the import or the env.
    """
    if name.startswith(GYMNASIUM):
        from torch_crl.envs.gymnasium.foreign import UnsuitableEnvError, probe

        try:
            return probe(name)[0]
        except UnsuitableEnvError as error:
            raise UnknownTaskError(str(error)) from error
    if ":" in name:
        return make_task(name).spec
    if name not in TASKS:
        near = difflib.get_close_matches(name, TASKS, n=4, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}; " if near else ""
        raise UnknownTaskError(
            f"unknown task {name!r}; {hint}`torch-crl envs` lists all {len(TASKS)}, "
            "`module:function` names one of your own, and `gymnasium:ID` a Gymnasium goal env"
        )
    return TASKS[name]


@cache
def make_task(name: str) -> "Task":
    """Build the task: compile its model. Tasks hold no state, so equal names share one object."""
    if name.startswith(GYMNASIUM):
        raise UnknownTaskError(f"{name} is stepped by Gymnasium; there is no task object for it")
    if ":" in name:
        return _load(name)()
    spec = task_spec(name)
    return _load(spec.build)(spec, **spec.options)


def _load(path: str) -> Callable[..., "Task"]:
    module_name, _, function_name = path.partition(":")
    try:
        function: Callable[..., Task] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UnknownTaskError(
            f"task {path!r} was read as module:function and could not be loaded: {error}"
        ) from error
    return function
