"""Evaluates runs that were trained by words: `python -m torch_crl.benchmarks.words RUN ...`.

Each run is evaluated with the sentences that it has learned from and with sentences of other forms,
and an update of it is timed beside one with goals of the state, or that of a mixture of experts
beside one of a dense actor. Rows are added to words.json or mixture.json in benchmarks/results, and
the tables are part of docs/words.md.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torch_crl.agent.networks import ResidualTower
from torch_crl.benchmarks.table_parts import RESULTS, machine_line, read_result
from torch_crl.goals.sentences import Reader
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.settings import GoalsRecipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import find_policy
from torch_crl.runs.zoo import command_of
from torch_crl.system.machine import machine
from torch_crl.system.torch_defaults import torch_defaults
from torch_crl.training.building import build_run
from torch_crl.training.evaluation import evaluate
from torch_crl.training.expert_use import ExpertUse

EPISODES = 512
SEED = 1_000_000
MIXTURE_TASK = "point_three_mazes"
"""The task on which mixtures of experts are compared with dense actors."""
_RESAMPLES = 10_000
_UPDATES = 100
_TURNS = 5


def row_of(run_dir: Path) -> dict[str, Any]:
    """What is known of a finished run. Raises ValueError for one whose goals are numbers."""
    directory = RunDirectory(run_dir)
    recipe = directory.read_recipe()
    policy = find_policy(run_dir).policy
    if not isinstance(policy.reader, Reader):
        raise ValueError(f"{run_dir} was not trained with --goals words")
    unseen = policy.with_reader(policy.reader.with_unseen())
    assert isinstance(policy.actor, ResidualTower)
    use = ExpertUse(policy) if policy.actor.is_mixture else None
    scores = {
        kind: evaluate(
            acting,
            recipe.task.eval_name,
            num_envs=EPISODES,
            episode_length=recipe.task.episode_length,
            seed=SEED,
            observe=use if kind == "known" else None,
        )
        for kind, acting in (("known", policy), ("unseen", unseen))
    }
    return {
        "task": recipe.task.name,
        "seed": recipe.system.seed,
        "same_place": recipe.goal_space.same_place,
        "command": command_of(recipe),
        "env_steps": recipe.total_env_steps,
        "seconds": directory.read_metrics("evaluation")[-1]["seconds"],
        "places": len(policy.reader.vocabulary.names),
        "episodes": EPISODES,
        "experts": policy.actor.sizes.experts,
        "used": use.shares() if use else {},
    } | {
        f"{kind}_{metric}": found[metric]
        for kind, found in scores.items()
        for metric in ("success_any", "time_at_goal_share")
    }


def cost_of(recipe: Recipe) -> float:
    """Time of an update by words over that of one by goals of the state; for the task of mixtures,
    that of an update of a mixture of experts over that of a dense actor.
    """
    if recipe.task.name != MIXTURE_TASK:
        return relative_cost(recipe, replace(recipe, goal_space=GoalsRecipe()))
    kinds = ({"actor_block": "moe"}, {"actor_block": "same"})
    return relative_cost(*(with_changes(recipe, networks=kind) for kind in kinds))


@torch_defaults()
def relative_cost(recipe: Recipe, other: Recipe) -> float:
    """Time of an update of the first over that of the second, median of turns."""
    runs = [build_run(each) for each in (recipe, other)]
    for run in runs:
        for _ in range(recipe.prefill_collections):
            run.collect()
        for _ in range(_UPDATES):
            run.update()
    ratios = []
    for _ in range(_TURNS):
        seconds = []
        for run in runs:
            begin = time.perf_counter()
            for _ in range(_UPDATES):
                run.update()
            seconds.append(time.perf_counter() - begin)
        ratios.append(seconds[0] / seconds[1])
    for run in runs:
        run.close()
    return statistics.median(ratios)


def words_table() -> str:
    """Success by known and unseen sentences of every run, and the cost of an update."""
    document = read_result("words.json")
    lines = [
        "| task | places | seed | same place | env steps | minutes | known sentences | unseen | "
        "time at the goal, known | unseen |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['task']} | {row['places']} | {row['seed']} | {row['same_place']} | "
        f"{row['env_steps']:,} | {row['seconds'] / 60:.1f} | {row['known_success_any']:.3f} | "
        f"{row['unseen_success_any']:.3f} | {row['known_time_at_goal_share']:.3f} | "
        f"{row['unseen_time_at_goal_share']:.3f} |"
        for row in document["rows"]
    ]
    costs = ", ".join(f"{ratio:.2f} ({task})" for task, ratio in document["cost"].items())
    (episodes,) = {row["episodes"] for row in document["rows"]}
    return "\n".join(
        [
            *lines,
            "",
            f"Share of {episodes} episodes that reach the goal, and share of the time there. An "
            f"update by words takes {costs} times as long as by goals of the state, in turns. "
            f"{machine_line(document['machine'])}",
        ]
    )


def mixture_table() -> str:
    """Dense actors and mixtures of experts at equal operations, and which experts are used."""
    document = read_result("mixture.json")
    rows = document["rows"]
    lines = [
        "| actor | seed | minutes | known sentences | unseen | time at the goal, known | unseen |",
        "|---|---|---|---|---|---|---|",
    ]
    kinds = {
        "dense": [row for row in rows if row["experts"] == 1],
        "mixture": [row for row in rows if row["experts"] > 1],
    }
    lines += [
        f"| {name} | {row['seed']} | {row['seconds'] / 60:.1f} | "
        f"{' | '.join(f'{row[score]:.3f}' for score in (*_SUCCESS, *_TIME))} |"
        for name, ours in kinds.items()
        for row in ours
    ]
    draw = np.random.default_rng(0)
    drawn = {
        name: [_drawn([row[score] for row in ours], draw) for score in _SUCCESS]
        for name, ours in kinds.items()
    }
    drawn["mixture less dense"] = [
        ours_B - theirs_B for theirs_B, ours_B in zip(*drawn.values(), strict=True)
    ]
    lines += [
        f"| {name} | all | | {' | '.join(map(_with_interval, means))} | | |"
        for name, means in drawn.items()
    ]
    (steps,) = {row["env_steps"] for row in rows}
    return "\n".join(
        [
            *lines,
            "",
            f"{steps:,} env steps of `{MIXTURE_TASK}` each; {EPISODES} episodes of each run; in "
            "brackets 95 % of a bootstrap over seeds and their episodes. An update with a mixture "
            f"takes {document['cost'][MIXTURE_TASK]:.2f} times as long as with a dense actor. "
            f"{machine_line(document['machine'])}",
            "",
            *_use_table(rows),
        ]
    )


_SUCCESS = ("known_success_any", "unseen_success_any")
_TIME = ("known_time_at_goal_share", "unseen_time_at_goal_share")


def _drawn(share_R: list[float], draw: np.random.Generator) -> NDArray[np.float64]:
    """Means of R seeds' shares of episodes: the measured one, and B of a bootstrap over both."""
    drawn_BR = draw.choice(share_R, size=(_RESAMPLES, len(share_R)))
    mean_B = (draw.binomial(EPISODES, drawn_BR) / EPISODES).mean(1)
    return np.concatenate([[np.mean(share_R)], mean_B])


