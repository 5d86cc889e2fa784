"""What the tests of tasks share."""

from collections.abc import Mapping
from typing import Any, TypeVar

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.registry import make_task
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.task import Start, Task
from torch_crl.envs.task_vector_env import TaskVectorEnv

T = TypeVar("T")


def entry(table: Mapping[str, T], name: str) -> T:
    """The value under the longest key with which the task's name begins."""
    return table[max((key for key in table if name.startswith(key)), key=len)]


def make_env(task: Task, *, num_envs: int, seed: int = 0, **options: Any) -> TaskVectorEnv:
    simulator = CpuSimulator(task.model, num_envs=num_envs, fields=task.fields)
    return TaskVectorEnv(
        task,
        simulator,
        generator=Generator().manual_seed(seed),
        **({"episode_length": 1000} | options),
    )


def env_after_random_steps(name: str, *, num_envs: int = 4, steps: int = 20) -> TaskVectorEnv:
    task = make_task(name)
    env = make_env(task, num_envs=num_envs)
    generator = Generator().manual_seed(2)
    for _ in range(steps):
        env.step(torch.rand(num_envs, task.spec.action_size, generator=generator) * 2 - 1)
    return env


def mujoco_data(env: TaskVectorEnv, n: int) -> mujoco.MjData:
    """What MuJoCo itself makes of the positions and velocities of env n."""
    data = mujoco.MjData(env.task.model)
    data.qpos[:], data.qvel[:] = (env.simulator.data[name][n].numpy() for name in ("qpos", "qvel"))
    mujoco.mj_forward(env.task.model, data)
    return data


def starts_of(name: str, draws: int = 512) -> Start:
    return make_task(name).sample_start(draws, Generator().manual_seed(0))


def goals_of(name: str, draws: int = 512) -> Tensor:
    return starts_of(name, draws).goal_NG


_KINDS = ("wall", "foot", "aux", "torso", "floor", "ankle", "leg", "ball", "block", "object")


def contact_pairs(model: mujoco.MjModel) -> set[frozenset[str]]:
    """Kinds of geoms that may touch; a geom without a name goes by its body's."""

    def kind(geom: int) -> str:
        name = model.geom(geom).name or model.body(model.geom_bodyid[geom]).name
        return next((kind for kind in _KINDS if kind in name), name)

    pairs = set()
    for a in range(model.ngeom):
        for b in range(a):
            bits = (model.geom_contype[a] & model.geom_conaffinity[b]) | (
                model.geom_contype[b] & model.geom_conaffinity[a]
            )
            if bits and model.geom_bodyid[a] != model.geom_bodyid[b]:
                pairs.add(frozenset((kind(a), kind(b))))
    return pairs


def pairs_of(*pairs: str) -> set[frozenset[str]]:
    """Pairs written as "foot floor", or "foot" for two of a kind."""
    return {frozenset(pair.split()) for pair in pairs}


def puck_env(num_envs: int = 6, **options: Any) -> TaskVectorEnv:
    task = make_task("own_task:make")
    simulator = CpuSimulator(task.model, num_envs=num_envs)
    return TaskVectorEnv(
        task, simulator, generator=Generator().manual_seed(0), **({"episode_length": 5} | options)
    )


def ant_env(num_envs: int, *, episode_length: int) -> TaskVectorEnv:
    task = make_task("ant")
    simulator = CpuSimulator(task.model, num_envs=num_envs)
    return TaskVectorEnv(
        task, simulator, episode_length=episode_length, generator=Generator().manual_seed(0)
    )
