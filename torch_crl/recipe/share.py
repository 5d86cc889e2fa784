"""The share of a run that each rank has: the recipe states totals, and all shares are equal."""

from torch_crl.agent.sizes import MOE
from torch_crl.distributed.ranks import Ranks
from torch_crl.envs.task_name import parse_task_name
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe, flag_of
from torch_crl.system.devices import resolve_device

_DIVIDED = ("task.num_envs", "task.num_eval_envs", "algorithm.batch_size")
# Losses that are means over rows, or that know how to compare the rows of all ranks.
CONTRASTS = ("crl", "safe")
"""The objectives that compare the rows of a batch with each other."""
_EXACT = (*CONTRASTS, "survival")


def share(recipe: Recipe, ranks: Ranks) -> Recipe:
    """The recipe of what one rank does: its envs, its rows of a batch, its device."""
    if ranks.is_alone:
        return recipe
    parts: dict[str, dict[str, object]] = {}
    for leaf in _DIVIDED:
        part, name = leaf.split(".")
        parts.setdefault(part, {})[name] = recipe.leaves()[leaf] // ranks.size
    if resolve_device(recipe.system.device).type == "cuda":
        parts["system"] = {"device": f"cuda:{ranks.local_rank}"}
    return with_changes(recipe, **parts)


def share_problems(recipe: Recipe, ranks: Ranks) -> list[str]:
    """The reasons why so many ranks cannot train this recipe, each with its cure."""
    if ranks.is_alone:
        return []
    if recipe.by_library:
        return [
            f"--algo {recipe.algorithm.algo} trains in one process, and torchrun started "
            f"{ranks.size}; start it without torchrun"
        ]
    leaves = recipe.leaves()
    problems = [
        f"{flag_of(leaf)} is the total of all ranks and must be a multiple of their number, "
        f"{ranks.size}, got {leaves[leaf]}"
        for leaf in _DIVIDED
        if leaves[leaf] % ranks.size
    ]
    names = (recipe.task.name, recipe.task.eval_name)
    problems += [
        f"{name}: the state of a Gymnasium env cannot be saved, so ranks that torchrun starts "
        "again would not go on where they were; train it in one process"
        for name in dict.fromkeys(names)
        if parse_task_name(name).kind == "gymnasium"
    ]
    if recipe.system.collectors:
        problems.append("--collectors work for one process; leave them out or start it alone")
    if recipe.networks.actor_block == MOE:
        problems.append(
            f"--actor-block {MOE} balances its experts over the rows of one process, and torchrun "
            f"started {ranks.size}; start it without torchrun"
        )
    objective = recipe.algorithm.objective
    gathers = recipe.algorithm.algo == "crl" and recipe.algorithm.negatives == "gathered"
    if gathers and objective not in _EXACT:
        problems.append(
            f"--objective {objective} has no loss over the rows of several ranks; with "
            "--negatives local each rank takes that of its own rows"
        )
    if ":" in recipe.system.device:
        problems.append(
            f"--device {recipe.system.device} names one device, and each rank takes the GPU of its "
            "own number; use --device cuda"
        )
    return problems
