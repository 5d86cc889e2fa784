"""Pictures of a run, as PNG files."""

import logging
from pathlib import Path

from torch_crl.recipe.method import method_name
from torch_crl.runs.directory import RunDirectory
from torch_crl.system.files import ASIDE, remove
from torch_crl.system.terminal import plain


def load_matplotlib() -> None:
    """Import matplotlib without its messages about a slow first import or a read-only cache."""
    log = logging.getLogger("matplotlib")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        import matplotlib.font_manager  # noqa: F401
    finally:
        log.setLevel(level)


def save_learning_curve(run_dir: Path) -> Path:
    """Draw success, time at goal and, for contrastive RL, the critic's accuracy.

    Returns the path of the picture, learning_curve.png. Exceptions of matplotlib are not caught.
    """
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, PercentFormatter

    run = RunDirectory(run_dir)
    evaluations = run.read_metrics("evaluation")
    # Baselines have no contrastive critic.
    accuracies = [
        (record["env_steps"], record["categorical_accuracy"])
        for record in run.records("train")
        if "categorical_accuracy" in record
    ]
    panels = 2 if accuracies else 1
    figure = Figure(figsize=(5.0 * panels, 4.0), layout="constrained")
    behaviour, *critic = figure.subplots(1, panels, squeeze=False)[0]
    recipe = run.read_recipe()
    title = f"{recipe.task.name}, {method_name(recipe)}, seed {recipe.system.seed}"
    figure.suptitle(plain(title), parse_math=False)

    steps = [record["env_steps"] for record in evaluations]
    highest = 0.0
    for name, label in (
        ("success_any", "episodes that reach the goal"),
        ("time_at_goal_share", "time at goal, share of the episode"),
    ):
        shares = [record[name] for record in evaluations]
        behaviour.plot(steps, shares, "o-", ms=4, label=label)
        highest = max(highest, *shares)
    minutes = evaluations[-1]["seconds"] / 60
    behaviour.set(
        title=f"evaluation ({minutes:.1f} minutes of training)", ylim=share_limits(highest)
    )
    # Below the axes, where no curve can run through it.
    behaviour.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)

    for axes in critic:
        axes.plot(*zip(*accuracies, strict=True), color="C2")
        axes.set(title="critic picks the true goal out of the batch", ylim=(0.0, None))

    for axes in (behaviour, *critic):
        axes.set_xlabel("env steps")
        axes.set_xlim(left=0)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    path = run_dir / "learning_curve.png"
    # Written aside and renamed, so that nothing is written through a link at this path.
    aside = path.with_name(ASIDE + path.name)
    remove(aside)
    figure.savefig(aside, dpi=120, format="png")
    aside.rename(path)
    return path


def share_limits(highest: float) -> tuple[float, float]:
    """Limits of an axis of shares: 0 to 1, or to less if all shares are low, with a margin."""
    top = next((top for top in (0.05, 0.1, 0.2, 0.5) if highest <= top), 1.0)
    return -0.02 * top, 1.02 * top
