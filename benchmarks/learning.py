"""The scores of a preset: `python -m torch_crl.benchmarks.learning TASK [--seeds 0 1 2]`.

Trains as `torch-crl train TASK` does and evaluates the final policies over 512 fresh episodes.
`--threads 1` keeps a run on one core, so that several can run side by side.
"""

import argparse
from pathlib import Path
from typing import Any

from torch_crl import evaluate, load_policy, preset, train, with_changes
from torch_crl.benchmarks.report import report

# Task to the tasks that its policy is evaluated on.
EVAL_TASKS = {
    "reacher": ("reacher",),
    "point_u_maze": ("point_u_maze", "point_u_maze_eval"),
}
# Training never evaluates with this seed.
EVALUATION_SEED = 1_000_000


def run(task: str, seed: int, *, threads: int, root: Path) -> list[dict[str, Any]]:
    """Train once and evaluate; returns a row for each evaluation task."""
    system = {"seed": seed, "torch_threads": threads, "simulator_threads": threads}
    recipe = with_changes(preset(task), system=system)
    result = train(recipe, root / f"{task}_seed{seed}", overwrite=True)
    policy = load_policy(result.run_dir)
    rows = []
    for eval_task in EVAL_TASKS.get(task, (task,)):
        metrics = evaluate(
            policy,
            eval_task,
            num_envs=512,
            episode_length=recipe.task.episode_length,
            seed=EVALUATION_SEED,
            num_threads=threads,
        )
        rows.append(
            {
                "task": task,
                "seed": seed,
                "eval_task": eval_task,
                "env_steps": recipe.total_env_steps,
                "updates": recipe.total_updates,
                "threads": threads,
                "minutes": result.evaluation["seconds"] / 60,
                "episode_steps": recipe.task.episode_length,
                **metrics,
            }
        )
    return rows


def main() -> None:
    """Train with every seed, print and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=0, help="for torch and MuJoCo; 0: auto")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    parser.add_argument("--runs", type=Path, default=Path("runs/learning"), help="run directories")
    options = parser.parse_args()
    rows = []
    for seed in options.seeds:
        rows += run(options.task, seed, threads=options.threads, root=options.runs)
    report(rows, options.out)


if __name__ == "__main__":
    main()
