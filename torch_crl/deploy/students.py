"""A grid of students of one policy: each trained, evaluated beside its teacher, and reported."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.policy import Policy
from torch_crl.deploy.distil import DistilSettings, distil, fingerprint, name_of
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import save_policy
from torch_crl.system.machine import machine
from torch_crl.system.threads import torch_threads
from torch_crl.training.evaluation import evaluate

EPISODES = 128
EVALUATION_SEED = 1_000_000
_CALLS = 300
_SCORES = ("time_at_goal_share", "success_any", "final_distance")


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A policy to distil, and what it was trained on."""

    policy: Policy
    recipe: Recipe

    def scores(self, policy: Policy) -> dict[str, float]:
        """Of a policy in the same episodes for all: equal starts, equal goals."""
        task = self.recipe.task
        found = evaluate(
            policy,
            task.eval_name,
            num_envs=EPISODES,
            episode_length=task.episode_length,
            seed=EVALUATION_SEED,
            env_timeout=self.recipe.system.env_timeout,
        )
        return {name: found[name] for name in _SCORES if name in found}


@torch_threads(1)
def latency(policy: Policy) -> dict[str, float]:
    """Median and 99th percentile of the milliseconds of one action of `load_policy` on one core."""
    state, goal = torch.zeros(policy.state_size), torch.zeros(policy.goal_size)
    taken = []
    for _ in range(_CALLS + 20):
        begin = time.perf_counter()
        policy.plan(state, goal)
        taken.append(1e3 * (time.perf_counter() - begin))
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
    initial: ResidualTower | None = None,
) -> dict[str, Any]:
    """Train and evaluate one student in a run directory of its own; returns its row.

    It begins as `initial`, or with random weights. A student that was finished before is read and
    not trained again. Raises UsageError if the folder holds one of another policy or with other
    settings.
    """
    directory = RunDirectory(folder / name_of(settings))
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
    )
    told = json.loads(directory.result.read_text()) if directory.result.exists() else None
    if told is None:
        moment = directory.saved_checkpoints[0].name
        origin = {"distilled_from": fingerprint(teacher.policy.actor)}
        save_policy(made, directory.policies / moment, origin)
        told = {
            "depth": settings.depth,
            "width": settings.width,
            "seed": settings.seed,
            "parameters": parameters(made),
            "policy": str(directory.policies / moment),
            **latency(made),
            **teacher.scores(made),
        }
        directory.finish(told)
    row: dict[str, Any] = told
    return row


def report(teacher: Teacher, of_teacher: dict[str, float], rows: list[dict[str, Any]]) -> str:
    """Markdown: each size with its mean over seeds, and which of them no smaller one matches."""
    size = parameters(teacher.policy)
    ours = latency(teacher.policy)
    lines = [
        f"# Students of a policy for {teacher.recipe.task.name}",
        "",
        f"The teacher has {size:,} parameters, takes {ours['ms_p50']:.3g} ms for an action (99 % "
        f"of them at most {ours['ms_p99']:.3g}) and is at the goal for "
        f"{of_teacher['time_at_goal_share']:.3f} of the time ({EPISODES} episodes of "
        f"{teacher.recipe.task.eval_name}; all policies have equal starts and goals). Retention is "
        "a student's share of that time. Milliseconds are those of `load_policy` on one core. On "
        "the front are the sizes that no smaller one matches.",
        "",
        "| depth | width | seeds | parameters | of the teacher's | ms, p50 | retention | "
        "smallest, largest | front |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    sizes: dict[tuple[int, int, int], list[dict[str, Any]]] = {}
    for row in rows:
        sizes.setdefault((row["parameters"], row["depth"], row["width"]), []).append(row)
    best = -1.0
    for (count, depth, width), group in sorted(sizes.items(), key=lambda each: each[0]):
        kept = [retention(row, of_teacher) for row in group]
        mean = statistics.mean(kept)
        front, best = "yes" if mean > best else "", max(best, mean)
        milliseconds = statistics.median(row["ms_p50"] for row in group)
        lines.append(
            f"| {depth} | {width} | {len(group)} | {count:,} | 1/{size / count:.1f} | "
            f"{milliseconds:.3g} | {mean:.3f} | {min(kept):.3f}, {max(kept):.3f} | {front} |"
        )
    return "\n".join(lines) + "\n"


def retention(row: dict[str, Any], of_teacher: dict[str, float]) -> float:
    """Time at the goal, student's over teacher's; 1 if neither is ever there."""
    ours, best = float(row["time_at_goal_share"]), of_teacher["time_at_goal_share"]
    if best == 0.0:
        return 1.0 if ours == 0.0 else float("inf")
    return ours / best
