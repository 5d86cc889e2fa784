"""Whether a Gymnasium goal env is at its goal, by its info or else by a sparse reward.

Worker processes import this module, so it does not import torch. G goal.
"""

from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from torch_crl.envs.gymnasium.errors import UnsuitableEnvError, told

Array = NDArray[np.float64]

_KEYS = ("is_success", "success")
# Distances from a goal at which the reward is tried, as multiples of the goal's largest entry or
# of 1, whichever is larger.
_BESIDE = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1000.0)


def told_success(info: dict[str, Any]) -> bool | None:
    """Success as the info of a step reports it; None if it does not."""
    for key in _KEYS:
        if info.get(key) is not None:
            return bool(info[key])
    return None


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseReward:
    """A `compute_reward` with two values, of which the larger one means success."""

    threshold: float
    """Midpoint of the two values."""
    batched: bool
    """Whether it takes batches only, as Stable-Baselines3 calls it."""

    def reached(
        self,
        env: gymnasium.Env[Any, Any],
        achieved_G: Array,
        goal_G: Array,
        info: dict[str, Any],
    ) -> bool:
        """Whether the achieved goal counts as the goal."""
        return _reward(env, achieved_G, goal_G, info, batched=self.batched) > self.threshold


def find_sparse_reward(
    env: gymnasium.Env[Any, Any], visited: list[tuple[Array, Array, dict[str, Any]]]
) -> SparseReward:
    """Try `compute_reward` at and beside a goal, and where the env has been.

    `visited` has achieved goals, goals and infos of some steps. Raises UnsuitableEnvError, whose
    text is the rest of a sentence, if the env has no compute_reward that tells success.
    """
    if not env.has_wrapper_attr("compute_reward"):
        raise UnsuitableEnvError("has no compute_reward")
    batched = _takes_batches_only(env, *visited[-1])
    _, goal_G, info = visited[-1]
    at_goal = _reward(env, goal_G, goal_G, info, batched=batched)
    rewards = {at_goal, *(_reward(env, *step, batched=batched) for step in visited)}
    scale = max(1.0, float(np.abs(goal_G).max()))
    for distance in _BESIDE:
        # Such goals may not exist, and the env may raise an error.
        with suppress(Exception):
            rewards.add(_reward(env, goal_G + distance * scale, goal_G, info, batched=batched))
    best, worst = max(rewards), min(rewards)
    if len(rewards) > 2:
        some = ", ".join(f"{reward:.4g}" for reward in sorted(rewards, reverse=True)[:3])
        raise UnsuitableEnvError(f"has a dense compute_reward ({some}, ...)")
    if at_goal < best or best == worst:
        others = f"{best:g}" if at_goal < best else "the same"
        raise UnsuitableEnvError(
            f"has a compute_reward that is {at_goal:g} at a goal and {others} elsewhere"
        )
    return SparseReward(threshold=(best + worst) / 2, batched=batched)


def _takes_batches_only(
    env: gymnasium.Env[Any, Any], achieved_G: Array, goal_G: Array, info: dict[str, Any]
) -> bool:
    failures = []
    for batched in (False, True):
        try:
            _reward(env, achieved_G, goal_G, info, batched=batched)
        except Exception as error:
            failures.append(told(error))
        else:
            return batched
    one, batch = failures
    raise UnsuitableEnvError(
        f"has a compute_reward that {one} for one goal, and {batch} for a batch of one"
    )


def _reward(
    env: gymnasium.Env[Any, Any],
    achieved_G: Array,
    goal_G: Array,
    info: dict[str, Any],
    *,
    batched: bool,
) -> float:
    compute_reward = env.get_wrapper_attr("compute_reward")
    if batched:
        reward = compute_reward(achieved_G[None], goal_G[None], np.array([info]))
    else:
        reward = compute_reward(achieved_G, goal_G, info)
    rewards = np.asarray(reward, dtype=np.float64)
    if rewards.size != 1:
        raise UnsuitableEnvError(f"gave rewards of shape {rewards.shape}")
    # Adding 0.0 turns -0.0 into 0.0.
    return float(rewards.reshape(())) + 0.0
