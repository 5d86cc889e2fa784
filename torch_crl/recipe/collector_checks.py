"""Checks of a recipe whose steps are collected by other processes."""

from torch_crl.recipe.record import Recipe
from torch_crl.system.ray_cluster import missing_ray


def collector_problems(recipe: Recipe) -> list[str]:
    """The reasons why a recipe's collectors cannot work, each with its cure."""
    system = recipe.system
    if not system.collectors:
        given = [name for name in ("address", "policy") if getattr(system, f"collector_{name}")]
        return [f"--collector-{name} is for --collectors of at least 1" for name in given]
    problems = missing_ray("--collectors")
    if recipe.task.num_envs % system.collectors:
        problems.append(
            f"--collectors {system.collectors} divide the training envs, and --num-envs "
            f"{recipe.task.num_envs} is no multiple of them"
        )
    if system.overlap == "on":
        problems.append("--overlap on is what --collectors do anyway; leave it out")
    if system.simulator != "cpu":
        problems.append("--collectors have physics on CPUs; leave out --simulator warp")
    return problems
