"""Smaller policies by removing blocks: chosen, healed by distillation, evaluated and reported."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_crl.agent.networks import ResidualTower
from torch_crl.deploy.distil import DistilSettings
from torch_crl.deploy.prune import Blocks
from torch_crl.deploy.students import (
    EPISODES,
    Teacher,
    nothing_kept,
    parameters,
    retention,
    student,
)
from torch_crl.kernels.tower import BLOCK
from torch_crl.runs.plots import load_matplotlib

_HEALING_RATE = 3e-4


@dataclass(frozen=True, kw_only=True)
class Pruned:
    """A policy with fewer blocks, and what it is worth before and after healing."""

    left: int
    removed: list[int]
    change: float
    """Mean absolute change of the actions before healing."""
    deleted: float
    """Retention with the blocks left out and nothing else changed."""
    folded: float
    """Retention with the means of the blocks in their place."""
    healed: list[dict[str, Any]]
    """One row for each seed of the healing, as `student` returns it."""


def pruned(
    teacher: Teacher,
    blocks: Blocks,
    order: list[int],
    of_teacher: dict[str, float],
    *,
    left: int,
    seeds: tuple[int, ...],
    rows: int,
    updates: int,
    folder: Path,
    on_round: Callable[[int, dict[str, float]], object],
) -> Pruned:
    """Keep `left` blocks, removing those that are first in `order`; heal, and evaluate everything.

    The healed policies are run directories in `folder`; a killed call goes on where it stopped.
    """
    removed = order[: blocks.count - left]

    def kept(actor: ResidualTower) -> float:
        return retention(teacher.scores(teacher.policy.with_actor(actor)), of_teacher)

    healed = []
    for seed in seeds:
        smaller = blocks.without(removed)
        settings = DistilSettings(
            depth=BLOCK * left,
            width=smaller.sizes.width,
            rows=rows,
            updates=updates,
            learning_rate=_HEALING_RATE,
            seed=seed,
        )
        healed.append(student(teacher, settings, folder, on_round=on_round, initial=smaller))
    return Pruned(
        left=left,
        removed=removed,
        change=blocks.change(removed),
        deleted=kept(blocks.without(removed, fold=False)),
        folded=kept(blocks.without(removed)),
        healed=healed,
    )


def report(
    teacher: Teacher, blocks: Blocks, of_teacher: dict[str, float], made: list[Pruned]
) -> str:
    """Markdown: each number of blocks with what it keeps of the teacher's time at the goal."""
    size, spread = parameters(teacher.policy), float(blocks.action_KA.std())
    lines = [
        f"# A policy for {teacher.recipe.task.name} with fewer blocks",
        "",
        f"The teacher has {blocks.count} blocks and {size:,} parameters, takes "
        f"{teacher.latency['ms_p50']:.3g} ms for an action and is at the goal for "
        f"{of_teacher['time_at_goal_share']:.3f} of the time ({EPISODES} episodes of "
        f"{teacher.recipe.task.eval_name}; all policies have equal starts and goals). Columns 4 to "
        f"6 are shares of that time{nothing_kept(of_teacher)}: with blocks left out, with their "
        "means in their place, and healed by distillation. The actions' standard "
        f"deviation is {spread:.3g}. An action takes "
        "two FLOP and reads four bytes a parameter.",
        "",
        "| blocks left | parameters | ms, p50 / p99 | left out | means | healed | smallest, "
        "largest | change of actions by the means | removed |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in sorted(made, key=lambda each: -each.left):
        kept = [retention(row, of_teacher) for row in each.healed]
        p50, p99 = (
            statistics.median(row[name] for row in each.healed) for name in ("ms_p50", "ms_p99")
        )
        lines.append(
            f"| {each.left} | {each.healed[0]['parameters']:,} | {p50:.3g} / {p99:.3g} | "
            f"{each.deleted:.3f} | {each.folded:.3f} | {statistics.mean(kept):.3f} | "
            f"{min(kept):.3f}, {max(kept):.3f} | {each.change:.3g} | "
            f"{', '.join(map(str, sorted(each.removed)))} |"
        )
    return "\n".join(lines) + "\n"


def save_curve(made: list[Pruned], of_teacher: dict[str, float], path: Path, *, count: int) -> None:
    """PNG of the retention by the number of blocks left, out of `count`."""
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    made = sorted(made, key=lambda each: each.left)
    healed = [[retention(row, of_teacher) for row in each.healed] for each in made]
    curves = {
        "left out": [each.deleted for each in made],
        "means in their place": [each.folded for each in made],
        "healed": [statistics.mean(kept) for kept in healed],
    }
    figure = Figure(figsize=(5.4, 3.9), layout="constrained")
    axes = figure.subplots()
    left = [each.left for each in made]
    for (name, shares), style in zip(curves.items(), ("s:", "^--", "o-"), strict=True):
        axes.plot([*left, count], [*shares, 1.0], style, ms=5, label=name, alpha=0.8)
    for x, kept in zip(left, healed, strict=True):
        axes.plot([x, x], [min(kept), max(kept)], color="C2", lw=1)
    axes.set(xlabel=f"blocks left, of {count}", ylabel="time at the goal, of the teacher's")
    highest = max(1.0, *(max(kept) for kept in healed), *curves["left out"])
    axes.set(xlim=(0, count + 0.3), ylim=(0.0, 1.08 * highest))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
