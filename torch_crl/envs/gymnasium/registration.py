"""Registers our tasks with Gymnasium: `torch_crl/AntUMaze-v0` is `ant_u_maze`. Imports no torch."""

import gymnasium

from torch_crl.envs.registry import TASKS
from torch_crl.envs.spec import TaskSpec

_GOAL_ENVS = "torch_crl.envs.gymnasium.goal_env"


def gymnasium_id(task: str) -> str:
    """The id under which Gymnasium knows a task."""
    name = "".join(word[:1].upper() + word[1:] for word in task.split("_"))
    return f"torch_crl/{name}-v0"


def register_tasks() -> None:
    """Register every task; those that Gymnasium knows already are left alone."""
    for spec in TASKS.values():
        if gymnasium_id(spec.name) not in gymnasium.registry:
            _register(spec)


def _register(spec: TaskSpec) -> None:
    gymnasium.register(
        id=gymnasium_id(spec.name),
        entry_point=f"{_GOAL_ENVS}:GoalEnv",
        vector_entry_point=f"{_GOAL_ENVS}:GoalVectorEnv",
        max_episode_steps=spec.episode_length,
        kwargs={"task": spec.name},
    )
