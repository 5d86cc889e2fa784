"""A Gymnasium goal env as a task: what it is, and many of them stepped in one process.

Worker processes import this module, hence no torch. N envs of a group, S state, G goal, A action.
"""

import importlib
import signal
import traceback
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from torch_crl.envs.spec import TaskSpec
from torch_crl.errors import TorchCrlError

_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
_SUCCESS_KEYS = ("is_success", "success")
_SHARED_MODEL = "ant_maze.xml"


class UnsuitableEnvError(TorchCrlError, ValueError):
    """There is no such Gymnasium env here, or it is not one that can be trained on."""


@cache
def probe(name: str) -> tuple[TaskSpec, EnvSpec]:
    """Sizes of `gymnasium:ID`, and what to make copies of it from, found by making and trying one.

    The state is concat(observation, achieved_goal). Raises UnsuitableEnvError with the reason.
    """
    env_id = _env_id(name)
    env = _make(env_id)
    try:
        spec = _task_spec(name, env)
        problem = _trial_problem(env)
    except UnsuitableEnvError:
        raise
    except Exception as error:
        problem = f"it raised {told(error)}"
    finally:
        env.close()
    if problem:
        raise UnsuitableEnvError(f"Gymnasium env {env_id!r} cannot be trained on: {problem}")
    assert env.spec is not None
    return spec, env.spec


def _env_id(name: str) -> str:
    return name.removeprefix("gymnasium:")


def _make(env_id: str) -> gymnasium.Env[Any, Any]:
    if ":" not in env_id and env_id not in gymnasium.registry:
        # The best known goal envs; their package registers them when it is imported.
        with suppress(ModuleNotFoundError):
            importlib.import_module("gymnasium_robotics")
    try:
        return _made(env_id)
    except Exception as error:
        if env_id.rpartition(":")[2] in gymnasium.registry:
            reason = told(error)
        else:
            reason = (
                f"{error} `gymnasium:module:ID` imports the module that registers an env first; "
                "PointMaze, AntMaze and others come with `pip install gymnasium-robotics`"
            )
        raise UnsuitableEnvError(f"Gymnasium env {env_id!r} cannot be made: {reason}") from error


def _made(env: str | EnvSpec, **options: Any) -> gymnasium.Env[Any, Any]:
    made = gymnasium.make(env, disable_env_checker=True, **options)
    # Mazes of gymnasium-robotics leave their model, which they have read by now, in a file of a
    # name with the time in it; older ones share one file, which others may be about to read.
    file = Path(getattr(made.unwrapped, "tmp_xml_file_path", _SHARED_MODEL))
    if file.name != _SHARED_MODEL:
        file.unlink(missing_ok=True)
    return made


def _task_spec(name: str, env: gymnasium.Env[Any, Any]) -> TaskSpec:
    """Raises UnsuitableEnvError where the spaces are not those of a goal env."""
    env_id, space, actions = _env_id(name), env.observation_space, env.action_space
    parts = [space.get(key) for key in _GOAL_KEYS] if isinstance(space, spaces.Dict) else [None]
    if not all(isinstance(part, spaces.Box) and len(part.shape) == 1 for part in parts):
        raise UnsuitableEnvError(
            f"Gymnasium env {env_id!r} is not a goal env: its observation space is {space}; "
            f"needed is a Dict of {', '.join(_GOAL_KEYS)}, each a Box of one axis"
        )
    if not isinstance(actions, spaces.Box) or len(actions.shape) != 1 or not actions.is_bounded():
        raise UnsuitableEnvError(
            f"Gymnasium env {env_id!r} cannot be trained on: its action space is {actions}; needed "
            "is a Box of one axis with finite bounds"
        )
    observation, achieved, desired = (cast(spaces.Box, part).shape[0] for part in parts)
    if achieved != desired:
        raise UnsuitableEnvError(
            f"Gymnasium env {env_id!r} cannot be trained on: its achieved goal has {achieved} "
            f"numbers and its desired goal {desired}"
        )
    limit = env.spec.max_episode_steps if env.spec is not None else None
    return TaskSpec(
        name=name,
        state_size=observation + achieved,
        goal_slice=(observation, observation + achieved),
        action_size=actions.shape[0],
        success_radius={},
        episode_length=limit or 1000,
    )


def _trial_problem(env: gymnasium.Env[Any, Any]) -> str:
    """What one step shows that the spaces do not; empty if nothing."""
    env.reset(seed=0)
    actions = cast(spaces.Box, env.action_space)
    middle = (actions.low + actions.high) / 2
    *_, info = env.step(middle.astype(actions.dtype))
    if any(key in info for key in _SUCCESS_KEYS) or env.has_wrapper_attr("compute_reward"):
        return ""
    return f"it tells success neither by info[{_SUCCESS_KEYS[0]!r}] nor by compute_reward"


