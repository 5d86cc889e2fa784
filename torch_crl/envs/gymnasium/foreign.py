"""A Gymnasium goal env as a task: checks whether it can be trained on, and finds its sizes.

Worker processes import this module, so it does not import torch. N envs, S state, G goal, A action.
"""

import importlib
import itertools
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from torch_crl.envs.gymnasium.errors import UnsuitableEnvError, told
from torch_crl.envs.gymnasium.success import SparseReward, find_sparse_reward, told_success
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task_name import parse_task_name

Array = NDArray[np.float64]

_GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")
_SHARED_MODEL = "ant_maze.xml"
# Steps of the trial, and its time limit. It goes on to the end of the episode if these steps do
# not show how the env reports success.
_TRIAL_STEPS = 20
_TRIAL_SECONDS = 20.0
# Frames per second of envs that do not state it, as in Gymnasium's own video recorder.
_USUAL_FPS = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Foreign:
    """What the trial of an env has found."""

    spec: TaskSpec
    """Sizes of the env; the state is concat(observation, achieved_goal)."""
    env_spec: EnvSpec
    """Gymnasium's spec, from which copies of the env are made."""
    reward: SparseReward | None
    """Tells success where the info of a step does not; None if only infos tell it."""
    render_modes: tuple[str, ...]
    seconds_per_step: float
    """Time between two pictures of the env when they are shown in real time."""


@cache
def probe(name: str) -> Foreign:
    """Make `gymnasium:ID` and try it for a few steps, or an episode if success shows only then.

    Raises UnsuitableEnvError with the reason.
    """
    env_id = _env_id(name)
    env = _make(env_id)
    try:
        spec = _task_spec(name, env)
        reward = _trial(env, spec)
    except (Exception, SystemExit) as error:
        if isinstance(error, UnsuitableEnvError) and env_id in str(error):
            raise
        raise UnsuitableEnvError(
            f"Gymnasium env {env_id!r} cannot be trained on: it {told(error)}"
        ) from error
    finally:
        with suppress(Exception):
            env.close()
    assert env.spec is not None
    return Foreign(
        spec=spec,
        env_spec=env.spec,
        reward=reward,
        render_modes=tuple(env.metadata.get("render_modes") or ()),
        seconds_per_step=1.0 / (env.metadata.get("render_fps") or _USUAL_FPS),
    )


class Controls:
    """Maps actions in [-1, 1] to those of a bounded Box; integers are rounded to the nearest."""

    def __init__(self, space: spaces.Box) -> None:
        """Map to actions of this space."""
        self._dtype = space.dtype
        self._low, self._high = space.low.astype(np.float64), space.high.astype(np.float64)
        self._half_range = (self._high - self._low) / 2

    def __call__(self, action_NA: NDArray[Any]) -> NDArray[Any]:
        """The rescaled actions, shape [N, A], in the dtype of the space."""
        control_NA = self._low + (action_NA + 1.0) * self._half_range
        np.clip(control_NA, self._low, self._high, out=control_NA)
        if np.issubdtype(self._dtype, np.integer):
            np.rint(control_NA, out=control_NA)
        return control_NA.astype(self._dtype)


def read(observation: Any, into: tuple[Array, Array, Array]) -> None:
    """Write observation, achieved goal [G] and goal [G] as float64, whatever their type.

    Differences of integers could wrap around. Raises UnsuitableEnvError if a shape is not the one
    of the observation space.
    """
    try:
        for key, part in zip(_GOAL_KEYS, into, strict=True):
            given = np.asarray(observation[key], np.float64)
            if given.shape != part.shape:
                raise UnsuitableEnvError(
                    f"gave {key} of shape {given.shape} where its observation space says "
                    f"{part.shape}"
                )
            part[:] = given
    except (LookupError, TypeError, ValueError) as error:
        if isinstance(error, UnsuitableEnvError):
            raise
        raise UnsuitableEnvError(
            f"gave an observation that is not a dict of numbers for {', '.join(_GOAL_KEYS)} "
            f"({type(error).__name__}: {error})"
        ) from error


def parts_of(row: Array, spec: TaskSpec) -> tuple[Array, Array, Array]:
    """The parts of a row that `read` writes to; the row begins with the state and the goal."""
    first, stop = spec.goal_slice
    return row[:first], row[first:stop], row[stop : stop + spec.goal_size]


def _env_id(name: str) -> str:
    return parse_task_name(name).rest


