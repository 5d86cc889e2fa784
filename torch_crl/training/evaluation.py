"""Evaluation of a policy by episodes in separate envs. N envs, S state, G goal, A action."""

import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from torch_crl.agent.policy import Acts, Controls, Policy, controller_of, places_of
from torch_crl.distributed.ranks import ALONE, Ranks
from torch_crl.envs.make import make_vector_env
from torch_crl.envs.places import GoalPoints
from torch_crl.envs.registry import task_spec
from torch_crl.envs.spec import TaskSpec, other_sizes
from torch_crl.envs.vector_env import StepResult, VectorEnv
from torch_crl.errors import NotFiniteError, UsageError
from torch_crl.recipe.presets import preset
from torch_crl.system.cuda_graph import CudaRecorder, GraphedFunction
from torch_crl.system.threads import torch_threads
from torch_crl.system.torch_defaults import torch_defaults

Observe = Callable[[Tensor, Tensor, Tensor], object]
"""Takes the states [N, S], the goals [N, G] and which first episodes are not over, bool [N]."""

# With more goals than this, success is not listed for each of them.
_MOST_GOALS = 16


@torch_defaults()
@torch_threads(1)
@torch.no_grad()
def evaluate(
    policy: Acts,
    task_name: str,
    *,
    num_envs: int = 128,
    episode_length: int | None = None,
    seed: int = 0,
    simulator: str = "cpu",
    num_threads: int = 0,
    device: torch.device | str = "cpu",
    env_timeout: float = 300.0,
    on_step: Callable[[int], object] | None = None,
    observe: Observe | None = None,
    ranks: Ranks = ALONE,
    places: GoalPoints | None = None,
) -> dict[str, float]:
    """Metrics of one episode of `policy` in each of `num_envs` fresh envs.

    Args:
        policy: (state [N, S], goal [N, G]) to action [N, A], float32 on the device of physics, or
            what has a method `controller` that makes such a function for `num_envs` episodes.
        task_name: a registered task or `module:function`.
        episode_length: the time limit, in control steps; None is that of the task's preset.
        seed: of the random starts and goals. What is left out here is as in `make_vector_env`.
        on_step: called with the number of control steps done, to show progress.
        observe: called before each control step.
        ranks: those that evaluate this policy together, each in `num_envs` envs of its own.
        places: points that goals are moved to; by default those that the policy knows.

    Returns:
        Means over the first episode of each env. `time_at_goal` is the number of control steps
        within the success radius (more is better), `time_at_goal_share` is its share of the time
        limit; `success_any` is the share of episodes that were there at least once;
        `final_distance` and `mean_distance` are in metres, `episode_length` in control steps. Tasks
        with further success levels add `time_at_goal_easy` and the like. For at most 16 different
        goals, such as the cells of a maze, `success_at_12_4` is the share of successes among the
        episodes that began with the goal (12, 4).

        A Gymnasium env may truncate an episode earlier. One that terminates loses the rest of its
        time, so where goals end episodes, `success_any` tells more than `time_at_goal_share`.

    Raises:
        UsageError: `num_envs` or `episode_length` is below 1, or `policy` returns no [N, A] tensor.
        NotFiniteError: the task or the policy gave NaN or infinity, so that no metric is ever NaN.
        SimulatorError: the simulator cannot run the task here, or its physics is wrong.
    """
    with ranks.together():
        _require_known(policy, task_name)
        length = preset(task_name).task.episode_length if episode_length is None else episode_length
        vector_env = make_vector_env(
            task_name,
            num_envs=num_envs,
            episode_length=length,
            seed=seed,
            simulator=simulator,
            num_threads=num_threads,
            device=device,
            places=places or places_of(policy),
            env_timeout=env_timeout,
        )
    with closing(vector_env) as env, ranks.together():
        tally = _Tally(env.goal_NG, length)
        controller = controller_of(policy, num_envs, env)
        act_and_step = partial(_act_and_step, controller, env, tally, observe)
        advance: Callable[[], object] = act_and_step
        if observe is None and _is_capturable(policy, env):
            advance = _captured(act_and_step, env)
        for step in range(1, length + 1):
            try:
                advance()
            except NotFiniteError as error:
                env.check()
                raise NotFiniteError(f"{task_name}, control step {step}: {error}") from None
            if on_step is not None:
                on_step(step)
            # Reading a tensor of another device would wait for that device.
            if (env.state_NS.is_cpu or step % 50 == 0) and not tally.alive_N.any():
                break
        env.check()
    return _finite(tally.of_all(ranks).means(), task_name)


def _require_known(policy: Acts, task_name: str) -> None:
    """Raise an error for what is no policy, or for one that has learned to see another task."""
    if not callable(policy) and not hasattr(policy, "controller"):
        raise UsageError(
            f"policy must be a policy or a function of state and goal, got {policy!r}; "
            "load_policy(run) reads one"
        )
    if isinstance(policy, Policy):
        policy.check_task(task_name)
        _require_sizes(policy, task_spec(task_name))


def _require_sizes(policy: Policy, spec: TaskSpec) -> None:
    # What sees by a camera, or reads sentences, makes what the actor takes itself.
    own_state, own_goal = policy.camera is not None, policy.reader is not None
    names = ["action_size"] + ["state_size"] * (not own_state) + ["goal_size"] * (not own_goal)
    if differing := other_sizes(spec, policy, names):
        raise UsageError(f"this policy cannot act in {spec.name}: {differing}")


