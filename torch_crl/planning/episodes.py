"""Episodes with the places that were passed in them. N episodes, T control steps, G goal."""

from collections.abc import Callable
from contextlib import closing
from typing import NamedTuple

import torch
from torch import Tensor

from torch_crl.agent.policy import Acts, controller_of, places_of
from torch_crl.envs.make import make_vector_env
from torch_crl.system.threads import torch_threads
from torch_crl.system.torch_defaults import torch_defaults


class Episodes(NamedTuple):
    """The first episode of each env."""

    goal_NG: Tensor
    """The goal at the beginning."""
    achieved_TNG: Tensor
    """What was achieved before each control step; NaN after the end of the episode."""
    reached_N: Tensor
    """bool: whether the goal was reached."""


@torch_defaults()
@torch_threads(1)
@torch.no_grad()
def record_episodes(
    policy: Acts,
    task: str,
    *,
    num_envs: int,
    episode_length: int,
    seed: int,
    env_timeout: float = 300.0,
    on_step: Callable[[int], object] | None = None,
) -> Episodes:
    """Run one episode in each of `num_envs` envs; arguments are those of `evaluate`."""
    made = make_vector_env(
        task,
        num_envs=num_envs,
        episode_length=episode_length,
        seed=seed,
        places=places_of(policy),
        env_timeout=env_timeout,
    )
    with closing(made) as env:
        controller = controller_of(policy, num_envs, env)
        goal_NG = env.goal_NG.clone()
        alive_N = torch.ones(num_envs, dtype=torch.bool)
        reached_N = torch.zeros(num_envs, dtype=torch.bool)
        achieved = []
        for step in range(1, episode_length + 1):
            here_NG = env.state_NS[:, slice(*env.spec.goal_slice)]
            achieved.append(torch.where(alive_N[:, None], here_NG, torch.nan))
            result = env.step(controller(env.state_NS, env.goal_NG))
            reached_N |= alive_N & result.success["success"]
            ended_N = result.terminated_N | result.truncated_N
            controller.reset(ended_N)
            alive_N &= ~ended_N
            if on_step is not None:
                on_step(step)
            if not alive_N.any():
                break
        env.check()
    return Episodes(goal_NG, torch.stack(achieved), reached_N)