def told(error: BaseException) -> str:
    """Type, message and place of an exception, on one line."""
    message = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    place = traceback.extract_tb(error.__traceback__)[-1:]
    return " ".join([message, *(f"({frame.filename}:{frame.lineno})" for frame in place)])


def columns(spec: TaskSpec) -> dict[str, slice]:
    """Where each part of a step stands in a row of an `EnvGroup`'s table."""
    sizes = {
        "state": spec.state_size,
        "goal": spec.goal_size,
        "final_state": spec.state_size,
        "distance": 1,
        "success": 1,
        "terminated": 1,
        "truncated": 1,
    }
    stops = np.cumsum(list(sizes.values())).tolist()
    return {
        part: slice(stop - size, stop)
        for (part, size), stop in zip(sizes.items(), stops, strict=True)
    }


class EnvGroup(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Several envs, stepped one after another, as one whose observation is a table: a row an env.

    `columns` says what stands in a row. An env whose episode ended has begun the next one: `state`
    and `goal` are of that one, everything else is of the step. For `gymnasium.vector`'s processes:
    one message a group and step instead of one an env takes light envs several times as far.
    """

    def __init__(
        self, spec: TaskSpec, env_spec: EnvSpec, *, count: int, rows: int, episode_length: int
    ) -> None:
        """`count` envs in the first of `rows` rows; they are made at the first reset."""
        self._columns = columns(spec)
        width = self._columns["truncated"].stop
        self.observation_space = spaces.Box(-np.inf, np.inf, (rows, width))
        self.action_space = spaces.Box(-1.0, 1.0, (rows, spec.action_size))
        self._table = np.zeros((rows, width), dtype=np.float32)
        self._env_spec = env_spec
        self._episode_length = episode_length
        self._count = count
        self._envs: list[gymnasium.Env[Any, Any]] = []

    def reset(
        self,
        *,
        seed: int | None = None,
        options: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode in every env: the first with this seed, the next with the one after."""
        try:
            if not self._envs:
                self._make_envs()
            for index, env in enumerate(self._envs):
                observation, _ = env.reset(seed=None if seed is None else seed + index)
                self._write_next(index, observation)
        except Exception as error:
            return self._table, {"error": told(error)}
        return self._table, {}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Apply actions in [-1, 1], a row an env, rescaled to the bounds of the envs."""
        try:
            control_NA = self._low + (action + 1.0) * self._half_range
            for index, env in enumerate(self._envs):
                self._step_one(index, env, control_NA[index].astype(self._dtype))
        except Exception as error:
            return self._table, 0.0, False, False, {"error": told(error)}
        return self._table, 0.0, False, False, {}

    def close(self) -> None:
        for env in self._envs:
            env.close()

    def _make_envs(self) -> None:
        # Ctrl-C reaches the whole group of processes; the training process decides what ends.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._envs = [
            _made(self._env_spec, max_episode_steps=self._episode_length)
            for _ in range(self._count)
        ]
        actions = cast(spaces.Box, self._envs[0].action_space)
        self._dtype = actions.dtype
        self._low = actions.low.astype(np.float64)
        self._half_range = (actions.high - self._low) / 2

    def _step_one(
        self, index: int, env: gymnasium.Env[Any, Any], control_A: NDArray[np.float64]
    ) -> None:
        row, places = self._table[index], self._columns
        observation, reward, terminated, truncated, info = env.step(control_A)
        achieved_G, goal_G = observation["achieved_goal"], observation["desired_goal"]
        row[places["final_state"]] = np.concatenate([observation["observation"], achieved_G])
        row[places["distance"]] = np.linalg.norm(achieved_G - goal_G)
        row[places["success"]] = _success(env, goal_G, float(reward), info)
        row[places["terminated"]], row[places["truncated"]] = terminated, truncated
        if terminated or truncated:
            observation, _ = env.reset()
        self._write_next(index, observation)

    def _write_next(self, index: int, observation: dict[str, NDArray[Any]]) -> None:
        row, places = self._table[index], self._columns
        row[places["state"]] = np.concatenate(
            [observation["observation"], observation["achieved_goal"]]
        )
        row[places["goal"]] = observation["desired_goal"]


def _success(
    env: gymnasium.Env[Any, Any], goal_G: NDArray[Any], reward: float, info: dict[str, Any]
) -> bool:
    for key in _SUCCESS_KEYS:
        if key in info:
            return bool(info[key])
    # The best reward that there is for this goal.
    best: float = env.get_wrapper_attr("compute_reward")(goal_G, goal_G, info)
    return reward >= best
