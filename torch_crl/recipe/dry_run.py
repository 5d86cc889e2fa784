"""The table of `--dry-run`: what the settings of a recipe amount to, and what they cost."""

from rich.table import Table

from torch_crl.agent.sizes import MOE
from torch_crl.recipe.compute_choice import choose_compute
from torch_crl.recipe.record import Recipe
from torch_crl.system.terminal import console, plain


def plan_rows(recipe: Recipe) -> list[tuple[str, str, str]]:
    """(quantity, value, where it comes from), in reading order."""
    task, networks, budget = recipe.task, recipe.networks, recipe.budget
    algo = recipe.algorithm.algo
    depths = f"{networks.actor_depth} / {networks.critic_depth}"
    blocks = f"{networks.block} blocks"
    if networks.actor_block == MOE:
        blocks += f", the actor's of {networks.experts} experts"
    kind = f"actor / critic, width {networks.width}, {blocks}"
    if recipe.by_library and not (networks.actor_depth or networks.critic_depth):
        depths, kind = "0", "the library's own networks"
    by = f"Stable-Baselines3, {recipe.baseline.reward} reward" if recipe.by_library else "torch_crl"
    return [
        ("task", task.name, f"evaluated on {task.eval_name}"),
        ("algorithm", algo, by),
        ("depth", depths, kind),
        (
            "env steps per collection",
            f"{recipe.steps_per_collection:,}",
            f"{task.num_envs} envs x {budget.unroll_length} steps",
        ),
        (
            "prefill",
            f"{recipe.prefill_collections} collections",
            f"at least {budget.prefill_rows} rows of each env",
        ),
        ("collections with updates", f"{recipe.collections:,}", ""),
        ("env steps", f"{recipe.total_env_steps:,}", "prefill included"),
        (
            "updates per collection",
            f"{recipe.updates_per_collection:,}",
            f"one for {budget.env_steps_per_update:g} env steps",
        ),
        ("updates", f"{recipe.total_updates:,}", f"batch {recipe.algorithm.batch_size}"),
        (
            "samples per env step",
            f"{recipe.samples_per_step:.1f}",
            "how often a step is trained on",
        ),
        *_work_rows(recipe),
        (
            "evaluations / checkpoints",
            f"{recipe.evaluations} / {recipe.checkpoints}",
            f"{task.num_eval_envs} episodes of {task.episode_length} steps each",
        ),
    ]


def _work_rows(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Operations and memory of the updates, where known: nothing for the library's algorithms."""
    cost, compute, flop = recipe.update_cost, choose_compute(recipe), recipe.update_flop
    if flop is None:
        return []
    activations = cost.activation_bytes(
        fused=compute.tower == "persistent", recompute=compute.recompute
    )
    memory = [
        ("parameters", f"{cost.parameters:,}", "actor and critic"),
        ("memory: weights and Adam", megabytes(cost.training_bytes), "fp32"),
        ("memory: activations", megabytes(activations), "kept for the backward pass"),
    ]
    return [
        ("work per update", f"{flop / 1e9:,.2f} GFLOP", "dense layers"),
        ("work of the run", f"{flop * recipe.total_updates / 1e15:,.3g} PFLOP", ""),
        (
            "memory: replay",
            megabytes(recipe.replay_bytes),
            f"{recipe.replay_transitions:,} steps, {recipe.system.replay_dtype}",
        ),
        *(memory if recipe.algorithm.algo == "crl" else []),
        ("matmul precision", compute.precision, compute.implementations),
    ]


def print_plan(recipe: Recipe, *more_rows: tuple[str, str, str]) -> None:
    """Print the table on standard output, with `more_rows` at its end."""
    table = Table(title="plan", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right", overflow="fold")
    table.add_column(style="dim")
    for row in (*plan_rows(recipe), *more_rows):
        table.add_row(*map(plain, row))
    console().print(table)


def megabytes(number: int) -> str:
    """A number of bytes as text, in MB of a million bytes."""
    return f"{number / 1e6:,.1f} MB"