def _with_interval(mean_B: NDArray[np.float64]) -> str:
    """The first one of these means, and where 95 % of the others are."""
    low, high = np.percentile(mean_B[1:], (2.5, 97.5))
    return f"{mean_B[0]:.3f} [{low:.3f}, {high:.3f}]"


def _use_table(rows: list[dict[str, Any]]) -> list[str]:
    """The share of the plans of each expert of the first block, by maze and seed."""
    lines = [
        "| goal in | seed | share of the plans of each expert of the first block |",
        "|---|---|---|",
    ]
    for row in rows:
        mazes: dict[str, list[list[float]]] = {}
        for name, blocks in row["used"].items():
            mazes.setdefault(name.rpartition(" of the ")[2], []).append(blocks[0])
        lines += [
            f"| the {maze} | {row['seed']} | "
            f"{', '.join(f'{share:.2f}' for share in np.mean(shares, axis=0))} |"
            for maze, shares in mazes.items()
        ]
    return lines


def _kind(row: dict[str, Any]) -> list[Any]:
    """What differs between the rows of a file; rows of before mixtures have no experts."""
    names = ("task", "seed", "same_place", "env_steps")
    return [row.get("experts", 1), *(row[name] for name in names)]


def main(arguments: list[str]) -> int:
    """Evaluate the runs, and replace their rows and the costs. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args(arguments).runs
    for run_dir in runs:
        row = row_of(run_dir)
        print(row, flush=True)
        path = RESULTS / ("mixture.json" if row["task"] == MIXTURE_TASK else "words.json")
        document = json.loads(path.read_text()) if path.exists() else {"rows": [], "cost": {}}
        document["machine"] = machine(torch.device("cpu"))
        others = [each for each in document["rows"] if _kind(each) != _kind(row)]
        document["rows"] = sorted([*others, row], key=_kind)
        if row["task"] not in document["cost"]:
            document["cost"][row["task"]] = cost_of(RunDirectory(run_dir).read_recipe())
        path.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
