"""A grid of students of one policy: each trained, evaluated beside its teacher, and reported."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.policy import Policy
from torch_crl.deploy.distil import DistilSettings, distil, fingerprint, met_rows, name_of
from torch_crl.deploy.senses import SIDE, Senses
from torch_crl.errors import UsageError
from torch_crl.planning.goal_value import GoalValue
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.plots import load_matplotlib
from torch_crl.runs.policies import save_policy
from torch_crl.runs.records import read_file
from torch_crl.system.machine import machine
from torch_crl.system.threads import torch_threads
from torch_crl.system.timing import wall_clock
from torch_crl.training.evaluation import evaluate

EPISODES, _FILMED_EPISODES = 128, 32
EVALUATION_SEED = 1_000_000
_CALLS = 300
_SCORES = ("time_at_goal_share", "success_any", "final_distance")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A policy to distil, and what it was trained on."""

    policy: Policy
    recipe: Recipe
    value: GoalValue | None = None
    """Its critic, where the run still has one."""
    senses: Senses | None = None
    """What its students see; by default what it sees itself."""

    @property
    def episodes(self) -> int:
        """Number of episodes of an evaluation; fewer where each step of each takes a picture."""
        return _FILMED_EPISODES if self.senses and self.senses.camera else EPISODES

    @cached_property
    def latency(self) -> dict[str, float]:
        """That of its policy, measured once, so that reports and pictures agree."""
        return latency(self.policy)

    def regret(self, policy: Policy) -> float | None:
        """What the critic thinks is lost where this policy acts; None without a critic.

        Mean of f(s, a, g) - f(s, a', g) for the actions a of the teacher and a' of the policy, in
        states s that the policy meets itself.
        """
        if self.value is None or policy.camera is not None or policy.reader is not None:
            return None
        task = self.recipe.task
        row_MI = met_rows(policy, task.name, episode_length=task.episode_length)
        state_MS, goal_MG = row_MI.split([policy.state_size, policy.goal_size], dim=1)
        ours = replace(self.value, policy=self.policy)
        return ours.regret(policy, state_MS, goal_MG)

    def scores(
        self, policy: Policy, on_step: Callable[[int], object] | None = None
    ) -> dict[str, float]:
        """Of a policy in the same episodes for all: equal starts, equal goals.

        `on_step` is called with the number of control steps done.
        """
        task, senses = self.recipe.task, self.senses or Senses()
        found = evaluate(
            policy,
            task.eval_name,
            num_envs=self.episodes,
            episode_length=task.episode_length,
            seed=EVALUATION_SEED,
            env_timeout=self.recipe.system.env_timeout,
            places=senses.places,
            on_step=on_step,
        )
        return {name: found[name] for name in _SCORES if name in found}


@torch_threads(1)
def latency(policy: Policy) -> dict[str, float]:
    """Median and 99th percentile of the milliseconds of one action of `load_policy` on one core."""
    goal = torch.zeros(policy.goal_size)
    if policy.camera is None:
        state = torch.zeros(policy.state_size)

        def act() -> object:
            return policy.plan(state, goal)

    else:
        # The encoder is the slow part; taking the picture is not counted, as robots have cameras.
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        controller = policy.controller()

        def act() -> object:
            return controller(picture, goal.numpy())

    taken = wall_clock(act, _CALLS + 20)
    # The first calls find nothing in the caches.
    p50, p99 = np.percentile(taken[20:], [50, 99])
    return {"ms_p50": float(p50), "ms_p99": float(p99)}


def parameters(policy: Policy) -> int:
    """Number of trained numbers."""
    return sum(parameter.numel() for parameter in policy.actor.parameters())


def student(
    teacher: Teacher,
    settings: DistilSettings,
    folder: Path,
    *,
    on_round: Callable[[int, dict[str, float]], object],
    on_step: Callable[[int], object] | None = None,
    initial: ResidualTower | None = None,
) -> dict[str, Any]:
    """Train and evaluate one student in a run directory of its own; returns its row.

    It begins as `initial`, or with random weights. `on_round` is called after each round of the
    training, `on_step` after each control step of the evaluation. A student that was finished
    before is read and not trained again.

    Raises UsageError if the folder holds one of another policy or with other settings, or
    something that is no student, and DirectoryInUseError if another process trains it.
    """
    seeing = "_camera" if teacher.senses and teacher.senses.camera else ""
    directory = RunDirectory(folder / (name_of(settings) + seeing))
    with directory.owned():
        if directory.is_occupied and not directory.holds_run:
            raise UsageError(f"{directory} holds something that is no student; it is left alone")
        if not directory.holds_run:
            recipe = with_changes(
                teacher.recipe, networks={"actor_depth": settings.depth, "width": settings.width}
            )
            directory.begin(recipe, machine=machine())
        made = distil(
            teacher.policy,
            teacher.recipe.task.name,
            settings,
            directory,
            episode_length=teacher.recipe.task.episode_length,
            on_round=on_round,
            initial=initial,
            senses=teacher.senses,
        )
        if not directory.is_finished:
            moment = directory.saved_checkpoints[0].name
            origin = {"distilled_from": fingerprint(teacher.policy.actor)}
            save_policy(made, directory.policies / moment, origin)
            directory.finish(
                {
                    "depth": settings.depth,
                    "width": settings.width,
                    "seed": settings.seed,
                    "parameters": parameters(made),
                    "policy": str(directory.policies / moment),
                    **latency(made),
                    **teacher.scores(made, on_step),
                    "regret": teacher.regret(made),
                }
            )
        row: dict[str, Any] = read_file(directory.result, json.loads)
    return row


