"""All tasks that ship with torch_crl, by name. A new task is one more line of `_builtin_specs`.

Importing this module loads neither torch nor MuJoCo.
"""

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.state_names import state_names
from torch_crl.envs.task_name import parse_task_name
from torch_crl.envs.tasks.layouts import BALL_LAYOUTS, LAYOUTS, corridor
from torch_crl.errors import TorchCrlError, in_one_line, listed

if TYPE_CHECKING:
    from torch_crl.envs.task import Task


class UnknownTaskError(TorchCrlError, ValueError):
    """No task has that name, or what the user's own function returns is not a working task."""


# Success levels, each with its distance in metres.
_WALKING = {"success": 0.5, "success_easy": 2.0}
_PUSHING = {"success": 0.1, "success_hard": 0.05}
_ARM = {"success": 0.1, "success_easy": 0.3, "success_hard": 0.03}
# Distance of the fingertips' midpoint from the cube; their opening is checked as well.
_GRASP = {"success": 0.05, "success_easy": 0.15, "success_hard": 0.02}
# Size of the state, the slice of it that is the achieved goal, size of the action.
_REACHER = (10, (4, 7), 2)
_ANT = (29, (0, 2), 8)
_ANT_BALL = (31, (29, 31), 8)
_ANT_PUSH = (31, (0, 2), 8)
_HUMANOID = (246, (0, 3), 17)
_POINT = (4, (0, 2), 2)
_HALF_CHEETAH = (18, (0, 1), 6)
_PUSHER = (20, (10, 13), 7)
_PUSHER_REACHER = (17, (14, 17), 7)
_PUSHER_2 = (23, (10, 16), 7)
_ARM_REACH = (13, (7, 10), 4)
_ARM_GRASP = (23, (16, 23), 5)
_ARM_MOVE = (17, (0, 3), 5)
_ARM_EEF = (11, (0, 3), 4)

# `big_maze_eval` has nine goals for the ant and ten for the other robots.
_TEN_GOALS = "big_maze_eval_10_goals"
_MAZES = [name for name in LAYOUTS if name != _TEN_GOALS]
_HUMANOID_MAZES = ["u_maze", "u_maze_eval", "big_maze", "big_maze_eval", "hardest_maze"]
# Mazes that are one corridor without forks, and how many cells ahead of the start the goals of
# the registered variants lie.
_CORRIDORS = ["u_maze", "u2_maze", "u3_maze", "u4_maze", "u5_maze"]
_CELLS_AHEAD = ["1f", "2f", "3f", "1f2f", "1f2f3f"]
_GENERALIZATION = re.compile(r"ant_(?P<layout>\w+)_gen_(?P<ahead>(\d+f)+)")


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
        state_names=state_names(name, build),
        build=f"torch_crl.envs.tasks.{build}",
        options=options,
    )


def _builtin_specs() -> list[TaskSpec]:
    """The specs of all tasks, grouped by robot."""
    return [
        _spec("reacher", "reacher:make", _REACHER, {"success": 0.05}),
        *_ant_specs(),
        _spec("humanoid", "humanoid:make", _HUMANOID, _WALKING),
        *(
            _spec(f"humanoid_{name}", "humanoid:make_maze", _HUMANOID, _WALKING, layout=layout)
            for name, layout in _with_ten_goals(_HUMANOID_MAZES)
        ),
        *(
            _spec(f"point_{name}", "point:make_maze", _POINT, _WALKING, layout=layout)
            for name, layout in _with_ten_goals(_MAZES)
        ),
        _spec("point_three_mazes", "point:make_three_mazes", _POINT, _WALKING),
        _spec("half_cheetah", "half_cheetah:make", _HALF_CHEETAH, _WALKING),
        _spec("pusher_easy", "pusher:make", _PUSHER, _PUSHING, scene="easy"),
        _spec("pusher_hard", "pusher:make", _PUSHER, _PUSHING, scene="hard"),
        _spec("pusher_reacher", "pusher:make_reacher", _PUSHER_REACHER, _PUSHING),
        _spec(
            "pusher2",
            "pusher:make",
            _PUSHER_2,
            {"success": 0.1, "success_easy": 0.1, "success_hard": 0.05},
            scene="two_objects",
        ),
        *_arm_specs(),
    ]


def _arm_specs() -> list[TaskSpec]:
    return [
        _spec("arm_reach", "arm:make_reach", _ARM_REACH, _ARM),
        _spec("arm_grasp", "arm:make_grasp", _ARM_GRASP, _GRASP),
        *(
            _spec(f"arm_{scene}", "arm:make_move", _ARM_MOVE, _ARM, scene=scene)
            for scene in ("push_easy", "push_hard", "binpick_easy", "binpick_hard")
        ),
        _spec("arm_binpick_easy_eef", "arm:make_gantry", _ARM_EEF, _ARM),
    ]


def _ant_specs() -> list[TaskSpec]:
    return [
        _spec("ant", "ant:make", _ANT, _WALKING),
        _spec("ant_random_start", "ant:make_random_start", _ANT, _WALKING),
        *(_spec(f"ant_{name}", "ant:make_maze", _ANT, _WALKING, layout=name) for name in _MAZES),
        *(
            _generalization_spec(f"ant_{layout}_gen_{ahead}")
            for layout in _CORRIDORS
            for ahead in _CELLS_AHEAD
        ),
        _spec("ant_ball", "ant_objects:make_ball", _ANT_BALL, _WALKING),
        *(
            _spec(
                f"ant_ball_{name}", "ant_objects:make_ball_maze", _ANT_BALL, _WALKING, layout=name
            )
            for name in BALL_LAYOUTS
        ),
        _spec("ant_push", "ant_objects:make_push", _ANT_PUSH, _WALKING),
    ]


