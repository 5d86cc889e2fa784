"""Recipes of runs that take a second."""

from typing import Any

from torch_crl.recipe.presets import preset, with_changes, with_depth
from torch_crl.recipe.record import Recipe

TINY: dict[str, dict[str, Any]] = {
    "task": {"num_envs": 4, "num_eval_envs": 2, "episode_length": 10},
    "networks": {"width": 8, "representation_size": 4},
    "algorithm": {"batch_size": 8},
    "budget": {
        "env_steps": 120,
        "unroll_length": 5,
        "env_steps_per_update": 10.0,
        "prefill_rows": 10,
        "replay_rows": 20,
        "evaluations": 2,
        "checkpoints": 2,
    },
    "system": {"device": "cpu", "torch_threads": 1},
}


def tiny(of: str = "reacher", **parts: dict[str, Any]) -> Recipe:
    return with_changes(with_changes(preset(of), **TINY), **parts)


TINY_BASELINE: dict[str, dict[str, Any]] = {
    "task": {"num_envs": 4, "num_eval_envs": 2, "episode_length": 10},
    "algorithm": {"batch_size": 10},
    "budget": {
        "env_steps": 120,
        "unroll_length": 5,
        "env_steps_per_update": 5.0,
        "evaluations": 2,
        "checkpoints": 2,
    },
    "system": {"device": "cpu", "torch_threads": 1},
}


def tiny_baseline(algo: str, *, depth: int = 0, **parts: dict[str, Any]) -> Recipe:
    recipe = with_changes(preset("reacher", algo=algo), **TINY_BASELINE)
    # What an algorithm does not read is an error.
    if algo != "ppo":
        recipe = with_changes(recipe, budget={"prefill_rows": 10, "replay_rows": 20})
    if depth:
        recipe = with_changes(recipe, networks={"width": 16})
    return with_depth(with_changes(recipe, **parts), depth)
