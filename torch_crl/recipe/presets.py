"""The default recipe of each task, as data: differences from the published settings."""

import difflib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch_crl.envs.registry import task_spec
from torch_crl.envs.task_name import parse_task_name
from torch_crl.errors import UsageError
from torch_crl.recipe.marks import unread
from torch_crl.recipe.record import Recipe, with_defaults

# Thousands of updates are too few for a temperature that falls from 1 with the published rate, and
# single evaluations of the newest weights dip; measured in benchmarks/LOG.md.
_FEW_UPDATES: dict[str, Any] = {
    "initial_temperature": 0.1,
    "temperature_learning_rate": 3e-3,
    "average_weights": 0.999,
}

# What finds every goal of a maze, whatever the seed; measured in benchmarks/LOG.md.
_MAZES: dict[str, Any] = {
    "contrastive_loss": "symmetric_info_nce",
    "chunk": 3,
    "actor_goals": "mixed",
    "goal_redraw": 0.01,
    "initial_temperature": 0.1,
    "average_weights": 0.999,
}

_SMALL: dict[str, dict[str, Any]] = {
    "task": {"num_envs": 64, "num_eval_envs": 128},
    "networks": {"width": 64},
    "algorithm": {"batch_size": 128, **_FEW_UPDATES},
    "budget": {
        "env_steps": 200_000,
        "unroll_length": 20,
        "env_steps_per_update": 16.0,
        "prefill_rows": 100,
        "replay_rows": 5_000,
        "evaluations": 10,
        "checkpoints": 5,
    },
}

# For any Gymnasium goal env, on two cores: physics there is slower than that of our own tasks.
_FOREIGN: dict[str, dict[str, Any]] = {
    "task": {"num_envs": 32, "num_eval_envs": 64},
    "networks": {"width": 64},
    "algorithm": {"batch_size": 128, **_MAZES},
    "budget": {
        "env_steps": 500_000,
        "unroll_length": 50,
        "env_steps_per_update": 16.0,
        "prefill_rows": 300,
        "replay_rows": 10_000,
        "evaluations": 10,
        "checkpoints": 5,
    },
}

# Prefix of registered names to changes that all such tasks take, in this order; a change maps a
# part of the recipe to fields and their values.
_CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "reacher": {
        **_SMALL,
        "task": {**_SMALL["task"], "episode_length": 200},
        "budget": {**_SMALL["budget"], "env_steps": 120_000},
    },
    "point_": {
        "task": {"num_envs": 256, "num_eval_envs": 128},
        "networks": {"width": 128},
        "algorithm": {
            "batch_size": 128,
            **_MAZES,
            "actor_learning_rate": 1e-3,
            "critic_learning_rate": 1e-3,
        },
        "budget": {
            "env_steps": 3_200_000,
            "unroll_length": 50,
            "env_steps_per_update": 64.0,
            "prefill_rows": 200,
            "replay_rows": 20_000,
            "evaluations": 20,
            "checkpoints": 5,
        },
    },
    "point_u_maze": {"budget": {"env_steps": 1_600_000, "evaluations": 16}},
    # A goal that is drawn anew would mostly be in another maze, as most negatives are.
    "point_three_mazes": {
        "algorithm": {"goal_redraw": 0.0, "batch_size": 256},
        "budget": {"env_steps_per_update": 96.0},
    },
}

# The published runs on these tasks were evaluated on the far goals only.
_EVALUATED_ELSEWHERE = {
    name: f"{name}_eval" for name in ("ant_big_maze", "ant_u4_maze", "ant_u5_maze")
}


def preset(task: str, *, depth: int = 0, algo: str = "crl") -> Recipe:
    """The default recipe for a task; `depth` sets that of actor and critic, 0 keeps the preset's.

    A baseline has the env steps and evaluations of contrastive RL, SAC and TD3 also its updates
    per env step; the networks are the baseline library's own.

    Tasks without changes of their own have the published settings: 512 envs, width 256, batch
    512, 100 M env steps. A task of your own has the small settings of `reacher`. Raises
    UnknownTaskError with the nearest names.
    """
    eval_name = _EVALUATED_ELSEWHERE.get(task, task)
    episode_length = task_spec(task).episode_length
    recipe = with_changes(
        Recipe(), task={"name": task, "eval_name": eval_name, "episode_length": episode_length}
    )
    for changes in _changes(task):
        recipe = with_changes(recipe, **changes)
    return with_depth(_with_algo(recipe, algo), depth)


def _changes(task: str) -> list[dict[str, dict[str, Any]]]:
    """The changes that a task takes, the later ones over the earlier ones."""
    match parse_task_name(task).kind:
        case "own":
            return [_SMALL]
        case "gymnasium":
            return [_FOREIGN]
        case "registered":
            return [changes for prefix, changes in _CHANGES.items() if task.startswith(prefix)]


def _with_algo(recipe: Recipe, algo: str) -> Recipe:
    """The recipe with the changes that an algorithm needs or that its library recommends."""
    recipe = with_changes(recipe, algorithm={"algo": algo})
    # What an algorithm does not read stays as in the record: a chunk would change its networks.
    recipe = with_defaults(recipe, unread(Recipe, algo))
    if not recipe.by_library:
        return recipe
    recipe = with_changes(recipe, networks={"actor_depth": 0, "critic_depth": 0})
    if algo == "ppo":
        # The library's ten passes over a rollout in 32 minibatches.
        num_envs = recipe.task.num_envs
        return with_changes(
            recipe,
            algorithm={"batch_size": num_envs},
            budget={"unroll_length": 32, "prefill_rows": 0, "env_steps_per_update": num_envs / 10},
        )
    if algo.startswith("td3"):
        recipe = with_changes(recipe, baseline={"learning_rate": 1e-3})
    if algo.endswith("_her"):
        # The library draws hindsight goals from finished episodes only.
        rows = max(recipe.budget.prefill_rows, recipe.task.episode_length)
        recipe = with_changes(
            recipe,
            budget={
                "prefill_rows": rows,
                "replay_rows": max(recipe.budget.replay_rows, 2 * rows),
            },
        )
    return recipe


def with_depth(recipe: Recipe, depth: int) -> Recipe:
    """The recipe with this depth for actor and critic; unchanged for 0."""
    if not depth:
        return recipe
    return with_changes(recipe, networks={"actor_depth": depth, "critic_depth": depth})


def with_changes(recipe: Recipe, **parts: dict[str, Any]) -> Recipe:
    """The recipe with some fields of its parts replaced, as in `task={"num_envs": 64}`.

    Raises UsageError for a part or a field that a recipe does not have.
    """
    known = recipe.leaves()
    given: dict[str, Any] = parts
    for part, settings in given.items():
        if not isinstance(settings, Mapping):
            raise UsageError(
                'settings are given by part, as in task={"num_envs": 64}; got '
                f"{part}={settings!r}"
            )
    for leaf in (f"{part}.{name}" for part, fields in parts.items() for name in fields):
        if leaf not in known:
            near = difflib.get_close_matches(leaf, known, n=3, cutoff=0.5)
            hint = f"; nearest: {', '.join(near)}" if near else ""
            raise UsageError(f"a recipe has no setting {leaf}{hint}")
    changed = {part: replace(getattr(recipe, part), **fields) for part, fields in parts.items()}
    return replace(recipe, **changed)
