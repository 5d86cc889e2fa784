"""Gymnasium goal envs with a fault each, for `test_gymnasium_in`; worker processes import this."""

import os
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

LOW, HIGH = np.array([-2.0, 0.0], dtype=np.float32), np.array([1.0, 4.0], dtype=np.float32)


class PuckEnv(gymnasium.Env):
    """A point that goes where the action says, and fails where its first coordinate exceeds 1.5.

    The observation has its position and how often it was reset.
    """

    def __init__(self, success: str = "is_success", fault: str = "", fault_at: int = 3) -> None:
        if fault == "constructor":
            raise RuntimeError("no such puck")
        self.success, self.fault, self.fault_at = success, fault, fault_at
        self.observation_space = spaces.Dict(
            {
                "observation": spaces.Box(-np.inf, np.inf, (3,), np.float64),
                "achieved_goal": spaces.Box(-np.inf, np.inf, (2,), np.float64),
                "desired_goal": spaces.Box(-np.inf, np.inf, (2,), np.float64),
            }
        )
        self.action_space = spaces.Box(LOW, HIGH)
        if fault == "unbounded":
            self.action_space = spaces.Box(-np.inf, np.inf, (2,))
        if fault == "flat":
            self.observation_space = spaces.Box(-1.0, 1.0, (3,))
        if success != "none":
            self.compute_reward = lambda achieved, goal, info: (
                -(np.linalg.norm(np.asarray(achieved) - goal, axis=-1) > 0.4).astype(np.float64)
            )
        self.resets = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.resets += 1
        self.steps = 0
        self.position = self.np_random.uniform(-1, 1, 2)
        self.goal = self.np_random.uniform(-1, 1, 2)
        return self._observation(), {}

    def step(self, action: NDArray) -> tuple[dict, float, bool, bool, dict]:
        assert self.action_space.contains(action), action
        self.steps += 1
        if self.fault == "step" and self.steps == self.fault_at:
            raise ValueError("the puck is gone")
        if self.fault == "death" and self.steps == self.fault_at:
            os._exit(1)
        self.position = self.position + 0.2 * action
        near = bool(np.linalg.norm(self.position - self.goal) <= 0.4)
        info = {self.success: near} if "success" in self.success else {}
        return self._observation(), near - 1.0, bool(self.position[0] > 1.5), False, info

    def _observation(self) -> dict:
        return {
            "observation": np.array([*self.position, self.resets]),
            "achieved_goal": self.position.copy(),
            "desired_goal": self.goal.copy(),
        }


def register(name: str, **kwargs: Any) -> str:
    """Make a puck with these arguments known to Gymnasium; returns the task's name."""
    env_id = f"TorchCrlTests/{name}-v0"
    if env_id not in gymnasium.registry:
        gymnasium.register(
            env_id, entry_point=f"{__name__}:PuckEnv", max_episode_steps=7, kwargs=kwargs
        )
    return f"gymnasium:{env_id}"
