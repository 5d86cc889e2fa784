"""What the presets reach: `python -m benchmarks.learning [--out FILE]`.

Trains `reacher` with three seeds and `point_u_maze` with one, as `torch-crl train` does, and
evaluates the final policies over fresh episodes. About 20 minutes on two cores.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.report import report
from torch_crl import evaluate, load_policy, preset, train, with_changes
from torch_crl.metrics import read_metrics

# Task, seeds, and tasks to evaluate on.
RUNS = [
    ("reacher", (0, 1, 2), ("reacher",)),
    ("point_u_maze", (0,), ("point_u_maze", "point_u_maze_eval")),
]
# Training never evaluates with this seed.
EVALUATION_SEED = 1_000_000


def run(task: str, seed: int, eval_tasks: tuple[str, ...], root: Path) -> list[dict[str, Any]]:
    """Train once; one row for each evaluation task."""
    recipe = with_changes(preset(task), system={"seed": seed})
    result = train(recipe, root / f"{task}_seed{seed}", overwrite=True)
    policy = load_policy(result.run_dir)
    seconds = read_metrics(result.run_dir, "evaluation")[-1]["seconds"]
    rows = []
    for eval_task in eval_tasks:
        metrics = evaluate(
            policy,
            eval_task,
            num_envs=512,
            episode_length=recipe.task.episode_length,
            seed=EVALUATION_SEED,
        )
        rows.append(
            {
                "task": task,
                "seed": seed,
                "eval_task": eval_task,
                "env_steps": recipe.total_env_steps,
                "updates": recipe.total_updates,
                "minutes": seconds / 60,
                "episode_steps": recipe.task.episode_length,
                **metrics,
            }
        )
    return rows


def main() -> None:
    """Train all, print and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="run directories")
    parser.add_argument("--only", help="only this task")
    options = parser.parse_args()
    rows = []
    for task, seeds, eval_tasks in RUNS:
        for seed in seeds if options.only in (None, task) else ():
            print(f"{task}, seed {seed}", file=sys.stderr)
            rows += run(task, seed, eval_tasks, options.runs)
    report(rows, options.out)


if __name__ == "__main__":
    main()
