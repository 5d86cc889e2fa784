"""One way to the parallel episodes of a task, whichever kind of name it has."""

from typing import TypeAlias

import torch
from torch import Generator

from torch_crl.defaults import torch_defaults
from torch_crl.envs.gymnasium.vector_env import GymnasiumVectorEnv
from torch_crl.envs.registry import GYMNASIUM, make_task
from torch_crl.envs.simulators import make_simulator
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.errors import UsageError

AnyVectorEnv: TypeAlias = VectorEnv | GymnasiumVectorEnv


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
) -> AnyVectorEnv:
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
    for what, count in {"num_envs": num_envs, "episode_length": episode_length}.items():
        if count < 1:
            raise UsageError(f"{what} must be at least 1, got {count}")
    if name.startswith(GYMNASIUM):
        return GymnasiumVectorEnv(
            name,
            num_envs=num_envs,
            episode_length=episode_length,
            seed=seed,
            num_processes=num_threads,
            env_timeout=env_timeout,
        )
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
    return VectorEnv(
        task,
        physics,
        episode_length=episode_length,
        generator=Generator(device=physics.device).manual_seed(seed),
        cached_starts=cached_starts,
    )
