"""Evaluates runs that were trained by words: `python -m torch_crl.benchmarks.words RUN ...`.

Each run is evaluated with the sentences that it has learned from and with sentences of other forms,
and an update of it is timed beside one with goals of the state. Rows are added to
benchmarks/results/words.json, and the table is part of docs/words.md.
"""

import argparse
import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torch_crl.benchmarks.table_parts import RESULTS, machine_line, read_result
from torch_crl.goals.words import Reader
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.settings import GoalsRecipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import find_policy
from torch_crl.runs.zoo import command_of
from torch_crl.system.machine import machine
from torch_crl.system.torch_defaults import torch_defaults
from torch_crl.training.crl_run import build_run
from torch_crl.training.evaluation import evaluate

EPISODES = 512
SEED = 1_000_000
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
    scores = {
        kind: evaluate(
            acting,
            recipe.task.eval_name,
            num_envs=EPISODES,
            episode_length=recipe.task.episode_length,
            seed=SEED,
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
    } | {
        f"{kind}_{metric}": found[metric]
        for kind, found in scores.items()
        for metric in ("success_any", "time_at_goal_share")
    }


@torch_defaults()
def cost_of_words(recipe: Recipe) -> float:
    """Time of an update by words over that of one by goals of the state, median of turns."""
    runs = [build_run(each) for each in (recipe, replace(recipe, goal_space=GoalsRecipe()))]
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


def main(arguments: list[str]) -> int:
    """Evaluate the runs, and replace their rows and the costs. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    runs = parser.parse_args(arguments).runs
    path = RESULTS / "words.json"
    document = json.loads(path.read_text()) if path.exists() else {"rows": [], "cost": {}}
    document["machine"] = machine(torch.device("cpu"))
    for run_dir in runs:
        row = row_of(run_dir)
        print(row, flush=True)
        same = ("task", "seed", "same_place", "env_steps")
        rows = [each for each in document["rows"] if any(each[key] != row[key] for key in same)]
        document["rows"] = sorted([*rows, row], key=lambda each: [each[key] for key in same])
        if row["task"] not in document["cost"]:
            document["cost"][row["task"]] = cost_of_words(RunDirectory(run_dir).read_recipe())
        path.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