def _is_capturable(policy: Acts, env: VectorEnv) -> bool:
    on_cuda = env.capturable and env.state_NS.is_cuda
    return on_cuda and isinstance(policy, Policy) and not policy.films


def _captured(act_and_step: Callable[[], dict[str, Tensor]], env: VectorEnv) -> GraphedFunction:
    return GraphedFunction(
        act_and_step,
        make_recorder=lambda: CudaRecorder(env.state_NS.device, [*env.generators]),
        fixed=env.live_tensors,
    )


def _act_and_step(
    controller: Controls, env: VectorEnv, tally: "_Tally", observe: Observe | None
) -> dict[str, Tensor]:
    """One control step of all envs; returns an empty dict, as captured functions return one."""
    if observe is not None:
        observe(env.state_NS, env.goal_NG, tally.alive_N)
    result = env.step(_checked(controller(env.state_NS, env.goal_NG), env))
    tally.add(result)
    controller.reset(result.terminated_N | result.truncated_N)
    return {}


def _checked(action_NA: object, env: VectorEnv) -> Tensor:
    wanted, given = [env.num_envs, env.spec.action_size], type(action_NA).__name__
    if isinstance(action_NA, Tensor):
        if list(action_NA.shape) == wanted:
            return action_NA
        given = str(list(action_NA.shape))
    raise UsageError(f"the policy must return a tensor of shape {wanted}, got {given}")


class _Tally:
    """Sums over the first episode of each env, updated in place."""

    def __init__(self, goal_NG: Tensor, episode_length: int) -> None:
        num_envs, device = len(goal_NG), goal_NG.device

        def zeros() -> Tensor:
            return torch.zeros(num_envs, device=device)

        self.goals = goal_NG.tolist()
        self.episode_length = episode_length
        self.limit_N = torch.full((num_envs,), float(episode_length), device=device)
        self.alive_N = torch.ones(num_envs, dtype=torch.bool, device=device)
        self.length_N, self.distance_sum_N, self.final_distance_N = zeros(), zeros(), zeros()
        self.at_goal = defaultdict[str, Tensor](zeros)

    def add(self, result: StepResult) -> None:
        alive_N = self.alive_N
        self.length_N += alive_N
        self.distance_sum_N += alive_N * result.distance_N
        self.final_distance_N.copy_(torch.where(alive_N, result.distance_N, self.final_distance_N))
        for level, success_N in result.success.items():
            self.at_goal[level] += alive_N & success_N
        ends_N = alive_N & result.truncated_N
        self.limit_N.copy_(torch.where(ends_N, self.length_N, self.limit_N))
        alive_N &= ~(result.terminated_N | result.truncated_N)

    def of_all(self, ranks: Ranks) -> "_Tally":
        """The sums over the episodes of all ranks."""
        if ranks.is_alone:
            return self
        mine = [self.limit_N, self.length_N, self.distance_sum_N, self.final_distance_N]
        mine += self.at_goal.values()
        goals, parts = zip(*ranks.all_of((self.goals, torch.stack(mine).cpu())), strict=True)
        every = torch.cat(parts, dim=1)
        whole = _Tally(every[0], self.episode_length)
        whole.goals = [goal for some in goals for goal in some]
        whole.limit_N, whole.length_N, whole.distance_sum_N, whole.final_distance_N = every[:4]
        whole.at_goal |= dict(zip(self.at_goal, every[4:], strict=True))
        return whole

    def means(self) -> dict[str, float]:
        reached_N = self.at_goal["success"] > 0
        # Exactly 1 for episodes with the whole time limit, so that their share is not rounded.
        weight_N = self.episode_length / self.limit_N
        metrics = {
            f"time_at_goal{level.removeprefix('success')}": steps_N.mean()
            for level, steps_N in self.at_goal.items()
        }
        metrics |= {
            "time_at_goal_share": (
                (self.at_goal["success"] * weight_N).mean() / self.episode_length
            ),
            "success_any": reached_N.float().mean(),
            "final_distance": self.final_distance_N.mean(),
            "mean_distance": (self.distance_sum_N / self.length_N).mean(),
            "episode_length": self.length_N.mean(),
        }
        by_goal = _success_by_goal(self.goals, reached_N.tolist())
        return {name: float(value) for name, value in metrics.items()} | by_goal


def _finite(metrics: dict[str, float], task_name: str) -> dict[str, float]:
    wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise NotFiniteError(f"{task_name}: {', '.join(wrong)} of the evaluation are not finite")
    return metrics


def _success_by_goal(goals: list[list[float]], reached: list[bool]) -> dict[str, float]:
    """Share of each goal's episodes that reached it, in order of the goals; empty if there are
    many goals or if no two episodes have the same one.
    """
    reached_at = defaultdict(list)
    for goal, there in zip(goals, reached, strict=True):
        reached_at[tuple(map(_rounded, goal))].append(there)
    if len(reached_at) > min(_MOST_GOALS, len(goals) - 1):
        return {}
    return {
        "success_at_" + "_".join(f"{number:g}" for number in goal): sum(there) / len(there)
        for goal, there in sorted(reached_at.items())
    }


def _rounded(number: float) -> float:
    """Rounded to six digits and a tenth of a millimetre, so that neither the rounding of fp32 nor
    the sign of a zero makes equal goals differ.
    """
    return round(float(f"{number:.6g}"), 4) + 0.0
