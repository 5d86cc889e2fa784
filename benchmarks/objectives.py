"""Cost of an update of each objective: `python -m torch_crl.benchmarks.objectives`.

Draws a batch and updates all networks, with the sizes of `ant` on data of the random policy, once
for each objective; objectives take turns within one run. `ratio` is over contrastive RL's time, and
`predicted` is the ratio of the operations of the dense layers. The last line of standard output is
JSON.
"""

import argparse
from pathlib import Path
from typing import Any

from torch_crl.agent.objectives import OBJECTIVES
from torch_crl.benchmarks.report import report
from torch_crl.benchmarks.timing import median_ratio, take_turns
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun

DEPTHS = (4, 16, 64)
TURNS = 7


def recipe_of(objective: str, depth: int) -> Recipe:
    """Sizes of `ant` with few envs, since only updates are timed."""
    return with_changes(
        preset("ant", depth=depth),
        task={"num_envs": 16},
        algorithm={"objective": objective, "batch_size": 256},
        budget={"replay_rows": 200, "unroll_length": 50, "prefill_rows": 100},
        system={"device": "cpu", "torch_threads": 1},
    )


def _filled(recipe: Recipe) -> CrlRun:
    run = build_run(recipe)
    for _ in range(4):
        run.collect()
    return run


def measure(depth: int) -> list[dict[str, Any]]:
    """A row for each objective."""
    recipes = {name: recipe_of(name, depth) for name in OBJECTIVES}
    runs = {name: _filled(recipe) for name, recipe in recipes.items()}
    updates = max(1, 32 // depth)
    seconds = take_turns(
        *(run.draw_and_update for run in runs.values()), turns=TURNS, repeats=updates
    )
    plain = recipes["crl"].update_cost
    rows = []
    for (name, recipe), times in zip(recipes.items(), seconds, strict=True):
        cost = recipe.update_cost
        rows.append(
            {
                "scenario": "objective",
                "objective": name,
                "depth": depth,
                "width": recipe.networks.width,
                "batch": recipe.algorithm.batch_size,
                "ms": 1e3 * sorted(times)[len(times) // 2],
                "ratio": median_ratio(times, seconds[0]),
                "predicted": cost.flop / plain.flop,
                "parameters": cost.parameters / plain.parameters,
            }
        )
    return rows


def main() -> None:
    """Measure all depths, print and write the rows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depths", type=int, nargs="+", default=list(DEPTHS))
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    rows = []
    for depth in options.depths:
        for row in measure(depth):
            rows.append(row)
            print(*(f"{name}={value}" for name, value in row.items()), flush=True)
    report(rows, options.out)


if __name__ == "__main__":
    main()
