"""Our vector env as one of Stable-Baselines3. N envs, S state, G goal, A action, B batch."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from torch_crl.envs.vector_env import VectorEnv

Floats = NDArray[np.float32]
Observation = Floats | dict[str, Floats]


class LibraryVecEnv(VecEnv):
    """A VecEnv that steps all episodes as one batch in this process.

    An observation is concat(state, goal) or, with `goal_env`, a dict of the three parts that
    hindsight goals need. The reward of a control step is 1 within the success radius, else 0
    (`sparse`), or minus the distance in metres (`dense`).
    """

    def __init__(self, env: VectorEnv, *, reward: str, goal_env: bool) -> None:
        """Take over an env; `close` closes it."""
        self.env = env
        self.reward = reward
        self.goal_env = goal_env
        self.at_goal = 0.0
        """Number of steps at the goal, over all envs, since this was set to 0."""
        self.failures = 0.0
        """Number of steps that were failures, counted in the same way."""
        self._action_NA = torch.zeros(env.num_envs, env.spec.action_size)
        spec = env.spec
        parts: dict[str, spaces.Space[Any]] = {
            "observation": _unbounded(spec.state_size),
            "achieved_goal": _unbounded(spec.goal_size),
            "desired_goal": _unbounded(spec.goal_size),
        }
        super().__init__(
            env.num_envs,
            spaces.Dict(parts) if goal_env else _unbounded(spec.state_size + spec.goal_size),
            spaces.Box(-1.0, 1.0, (spec.action_size,), np.float32),
        )

    def reset(self) -> Observation:
        """Begin a fresh episode in every env."""
        self.env.reset()
        return self._observation(self.env.state_NS, self.env.goal_NG)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions [N, A] for `step_wait`."""
        self._action_NA.copy_(torch.from_numpy(actions))

    def step_wait(self) -> tuple[Observation, Floats, NDArray[np.bool_], list[dict[str, Any]]]:
        """One control step: observations, rewards [N], dones [N], and infos at ends of episodes."""
        env = self.env
        goal_NG = env.goal_NG.clone()
        result = env.step(self._action_NA.to(env.state_NS.device))
        ended_N = (result.terminated_N | result.truncated_N).cpu().numpy()
        success_N = result.success["success"]
        reward_N = success_N.float() if self.reward == "sparse" else -result.distance_N
        self.at_goal += float(success_N.sum())
        self.failures += float(env.failed(result).sum())
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if ended_N.any():
            final_goal_NG = env.goal_after(goal_NG, result.final_state_NS)
            final = self._observation(result.final_state_NS, final_goal_NG)
            # What would have come after diverged physics is as unknown as after a time limit.
            cut_N = (result.truncated_N | result.unstable_N).cpu().numpy()
            for index in np.flatnonzero(ended_N).tolist():
                infos[index] = {
                    "terminal_observation": _row(final, index),
                    "TimeLimit.truncated": bool(cut_N[index]),
                }
        observation = self._observation(env.state_NS, env.goal_NG)
        return observation, reward_N.cpu().numpy(), ended_N, infos

    def compute_reward(
        self,
        achieved_goal: Floats,
        desired_goal: Floats,
        infos: Any,  # noqa: ARG002
    ) -> Floats:
        """Rewards [B] of achieved goals [B, G] if the desired goals had been these [B, G]."""
        distance_B, success = self.env.outcome(
            torch.from_numpy(achieved_goal), torch.from_numpy(desired_goal)
        )
        reward_B = success["success"].float() if self.reward == "sparse" else -distance_B
        return reward_B.numpy()

    def env_method(
        self,
        method_name: str,
        *arguments: Any,
        indices: int | Iterable[int] | None = None,
        **keywords: Any,
    ) -> list[Any]:
        """Call a method of this object: the library calls `compute_reward` of a single env."""
        answer = getattr(self, method_name)(*arguments, **keywords)
        return [answer for _ in self._get_indices(indices)]

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """`render_mode`, which is None, or an attribute of this object."""
        value = None if attr_name == "render_mode" else getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(
        self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None
    ) -> None:
        """Raise NotImplementedError: an env cannot be changed, since all envs are one batch."""
        raise NotImplementedError(f"cannot set {attr_name} of {indices}: the envs are one batch")

    def env_is_wrapped(
        self,
        wrapper_class: type,  # noqa: ARG002
        indices: int | Iterable[int] | None = None,
    ) -> list[bool]:
        """No env is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def close(self) -> None:
        """Close the env."""
        self.env.close()

    def _observation(self, state_NS: Tensor, goal_NG: Tensor) -> Observation:
        # The env writes its tensors in place, so the library gets copies.
        if not self.goal_env:
            return _numpy(torch.cat([state_NS, goal_NG], dim=-1))
        first, stop = self.env.spec.goal_slice
        return {
            "observation": _numpy(state_NS.clone()),
            "achieved_goal": _numpy(state_NS[:, first:stop].clone()),
            "desired_goal": _numpy(goal_NG.clone()),
        }


def _unbounded(size: int) -> spaces.Box:
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def _numpy(tensor: Tensor) -> Floats:
    return tensor.cpu().numpy()


def _row(observation: Observation, index: int) -> Observation:
    if isinstance(observation, dict):
        return {name: part[index] for name, part in observation.items()}
    row: Floats = observation[index]
    return row
