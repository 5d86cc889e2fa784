"""Makes the vector env of a task from its name, whichever kind of task it is."""

import torch
from torch import Generator

from torch_crl.envs.gymnasium.vector_env import GymnasiumVectorEnv
from torch_crl.envs.places import GoalPoints, at_places, without_places
from torch_crl.envs.registry import make_task
from torch_crl.envs.simulators import make_simulator
from torch_crl.envs.task_name import parse_task_name
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.errors import UsageError, require_count, whole
from torch_crl.system.torch_defaults import torch_defaults


@torch_defaults()
def make_vector_env(
    name: str,
    *,
    num_envs: int,
    episode_length: int,
    seed: int,
    simulator: str = "cpu",
    num_threads: int = 0,
    device: torch.device | str = "cpu",
    cached_starts: bool = False,
    goal_redraw: float = 0.0,
    places: GoalPoints | None = None,
    env_timeout: float = 300.0,
) -> VectorEnv:
    """Make `num_envs` parallel episodes of a task; call `close` on the result at the end.

    Args:
        name: a registered task, `module:function` or `gymnasium:ID`.
        episode_length: control steps until the time limit.
        seed: seed of the starts and goals, which are drawn on the simulator's device.
        simulator: `cpu` or `warp`, see `torch_crl.envs.simulators`.
        num_threads: threads of the CPU simulator, or processes for a Gymnasium env, which brings
            its own physics; 0 uses every CPU.
        device: device of MuJoCo Warp; everything else runs on the CPU.
        cached_starts: each env repeats its first start and goal in every episode; ignored for
            Gymnasium envs.
        goal_redraw: probability, at every control step, that the commanded goal of an episode is
            drawn anew. Gymnasium envs keep their own goal for distance and success.
        places: command goals at these points only, which may have to be places of the task.
        env_timeout: seconds that a Gymnasium env may take for a step or a reset, 0 for no limit.

    Raises:
        UsageError: `num_envs`, `episode_length` or `seed` is no whole number, or out of range.
        ValueError: there is no such task, or it cannot be trained on.
        SimulatorError: the simulator cannot run the task on this machine.
    """
    if parse_task_name(name).kind == "gymnasium":
        _require(num_envs=num_envs, episode_length=episode_length, seed=seed)
        if places is not None:
            raise UsageError(without_places(name))
        return GymnasiumVectorEnv(
            name,
            num_envs=num_envs,
            episode_length=episode_length,
            seed=seed,
            num_processes=num_threads,
            env_timeout=env_timeout,
            goal_redraw=goal_redraw,
        )
    return make_task_vector_env(
        name,
        num_envs=num_envs,
        episode_length=episode_length,
        seed=seed,
        simulator=simulator,
        num_threads=num_threads,
        device=device,
        cached_starts=cached_starts,
        goal_redraw=goal_redraw,
        places=places,
    )


@torch_defaults()
def make_task_vector_env(
    name: str,
    *,
    num_envs: int,
    episode_length: int,
    seed: int,
    simulator: str = "cpu",
    num_threads: int = 0,
    device: torch.device | str = "cpu",
    cached_starts: bool = False,
    goal_redraw: float = 0.0,
    places: GoalPoints | None = None,
    autoreset: bool = True,
) -> TaskVectorEnv:
    """Like `make_vector_env`, but only for tasks with a model: registered or `module:function`.

    Without `autoreset` an episode goes on after its end, until `reset` begins the next one.
    """
    _require(num_envs=num_envs, episode_length=episode_length, seed=seed)
    task = make_task(name)
    if places is not None:
        task = at_places(task, places)
    physics = make_simulator(
        simulator,
        task.model,
        num_envs=num_envs,
        fields=task.fields,
        num_threads=num_threads,
        device=device,
        capacity=task.capacity,
    )
    return TaskVectorEnv(
        task,
        physics,
        episode_length=episode_length,
        generator=Generator(device=physics.device).manual_seed(int(seed)),
        cached_starts=cached_starts,
        goal_redraw=goal_redraw,
        autoreset=autoreset,
    )


def _require(*, seed: int, **counts: int) -> None:
    """Raise UsageError unless the seed and these counts are whole numbers in their ranges."""
    for what, count in counts.items():
        require_count(what, count)
    if not 0 <= whole("seed", seed) < 2**63:
        raise UsageError(f"seed must be at least 0 and below 2^63, got {seed}")