def _with_ten_goals(names: list[str]) -> list[tuple[str, str]]:
    """Pairs of a maze and the name of its layout, for robots other than the ant."""
    return [(name, _TEN_GOALS if name == "big_maze_eval" else name) for name in names]


def _generalization_spec(name: str) -> TaskSpec:
    """The spec of `ant_<corridor>_gen_<k>f<k>f...`: goals k cells ahead of the start.

    Raises UnknownTaskError if the maze is not a corridor, or is too short for these goals.
    """
    match = _GENERALIZATION.fullmatch(name)
    if match is None or match["layout"] not in _CORRIDORS:
        raise UnknownTaskError(
            f"unknown task {name!r}; generalisation tasks are called "
            f"ant_<{'|'.join(_CORRIDORS)}>_gen_<cells ahead>, as in ant_u4_maze_gen_2f5f"
        )
    cells_ahead = tuple(int(number) for number in re.findall(r"\d+", match["ahead"]))
    longest = len(corridor(LAYOUTS[match["layout"]])) - 1
    if not all(1 <= ahead <= longest for ahead in cells_ahead):
        raise UnknownTaskError(
            f"unknown task {name!r}: the corridor of {match['layout']} has {longest + 1} cells, "
            f"so goals lie 1 to {longest} cells ahead (1f to {longest}f)"
        )
    return _spec(
        name,
        "ant:make_generalization",
        _ANT,
        _WALKING,
        layout=match["layout"],
        cells_ahead=cells_ahead,
    )


def _index(specs: list[TaskSpec]) -> dict[str, TaskSpec]:
    index: dict[str, TaskSpec] = {}
    for spec in specs:
        if spec.name in index:
            raise ValueError(f"task {spec.name!r} is registered twice")
        index[spec.name] = spec
    return index


TASKS: dict[str, TaskSpec] = _index(_builtin_specs())


def task_spec(name: str) -> TaskSpec:
    """The spec of a registered task, of a `module:function` task or of a `gymnasium:ID` env.

    Generalisation mazes of the ant need not be registered: `ant_u4_maze_gen_2f5f` works too.
    Raises UnknownTaskError, whose message gives the nearest names, or says what is wrong with the
    import or the env.
    """
    kind = parse_task_name(name).kind
    if kind == "gymnasium":
        from torch_crl.envs.gymnasium.errors import UnsuitableEnvError
        from torch_crl.envs.gymnasium.foreign import probe

        try:
            return probe(name).spec
        except UnsuitableEnvError as error:
            raise UnknownTaskError(str(error)) from error
    if kind == "own":
        return make_task(name).spec
    if name not in TASKS and "_gen_" in name:
        return _generalization_spec(name)
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
    """Build a task and compile its model. Tasks are stateless, so equal names share one object.

    Raises UnknownTaskError, see `task_spec`.
    """
    kind = parse_task_name(name).kind
    if kind == "gymnasium":
        raise UnknownTaskError(f"{name} is stepped by Gymnasium; there is no task object for it")
    # Imported here, because names and specs must be readable without torch.
    from torch_crl.system.torch_defaults import torch_defaults

    with torch_defaults():
        if kind == "own":
            return _make_own_task(name)
        spec = task_spec(name)
        task: Task = _load(spec.build)(spec, **spec.options)
        return task


def module_of(name: str) -> str:
    """The module that loading this task would import; empty if its name contains no module.

    `gymnasium:ID` contains none: the package of such an env is registered with Gymnasium already.
    """
    return parse_task_name(name).module


def task_files(names: Sequence[str]) -> dict[str, str]:
    """Task name to the file of its module, for the user's own tasks and envs that are loaded."""
    modules = {name: sys.modules.get(module_of(name)) for name in names}
    files = {name: getattr(module, "__file__", None) for name, module in modules.items()}
    return {name: file for name, file in files.items() if file}


def _make_own_task(name: str) -> "Task":
    """The task that the user's function returns. Raises UnknownTaskError if it does not work."""
    from torch_crl.envs.trial import task_problems

    try:
        function = _load(name)
    # A module may raise any error, or call sys.exit, while it is imported.
    except (Exception, SystemExit) as error:
        hint = ""
        if name.startswith("zoo:"):
            hint = (
                "; zoo:NAME is a trained policy, which `torch-crl eval` and `watch` take; "
                f"`torch-crl zoo {name.partition(':')[2]}` tells how it was trained"
            )
        raise UnknownTaskError(
            f"task {name!r} was read as module:function and could not be loaded: "
            f"{in_one_line(error)}{hint}"
        ) from error
    try:
        task = function()
    except (Exception, SystemExit) as error:
        raise UnknownTaskError(
            f"{name} must make a torch_crl.Task without arguments, and raised {in_one_line(error)}"
        ) from error
    if problems := task_problems(task):
        raise UnknownTaskError(f"{name}: {listed(problems)}")
    made: Task = task
    return made


def _load(path: str) -> Callable[..., Any]:
    module_name, _, function_name = path.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module_name), function_name)
    return function
