"""Tries out a task of the user's own before it is used, and reports all problems at once.

G goal, A action, S state, Q positions, V velocities, U actuators.
"""

from collections.abc import Callable, Mapping
from typing import Any

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.places import Places, place_problems
from torch_crl.envs.simulators import Simulator, SimulatorError
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.simulators.fields import field_problem
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task
from torch_crl.envs.task import goal_points as plain_goal_points
from torch_crl.errors import TorchCrlError, in_one_line, shortly
from torch_crl.system.torch_defaults import torch_defaults

_NUM_ENVS = 2
_FLOATS = (torch.float32, torch.float64)


@torch_defaults()
def task_problems(task: Any) -> list[str]:
    """Problems of a task, found by one control step of two envs; empty if there are none."""
    if not isinstance(task, Task):
        return [f"it must return a torch_crl.Task, and returned {shortly(task)}"]
    spec: Any = task.spec
    if not isinstance(spec, TaskSpec):
        return [f"spec must be a torch_crl.TaskSpec, got {shortly(spec)}"]
    problems = _size_problems(spec)
    if not isinstance(task.model, mujoco.MjModel):
        compiled = "; call its compile()" if isinstance(task.model, mujoco.MjSpec) else ""
        problems.append(f"model must be a mujoco.MjModel, got {shortly(task.model)}{compiled}")
    if not _is_count(task.substeps):
        problems.append(f"substeps must be a whole number of at least 1, got {task.substeps!r}")
    fields: Any = task.fields
    if not isinstance(fields, tuple | list) or not all(isinstance(name, str) for name in fields):
        problems.append(f"fields must be a tuple of names such as ('xpos',), got {fields!r}")
    required = ("sample_start", "state", "control", "failed", "distance", "goal_points")
    for name in (*required, "reached", "moved_goal"):
        function = getattr(task, name)
        if not callable(function) and (name in required or function is not None):
            problems.append(f"{name} must be a function, got {shortly(function)}")
    if task.places is not None:
        problems += place_problems(task.places, spec.goal_size if not problems else 0)
    # If any of these is wrong, nothing can be tried.
    return problems or [*_radius_problems(task.spec.success_radius), *_Trial(task).problems]


def _size_problems(spec: TaskSpec) -> list[str]:
    problems = [
        f"{name} must be a whole number of at least 1, got {getattr(spec, name)!r}"
        for name in ("state_size", "action_size", "episode_length")
        if not _is_count(getattr(spec, name))
    ]
    try:
        first, stop = spec.goal_slice
        fits = 0 <= first < stop <= spec.state_size
    except (TypeError, ValueError):
        fits = False
    if not fits:
        problems.append(
            f"goal_slice {spec.goal_slice} is no slice of a state of {spec.state_size} numbers"
        )
    names = spec.state_names
    if not isinstance(names, tuple) or (names and len(names) != spec.state_size):
        problems.append(
            f"state_names must be a tuple with a name for each of {spec.state_size} entries of the "
            f"state, or empty, got {names!r}"
        )
    return problems


def _radius_problems(radius: object) -> list[str]:
    if not isinstance(radius, Mapping):
        return [f'success_radius must be a mapping such as {{"success": 0.2}}, got {radius!r}']
    if "success" not in radius:
        return [f"success_radius needs the level 'success', got {radius}"]
    if not all(isinstance(value, int | float) and value > 0 for value in radius.values()):
        return [f"success_radius must have distances above 0, got {radius}"]
    return []


