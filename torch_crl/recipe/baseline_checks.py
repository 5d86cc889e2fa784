"""Checks of a recipe for an algorithm of Stable-Baselines3; the library itself is not imported."""

import importlib.util

from torch_crl.envs.task_name import parse_task_name
from torch_crl.recipe.record import Recipe
from torch_crl.system.extras import install


def baseline_problems(recipe: Recipe) -> list[str]:
    """The reasons why Stable-Baselines3 cannot train this recipe, each with its flag.

    Every value must have passed the check of its own range before.
    """
    algo, system = recipe.algorithm.algo, recipe.system
    problems = []
    if importlib.util.find_spec("stable_baselines3") is None:
        problems.append(f"--algo {algo} needs Stable-Baselines3: {install('baselines')}")
    if system.overlap == "on":
        problems.append(f"--overlap on is for crl and gcbc, got --algo {algo}")
    if system.cuda_graph == "on":
        problems.append(f"--cuda-graph on is for crl and gcbc, got --algo {algo}")
    if recipe.algorithm.parity != "none":
        problems.append(f"--parity reference is for crl and gcbc, got --algo {algo}")
    if algo == "ppo":
        problems += _ppo_problems(recipe)
    if algo.endswith("_her"):
        problems += _her_problems(recipe)
    return problems


def ppo_epochs(recipe: Recipe) -> float:
    """Number of passes over each rollout that makes as many updates as the recipe asks for."""
    updates = recipe.steps_per_collection / recipe.budget.env_steps_per_update
    return updates * recipe.algorithm.batch_size / recipe.steps_per_collection


def _ppo_problems(recipe: Recipe) -> list[str]:
    batch, budget = recipe.algorithm.batch_size, recipe.budget
    problems: list[str] = []
    if recipe.steps_per_collection % batch:
        problems.append(
            f"--batch-size {batch} must divide a rollout of PPO, {recipe.steps_per_collection} "
            f"steps ({recipe.task.num_envs} envs x --unroll-length {budget.unroll_length})"
        )
    epochs = ppo_epochs(recipe)
    if abs(epochs - round(epochs)) > 1e-6 or epochs < 1:
        whole = max(1, round(epochs))
        problems.append(
            f"--env-steps-per-update {budget.env_steps_per_update:g} with batches of {batch} means "
            f"{epochs:.3g} passes over each rollout, and PPO makes whole ones; {batch / whole:g} "
            f"means {whole}"
        )
    return problems


def _her_problems(recipe: Recipe) -> list[str]:
    algo, budget, task = recipe.algorithm.algo, recipe.budget, recipe.task
    problems = []
    if parse_task_name(task.name).kind == "gymnasium":
        problems.append(
            f"--algo {algo} recomputes rewards of whole batches, which {task.name} does not offer "
            f"here; take {algo.removesuffix('_her')}"
        )
    if budget.prefill_rows < task.episode_length:
        problems.append(
            f"--algo {algo} draws goals from finished episodes, so --prefill-rows must be at least "
            f"--episode-length ({task.episode_length}), got {budget.prefill_rows}"
        )
    if budget.replay_rows < 2 * task.episode_length:
        problems.append(
            f"--algo {algo} forgets an episode as soon as its first step is overwritten, so "
            f"--replay-rows must be at least twice --episode-length ({task.episode_length}), got "
            f"{budget.replay_rows}"
        )
    return problems
