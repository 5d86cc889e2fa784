"""One way to the parallel episodes of a task, whichever kind of name it has."""

import torch
from torch import Generator

from torch_crl.envs.gymnasium.vector_env import GymnasiumVectorEnv
from torch_crl.envs.registry import make_task
from torch_crl.envs.simulators import make_simulator
from torch_crl.envs.task_name import parse_task_name
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.errors import UsageError
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
    env_timeout: float = 300.0,
) -> VectorEnv:
    """`num_envs` parallel episodes of a task; `close` it at the end.

    Args:
        name: a registered task, `module:function` or `gymnasium:ID`.
        episode_length: control steps until the time limit.
        seed: decides starts and goals, drawn on the simulator's device.
        simulator: `cpu` or `warp`, see `torch_crl.envs.simulators`.
        num_threads: of the CPU simulator, or processes of a Gymnasium env, which brings its own
            physics; 0 is every CPU.
        device: of Warp; everything else is on the CPU.
        cached_starts: each env repeats its first start and goal; not for Gymnasium envs.
        env_timeout: seconds that a Gymnasium env may take for a step or a reset, 0 for any time.

    Raises:
        UsageError: no env or no step was asked for.
        ValueError: there is no such task, or it cannot be trained on.
        SimulatorError: the simulator cannot run it here.
    """
    _require_positive(num_envs=num_envs, episode_length=episode_length)
    if parse_task_name(name).kind == "gymnasium":
        return GymnasiumVectorEnv(
            name,
            num_envs=num_envs,
            episode_length=episode_length,
            seed=seed,
            num_processes=num_threads,
            env_timeout=env_timeout,
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
) -> TaskVectorEnv:
    """`make_vector_env` for a registered task or `module:function`, which have a model."""
    _require_positive(num_envs=num_envs, episode_length=episode_length)
    task = make_task(name)
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
        generator=Generator(device=physics.device).manual_seed(seed),
        cached_starts=cached_starts,
    )


def _require_positive(**counts: int) -> None:
    for what, count in counts.items():
        if count < 1:
            raise UsageError(f"{what} must be at least 1, got {count}")