class _Trial:
    """Calls every function of the task once, also after failures, where that is possible."""

    def __init__(self, task: Task) -> None:
        self.problems: list[str] = []
        self._told: set[str] = set()
        self._task = task
        goal_NG, simulator = self._start()
        state_NS = None if simulator is None else self._step(simulator)
        if goal_NG is not None:
            self._judge(state_NS, goal_NG)

    def _start(self) -> tuple[Tensor | None, CpuSimulator | None]:
        """Goals, and a simulator set to the start; None for what could not be made."""
        task, model = self._task, self._task.model
        start = self._call("sample_start", task.sample_start, _NUM_ENVS, Generator().manual_seed(0))
        if not isinstance(start, Start):
            if not self.problems:
                self._tell("sample_start", f"must return a torch_crl.Start, got {shortly(start)}")
            return None, None
        qpos_NQ = self._numbers("sample_start's qpos", start.qpos_NQ, (model.nq,))
        qvel_NV = self._numbers("sample_start's qvel", start.qvel_NV, (model.nv,))
        goal = ("sample_start's goal", start.goal_NG, (task.spec.goal_size,))
        goal_NG = self._numbers(*goal, dtypes=(torch.float32,))
        if not self.problems:
            generator = Generator().manual_seed(0)
            again = self._call("sample_start", task.sample_start, _NUM_ENVS, generator)
            if again is not None and not all(map(torch.equal, start, again)):
                self._tell(
                    "sample_start",
                    "gave other starts for an equal generator; draw all random numbers from it, so "
                    "that a seed gives one run",
                )
        unreadable = [problem for name in task.fields if (problem := field_problem(model, name))]
        self.problems += [f"fields: {problem}" for problem in unreadable]
        if unreadable or qpos_NQ is None or qvel_NV is None:
            return goal_NG, None
        try:
            simulator = CpuSimulator(model, num_envs=_NUM_ENVS, fields=task.fields, num_threads=1)
            simulator.reset(torch.ones(_NUM_ENVS, dtype=torch.bool), qpos_NQ, qvel_NV)
        # MuJoCo may refuse a model for reasons of its own.
        except (SimulatorError, ValueError, mujoco.FatalError) as error:
            self._tell("model", f"cannot be simulated: {error}")
            return goal_NG, None
        return goal_NG, simulator

    def _step(self, simulator: CpuSimulator) -> Tensor | None:
        """The state after one control step, or before it if no step is possible."""
        task = self._task
        state_NS = self._state("state", simulator)
        if state_NS is not None:
            failed_N = self._call("failed", task.failed, state_NS)
            if isinstance(failed_N, Tensor) and failed_N.numel() and bool(failed_N.all()):
                self._tell("failed", "is true where episodes begin, so that each would end at once")
        action_NA = 2 * torch.rand(_NUM_ENVS, task.spec.action_size, generator=Generator()) - 1
        control = self._call("control", task.control, action_NA, simulator)
        sizes = task.spec.action_size, task.model.nu
        hint = f"; actions have {sizes[0]} numbers and the model has {sizes[1]} actuators"
        control_NU = self._numbers("control", control, (task.model.nu,), hint=hint)
        if state_NS is None or control_NU is None:
            return state_NS
        simulator.data["ctrl"].copy_(control_NU)
        try:
            simulator.step(task.substeps)
            simulator.check()
        except SimulatorError as error:
            self._tell("a control step", f"fails: {error}")
            return state_NS
        if simulator.unstable() is not None:
            self._tell("model", "diverges in its first control step; it needs a smaller timestep")
            return state_NS
        return self._state("state, after a control step,", simulator)

    def _judge(self, state_NS: Tensor | None, goal_NG: Tensor) -> None:
        """Try the functions for failure, distance, success and the goal's motion."""
        task = self._task
        achieved_NG = goal_NG if state_NS is None else task.achieved_goal(state_NS)
        distance = self._call("distance", task.distance, achieved_NG, goal_NG)
        self._numbers("distance", distance, ())
        if task.places is not None:
            self._places(task.places, achieved_NG)
        self._points(goal_NG[0])
        if task.reached is not None:
            reached = self._call("reached", task.reached, achieved_NG, goal_NG)
            if reached is not None and not (isinstance(reached, Mapping) and "success" in reached):
                self._tell("reached", f"must return a dict with 'success', got {shortly(reached)}")
            elif reached is not None:
                for level, reached_N in reached.items():
                    self._numbers(f"reached's {level!r}", reached_N, (), dtypes=(torch.bool,))
        if state_NS is None:
            return
        if "failed" not in self._told:
            failed = self._call("failed", task.failed, state_NS)
            self._numbers("failed", failed, (), dtypes=(torch.bool,))
        if task.moved_goal is not None:
            goal = self._call("moved_goal", task.moved_goal, goal_NG, state_NS)
            self._numbers("moved_goal", goal, (task.spec.goal_size,), dtypes=(torch.float32,))

    def _points(self, goal_G: Tensor) -> None:
        if self._task.goal_points is plain_goal_points:
            # Tasks whose goals it cannot draw are trained all the same, and never filmed.
            return
        points = self._call("goal_points", self._task.goal_points, goal_G)
        if points is None:
            return
        if not isinstance(points, Tensor) or points.ndim != 2 or points.shape[1] != 3:
            shape = list(points.shape) if isinstance(points, Tensor) else shortly(points)
            self._tell(
                "goal_points", f"must return a tensor of shape [K, 3] for one goal, got {shape}"
            )
        elif not points.isfinite().all():
            self._tell("goal_points", f"must be finite, and is {points.tolist()}")

    def _places(self, places: Places, achieved_NG: Tensor) -> None:
        found = self._call("places.place", places.place, achieved_NG, torch.rand(_NUM_ENVS))
        if found is None:
            return
        if not isinstance(found, tuple) or len(found) != 2:
            what = "an index and whether it is there"
            self._tell("places.place", f"must return {what}, got {shortly(found)}")
            return
        index_N, there_N = found
        index = self._numbers("places.place's index", index_N, (), dtypes=(torch.int64,))
        self._numbers("places.place's second part", there_N, (), dtypes=(torch.bool,))
        if index is not None and not 0 <= int(index.min()) <= int(index.max()) < len(places.names):
            self._tell("places.place", f"must return 0 to {len(places.names) - 1}, got {index}")

    def _state(self, what: str, simulator: Simulator) -> Tensor | None:
        state = self._call(what, self._task.state, simulator)
        return self._numbers(what, state, (self._task.spec.state_size,), dtypes=(torch.float32,))

    def _call(self, name: str, function: Callable[..., Any], *arguments: object) -> Any:
        """What the function returns; None, and a problem, if it raised or returned None."""
        try:
            value = function(*arguments)
        except TorchCrlError as error:
            self._tell(name, f"failed: {error}")
        except Exception as error:
            self._tell(name, f"raised {in_one_line(error)}")
        else:
            if value is None:
                self._tell(name, "returned None; does it lack a `return`?")
            return value
        return None

    def _numbers(
        self,
        what: str,
        value: object,
        shape: tuple[int, ...],
        *,
        dtypes: tuple[torch.dtype, ...] = _FLOATS,
        hint: str = "",
    ) -> Tensor | None:
        """The value if it is a finite tensor [envs, *shape] in one of the dtypes, else None.

        `hint` follows on what is told of another shape.
        """
        wanted = [_NUM_ENVS, *shape]
        if value is None and what in self._told:
            return None
        if not isinstance(value, Tensor):
            self._tell(what, f"must be a torch tensor of shape {wanted}, got {shortly(value)}")
        elif list(value.shape) != wanted:
            self._tell(
                what,
                f"must have shape {wanted} for {_NUM_ENVS} envs, got {list(value.shape)}{hint}",
            )
        elif value.dtype not in dtypes:
            allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            self._tell(what, f"must be {allowed}, got {str(value.dtype).removeprefix('torch.')}")
        elif not value.isfinite().all():
            env, *entry = (~value.isfinite()).nonzero()[0].tolist()
            where = f"entry {entry[0]} of env {env}" if entry else f"env {env}"
            self._tell(what, f"must be finite, and is {float(value[env, *entry])} in {where}")
        else:
            return value
        return None

    def _tell(self, what: str, problem: str) -> None:
        self.problems.append(f"{what} {problem}")
        self._told.add(what)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