def _make(env_id: str) -> gymnasium.Env[Any, Any]:
    if ":" not in env_id and env_id not in gymnasium.registry:
        # This package has the best known goal envs, and registers them when it is imported.
        with suppress(ModuleNotFoundError):
            importlib.import_module("gymnasium_robotics")
    try:
        return made(env_id)
    except (Exception, SystemExit) as error:
        if env_id.rpartition(":")[2] in gymnasium.registry:
            reason = _robotics_problem(error) or f"it {told(error)}"
        else:
            reason = (
                f"{error} `gymnasium:module:ID` imports the module that registers an env first; "
                "PointMaze, AntMaze and others come with `pip install gymnasium-robotics`"
            )
        raise UnsuitableEnvError(f"Gymnasium env {env_id!r} cannot be made: {reason}") from error


def made(env: str | EnvSpec, **options: Any) -> gymnasium.Env[Any, Any]:
    """An env made by Gymnasium, without a file left behind in the temporary directory."""
    new = gymnasium.make(env, disable_env_checker=True, **options)
    # Mazes of gymnasium-robotics leave their model, which they have read by now, in a file whose
    # name contains the time. Older versions share one file, which is kept since other processes
    # may be about to read it.
    file = Path(getattr(new.unwrapped, "tmp_xml_file_path", _SHARED_MODEL))
    if file.name != _SHARED_MODEL:
        file.unlink(missing_ok=True)
    return new


def _robotics_problem(error: BaseException) -> str:
    """The message for a known clash of versions; empty if the error is another one.

    Since MuJoCo 3.12 `number in (mjJNT_HINGE, mjJNT_SLIDE)` no longer works, and gymnasium-robotics
    asserts it.
    """
    place = traceback.extract_tb(error.__traceback__)[-1].filename
    asks_for_joint_types = "gymnasium_robotics" in place and place.endswith("mujoco_utils.py")
    if not (asks_for_joint_types and isinstance(error, AssertionError) and not str(error)):
        return ""
    return (
        f"gymnasium-robotics {version('gymnasium-robotics')} and mujoco {version('mujoco')} do not "
        "fit together: up to 1.4.2 the Fetch, Hand and Kitchen envs need mujoco 3.11 or older, and "
        "torch_crl needs 3.17. What fits is a gymnasium-robotics with its pull request 330 (from "
        "September 2026): pip install git+https://github.com/Farama-Foundation/Gymnasium-Robotics"
    )


def _task_spec(name: str, env: gymnasium.Env[Any, Any]) -> TaskSpec:
    """Sizes of the env. Raises UnsuitableEnvError if its spaces are not those of a goal env."""
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


def _trial(env: gymnasium.Env[Any, Any], spec: TaskSpec) -> SparseReward | None:
    """Take random steps to find out how the env reports success; None if its infos do.

    Raises UnsuitableEnvError, whose text is the rest of a sentence about what the env does wrong.
    """
    steps = _one_episode(env, spec)
    visited = list(itertools.islice(steps, _TRIAL_STEPS))
    told_at = [told_success(info) is not None for *_, info in visited]
    if all(told_at):
        return None
    try:
        return find_sparse_reward(env, visited)
    except UnsuitableEnvError as problem:
        told_later = (told_success(info) is not None for *_, info in steps)
        if not any(told_at) and not any(told_later):
            raise UnsuitableEnvError(
                "tells success neither by info['is_success'] nor by compute_reward, which would "
                f"need two values, the better one at the goal: it {problem}. Let `step` return "
                "info['is_success'], for instance by a wrapper"
            ) from problem
    warnings.warn(
        f"{spec.name} reports only at some steps, perhaps the last of an episode, whether it is at "
        "its goal; other steps count as not at the goal, so read success_any, not time_at_goal",
        stacklevel=2,
    )
    return None


def _one_episode(
    env: gymnasium.Env[Any, Any], spec: TaskSpec
) -> Iterator[tuple[Array, Array, dict[str, Any]]]:
    """Achieved goal, goal and info of each step, until the episode ends or takes too long."""
    controls = Controls(cast(spaces.Box, env.action_space))
    draws = np.random.default_rng(0)
    deadline = time.monotonic() + _TRIAL_SECONDS
    parts = parts_of(np.zeros(spec.state_size + spec.goal_size), spec)
    read(env.reset(seed=0)[0], into=parts)
    for _ in range(spec.episode_length):
        control_A = controls(draws.uniform(-1.0, 1.0, (1, spec.action_size)))[0]
        observation, _, terminated, truncated, info = env.step(control_A)
        read(observation, into=parts)
        yield parts[1].copy(), parts[2].copy(), info
        if terminated or truncated:
            read(env.reset()[0], into=parts)
            return
        if time.monotonic() > deadline:
            return