@dataclass(frozen=True, kw_only=True)
class Size:
    """The students of one size."""

    depth: int
    width: int
    parameters: int
    milliseconds: float
    kept: list[float]
    """Retention of each seed."""
    regret: float | None
    """Mean over the seeds."""
    on_front: bool
    """Whether no smaller one keeps as much."""

    @property
    def mean(self) -> float:
        """Mean retention."""
        return statistics.mean(self.kept)


def sizes_of(of_teacher: dict[str, float], rows: list[dict[str, Any]]) -> list[Size]:
    """The rows of students by size, the smallest first."""
    groups: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["parameters"], row["depth"], row["width"]), []).append(row)
    sizes: list[Size] = []
    for (count, depth, width), group in sorted(groups.items(), key=lambda each: each[0]):
        kept = [retention(row, of_teacher) for row in group]
        regrets = [row["regret"] for row in group if row.get("regret") is not None]
        sizes.append(
            Size(
                depth=depth,
                width=width,
                parameters=count,
                milliseconds=statistics.median(row["ms_p50"] for row in group),
                kept=kept,
                regret=statistics.mean(regrets) if regrets else None,
                on_front=all(statistics.mean(kept) > smaller.mean for smaller in sizes),
            )
        )
    return sizes


def report(teacher: Teacher, of_teacher: dict[str, float], rows: list[dict[str, Any]]) -> str:
    """Markdown: each size with its mean over seeds, and which of them no smaller one matches."""
    whole = parameters(teacher.policy)
    ours = teacher.latency
    lines = [
        f"# Students of a policy for {teacher.recipe.task.name}",
        "",
        f"The teacher has {whole:,} parameters, takes {ours['ms_p50']:.3g} ms for an action (99 % "
        f"of them at most {ours['ms_p99']:.3g}) and is at the goal for "
        f"{of_teacher['time_at_goal_share']:.3f} of the time ({teacher.episodes} episodes of "
        f"{teacher.recipe.task.eval_name}; all policies have equal starts and goals). Retention is "
        f"a student's share of that time{nothing_kept(of_teacher)}. Milliseconds are those of "
        "`load_policy` on one core. Regret is what the teacher's critic thinks is lost by the "
        "student's actions, in the units of its energy; it is empty where the run has no "
        "checkpoint any more. On the front are the sizes that no smaller one matches; the line of "
        "front.png joins those that none as fast surpasses.",
        "",
        "| depth | width | seeds | parameters | of the teacher's | ms, p50 | retention | "
        "smallest, largest | front | regret |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in sizes_of(of_teacher, rows):
        regret = "" if size.regret is None else f"{size.regret:.3g}"
        lines.append(
            f"| {size.depth} | {size.width} | {len(size.kept)} | {size.parameters:,} | "
            f"1/{whole / size.parameters:.1f} | {size.milliseconds:.3g} | {size.mean:.3f} | "
            f"{min(size.kept):.3f}, {max(size.kept):.3f} | {'yes' if size.on_front else ''} | "
            f"{regret} |"
        )
    return "\n".join(lines) + "\n"


def save_front(
    teacher: Teacher, of_teacher: dict[str, float], rows: list[dict[str, Any]], path: Path
) -> None:
    """PNG of the retention of each size by the time of an action, and the teacher."""
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    axes = figure.subplots()
    sizes = sizes_of(of_teacher, rows)
    for size in sizes:
        axes.plot([size.milliseconds] * 2, [min(size.kept), max(size.kept)], color="C0", lw=1)
        axes.annotate(
            f"{size.depth} x {size.width}",
            (size.milliseconds, size.mean),
            textcoords="offset points",
            xytext=(5, -10),
            fontsize=7,
        )
    axes.plot(*_points(sizes), "o", color="C0", ms=4, label="students, depth x width")
    front = sorted(_front_by_time(sizes), key=lambda size: size.milliseconds)
    # With rings, since a line through one point cannot be seen.
    rings: dict[str, Any] = {"marker": "o", "ms": 8, "mfc": "none"}
    label = "none as fast is better"
    axes.plot(*_points(front), color="C1", lw=1, zorder=0, label=label, **rings)
    whole = teacher.latency["ms_p50"]
    axes.plot(whole, 1.0, "*", color="C3", ms=11, label="teacher")
    axes.set(xlabel="ms for an action", ylabel="time at the goal, of the teacher's")
    slowest = max(whole, *(size.milliseconds for size in sizes))
    highest = max(1.0, *(max(size.kept) for size in sizes))
    axes.set(xlim=(0.0, 1.15 * slowest), ylim=(0.0, 1.08 * highest))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    figure.legend(frameon=False, fontsize=8, loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=130)


def _points(sizes: list[Size]) -> tuple[list[float], list[float]]:
    return [size.milliseconds for size in sizes], [size.mean for size in sizes]


def _front_by_time(sizes: list[Size]) -> list[Size]:
    """The sizes that none beats which is as fast."""
    return [
        size
        for size in sizes
        if all(other.mean <= size.mean or other.milliseconds > size.milliseconds for other in sizes)
    ]


def nothing_kept(of_teacher: dict[str, float]) -> str:
    """What reports add where the teacher is never at the goal."""
    return "" if of_teacher["time_at_goal_share"] else " (nan, as the teacher is never there)"


def retention(row: dict[str, Any], of_teacher: dict[str, float]) -> float:
    """Time at the goal, student's over teacher's; NaN where the teacher is never there."""
    ours, best = float(row["time_at_goal_share"]), of_teacher["time_at_goal_share"]
    return ours / best if best else math.nan
