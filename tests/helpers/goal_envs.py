"""Gymnasium goal envs with a fault each, for `test_gymnasium_in`; worker processes import this."""

import multiprocessing
import os
import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

LOW, HIGH = np.array([-2.0, 0.0], dtype=np.float32), np.array([1.0, 4.0], dtype=np.float32)


Observation = dict[str, Any]


class PuckEnv(gymnasium.Env[Any, Any]):
    """A point that goes where the action says, and fails where its first coordinate exceeds 1.5.

    With `ends_at_goal`, an episode also ends within 0.4 of its goal.

    The observation has its position and how often it was reset. The fault comes at step `fault_at`
    of an episode, if the first reset was given the seed `faulty_seed`: a trial is given 0.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(
        self,
        success: str = "is_success",
        fault: str = "",
        fault_at: int = 3,
        faulty_seed: int = 14,
        gives: str = "",
        own_limit: int = 1000,
        ends_at_goal: bool = False,
        render_mode: str | None = None,
    ) -> None:
        if fault == "constructor":
            raise RuntimeError("no such puck")
        if fault == "slow constructor" and multiprocessing.parent_process() is not None:
            time.sleep(1.2)
        self.success, self.fault, self.fault_at = success, fault, fault_at
        self.faulty_seed = faulty_seed
        self.first_seed: int | None = None
        self.ends_at_goal = ends_at_goal
        self.gives, self.own_limit, self.render_mode = gives, own_limit, render_mode
        self.observation_space = spaces.Dict(
            {
                "observation": spaces.Box(-np.inf, np.inf, (3,), np.float64),
                "achieved_goal": spaces.Box(-np.inf, np.inf, (2,), np.float64),
                "desired_goal": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            }
        )
        self.action_space = spaces.Box(LOW, HIGH)
        if gives == "integer actions":
            self.action_space = spaces.Box(-5, 5, (2,), np.int64)
        if fault == "unbounded":
            self.action_space = spaces.Box(-np.inf, np.inf, (2,))
        if fault == "flat":
            self.observation_space = spaces.Box(-1.0, 1.0, (3,))
        if success in REWARDS:
            self.compute_reward = REWARDS[success]
        self.resets = self.steps = 0

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Observation, dict[str, Any]]:
        super().reset(seed=seed)
        if self.first_seed is None:
            self.first_seed = seed
        self.resets += 1
        self.steps = 0
        self.position = self.np_random.uniform(-1, 1, 2)
        self.goal = self.np_random.uniform(-1, 1, 2)
        return self._observation(), {}

    def step(self, action: NDArray[Any]) -> tuple[Observation, Any, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.steps += 1
        fault = self.fault if self._is_faulty() else ""
        if fault == "step":
            raise ValueError("the puck is gone")
        if fault == "exit":
            raise SystemExit(3)
        if fault == "death":
            os._exit(5)
        while fault == "hang":
            time.sleep(0.01)
        self.position = self.position + 0.2 * action
        near = bool(np.linalg.norm(self.position - self.goal) <= 0.4)
        info = {self.success: near} if self.success in ("success", "is_success") else {}
        if self.success == "at the end" and self.steps == 7:
            info = {"is_success": near}
        reward = [near - 1.0] if self.gives == "lists" else near - 1.0
        ended = bool(self.position[0] > 1.5) or (near and self.ends_at_goal)
        return self._observation(), reward, ended, self.steps >= self.own_limit, info

    def render(self) -> NDArray[np.uint8]:
        """The upper half is of a grey that says how many steps the episode has; below are all."""
        picture = np.full((32, 48, 3), 20 * self.steps, np.uint8)
        picture[16:] = 20 * (np.arange(48) // 4)[:, None]
        return picture

    def _is_faulty(self) -> bool:
        return self.first_seed == self.faulty_seed and self.steps == self.fault_at

    def _observation(self) -> Observation:
        observation: NDArray[Any] = np.array([*self.position, self.resets])
        achieved: NDArray[Any] = self.position.copy()
        goal: NDArray[Any] = self.goal.copy()
        if self.gives == "bytes":
            # Where 3 - 250 is 9.
            observation, achieved, goal = (np.full(n, 3, np.uint8) for n in (3, 2, 2))
            goal[0] = 250
        if self.fault.startswith("number") and self._is_faulty():
            observation[2] = float(self.fault.removeprefix("number"))
        if self.fault == "goal" and self._is_faulty():
            goal[1] = np.nan
        if self.fault == "shape" and self._is_faulty():
            achieved = achieved[:1]
        parts = {"observation": observation, "achieved_goal": achieved, "desired_goal": goal}
        if self.gives == "lists":
            return {key: part.tolist() for key, part in parts.items()}
        return parts


def _distance(achieved: Any, goal: NDArray[Any], axis: int = -1) -> NDArray[Any]:
    distance: NDArray[Any] = np.linalg.norm(np.asarray(achieved) - goal, axis=axis)
    return distance


# For pucks whose info does not say whether they are at their goal.
REWARDS = {
    "reward": lambda achieved, goal, info: -(_distance(achieved, goal) > 0.4).astype(np.float64),
    "batch reward": lambda achieved, goal, info: -(_distance(achieved, goal, 1) > 0.4).astype(int),
    "dense reward": lambda achieved, goal, info: -_distance(achieved, goal),
    "constant reward": lambda achieved, goal, info: 0.0,
}


def register(name: str, **kwargs: Any) -> str:
    """Make a puck with these arguments known to Gymnasium; returns the task's name."""
    env_id = f"TorchCrlTests/{name.replace(' ', '_')}-v0"
    if env_id not in gymnasium.registry:
        gymnasium.register(
            env_id, entry_point=f"{__name__}:PuckEnv", max_episode_steps=7, kwargs=kwargs
        )
    return f"gymnasium:{env_id}"
