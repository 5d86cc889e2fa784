"""Deterministic episodes on envs of their own. N envs, S state, G goal, A action."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import closing

import torch
from torch import Tensor

from torch_crl.envs.make import make_vector_env
from torch_crl.threads import torch_threads


@torch_threads(1)
@torch.no_grad()
def evaluate(
    policy: Callable[[Tensor, Tensor], Tensor],
    task_name: str,
    *,
    num_envs: int = 128,
    episode_length: int = 1000,
    seed: int = 0,
    simulator: str = "cpu",
    num_threads: int = 0,
    on_step: Callable[[int], object] | None = None,
) -> dict[str, float]:
    """One episode of `policy` in each of `num_envs` fresh envs.

    Args:
        policy: (state [N, S], goal [N, G]) to action [N, A], float32 tensors on the CPU.
        task_name: a registered task or `module:function`.
        episode_length: control steps until the time limit.
        seed: decides starts and goals.
        simulator, num_threads: where and on how many threads physics runs; 0 is every CPU.
        on_step: called with the number of control steps done, to show progress.

    Returns:
        Means over the episodes, each counted until it first ends:
        `time_at_goal` control steps within the success radius (more is better), and as a share of
        `episode_length` in `time_at_goal_share`; `success_any` share of episodes that were there
        at least once; `final_distance` and `mean_distance` in metres; `episode_length` in control
        steps. Tasks with other success levels add `time_at_goal_easy` and the like.
    """
    vector_env = make_vector_env(
        task_name,
        num_envs=num_envs,
        episode_length=episode_length,
        seed=seed,
        simulator=simulator,
        num_threads=num_threads,
    )
    alive_N = torch.ones(num_envs, dtype=torch.bool)
    length_N, distance_sum_N, final_distance_N = (torch.zeros(num_envs) for _ in range(3))
    at_goal: dict[str, Tensor] = defaultdict(lambda: torch.zeros(num_envs))
    step = 0
    with closing(vector_env) as env:
        while alive_N.any():
            result = env.step(policy(env.state_NS, env.goal_NG))
            length_N += alive_N
            distance_sum_N += alive_N * result.distance_N
            final_distance_N = torch.where(alive_N, result.distance_N, final_distance_N)
            for level, success_N in result.success.items():
                at_goal[level] += alive_N & success_N
            alive_N &= ~(result.terminated_N | result.truncated_N)
            step += 1
            if on_step is not None:
                on_step(step)

    metrics = {
        f"time_at_goal{level.removeprefix('success')}": steps_N.mean()
        for level, steps_N in at_goal.items()
    }
    metrics |= {
        "time_at_goal_share": metrics["time_at_goal"] / episode_length,
        "success_any": (at_goal["success"] > 0).float().mean(),
        "final_distance": final_distance_N.mean(),
        "mean_distance": (distance_sum_N / length_N).mean(),
        "episode_length": length_N.mean(),
    }
    return {name: float(value) for name, value in metrics.items()}
