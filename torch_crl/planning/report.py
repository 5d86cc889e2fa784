"""What planning changes for a run: with and without plans, and with plans that come late."""

import itertools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch_crl.agent.policy import Acts, Policy
from torch_crl.planning.episodes import record_episodes
from torch_crl.planning.following import Late, PlanningPolicy
from torch_crl.planning.pictures import graph_picture, ground_of, lateness_picture, save
from torch_crl.planning.planner import GraphPlanner
from torch_crl.system.files import write_json, write_text
from torch_crl.system.machine import machine
from torch_crl.system.threads import torch_threads
from torch_crl.system.timing import wall_clock
from torch_crl.training.evaluation import evaluate

_SCORES = ("success_any", "time_at_goal_share", "final_distance")
_CALLS = 20


@dataclass(frozen=True, kw_only=True)
class Trial:
    """How a planner is tried."""

    planner: GraphPlanner
    policy: Policy
    """What acts."""
    task: str
    num_envs: int
    episode_length: int
    seed: int
    env_timeout: float

    def flat(self, on_step: Callable[[int], object] | None = None) -> dict[str, float]:
        """Scores of the policy without plans."""
        return self._evaluate(self.policy, on_step)

    def planned(
        self, late: int, on_step: Callable[[int], object] | None = None
    ) -> dict[str, float]:
        """Scores of the policy with plans that come so many control steps late."""
        sources: list[Late] = []
        done = 0

        def plans(of: GraphPlanner) -> Late:
            sources.append(Late(of, late))
            return sources[-1]

        def count(step: int) -> None:
            nonlocal done
            done = step
            if on_step is not None:
                on_step(step)

        policy = PlanningPolicy(self.planner, policy=self.policy, plans=plans)
        scores = self._evaluate(policy, count)
        (source,) = sources
        return {
            "late": late,
            **scores,
            "plans_in_1000_steps": 1000 * source.asked / (self.num_envs * done),
            "dropped": len(source.planner.graph.dropped),
        }

    def _evaluate(self, policy: Acts, on_step: Callable[[int], object] | None) -> dict[str, float]:
        found = evaluate(
            policy,
            self.task,
            num_envs=self.num_envs,
            episode_length=self.episode_length,
            seed=self.seed,
            env_timeout=self.env_timeout,
            on_step=on_step,
        )
        by_goal = [name for name in found if name.startswith("success_at_")]
        return {name: found[name] for name in (*_SCORES, *by_goal)}

    @torch_threads(1)
    def milliseconds(self) -> dict[str, float]:
        """Median time of a plan to a new goal, of another one to it, and of an action on one core.

        The planner remembers all distances to a goal, so the first plan to it takes longer.
        """
        planner = self.planner
        state, goal = planner.node_MS[:1], planner.places[-1:]
        goals = (goal + 1e-3 * number for number in itertools.count(1))
        calls: dict[str, Callable[[], object]] = {
            "plan_ms": lambda: planner.plan(state, next(goals)),
            "plan_again_ms": lambda: planner.plan(state, goal),
            "action_ms": lambda: self.policy.plan(state, goal),
        }
        # The first call finds nothing in the caches.
        taken = {name: wall_clock(call, 1 + _CALLS)[1:] for name, call in calls.items()}
        return {name: statistics.median(each) for name, each in taken.items()}


def write_plan_report(
    trial: Trial, flat: dict[str, float], planned: list[dict[str, float]], folder: Path
) -> str:
    """Write report.md, plan.json, the pictures and the planner into a folder; returns the text."""
    planner, ground = trial.planner, ground_of(trial.task)
    folder.mkdir(parents=True, exist_ok=True)
    planner.save(folder / "planner")
    length = min(trial.episode_length, 1000)
    ways_to_act: dict[str, Acts] = {
        "no plan": trial.policy,
        "with plans": PlanningPolicy(planner, policy=trial.policy),
    }
    drawn = {
        name: record_episodes(
            policy,
            trial.task,
            num_envs=trial.num_envs,
            episode_length=length,
            seed=trial.seed,
            env_timeout=trial.env_timeout,
        )
        for name, policy in ways_to_act.items()
    }
    save(graph_picture(planner, ground, drawn), folder / "graph.png")
    save(lateness_picture(planned, flat), folder / "lateness.png")
    document: dict[str, Any] = {
        "task": trial.task,
        "episodes": trial.num_envs,
        "seed": trial.seed,
        "nodes": len(planner.node_MS),
        "edges": int(planner.graph.edge_MM.isfinite().sum()),
        "edges_through_walls": ground.crossed(planner.places, planner.graph.edge_MM),
        "longest_edge": planner.longest,
        "reach": planner.reach,
        **trial.milliseconds(),
        "flat": flat,
        "planned": planned,
        "machine": machine(),
    }
    text = _markdown(document, is_maze=ground.is_maze)
    write_json(folder / "plan.json", document)
    write_text(folder / "report.md", text)
    return text


def _counts(row: dict[str, float]) -> str:
    if "dropped" not in row:
        return " | "
    return f"{row['plans_in_1000_steps']:.1f} | {row['dropped']:.0f}"


def _markdown(told: dict[str, Any], *, is_maze: bool) -> str:
    walls = ""
    if is_maze:
        crossing = told["edges_through_walls"]
        walls = f" (the straight line along {crossing} of them touches a wall)"
    lines = [
        f"# Plans on {told['task']}",
        "",
        f"{told['nodes']} visited states are the nodes of a graph with {told['edges']:,} edges, "
        f"none longer than {told['longest_edge']:.0f} steps as the critic tells them{walls}. A "
        f"sub-goal counts as passed at a distance of {told['reach']:g}. One plan takes "
        f"{told['plan_ms']:.3g} ms of one core to a new goal and {told['plan_again_ms']:.3g} ms to "
        f"the same goal again, one action {told['action_ms']:.3g} ms. "
        f"{told['episodes']} episodes, with equal starts and goals in all rows.",
        "",
        "| plans | reach the goal | time at the goal | final distance | plans in 1,000 steps | "
        "edges dropped |",
        "|---|---|---|---|---|---|",
    ]
    rows = [("none", told["flat"])]
    rows += [
        ("at once" if not row["late"] else f"{row['late']} control steps late", row)
        for row in told["planned"]
    ]
    for name, row in rows:
        counts = _counts(row)
        lines.append(
            f"| {name} | {row['success_any']:.3f} | {row['time_at_goal_share']:.3f} | "
            f"{row['final_distance']:.3g} | {counts} |"
        )
    return "\n".join(lines) + "\n"
