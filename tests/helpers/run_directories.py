"""Run directories as `train` leaves them, made up: recipe, evaluations, result."""

import json
from pathlib import Path

from torch_crl.recipe.record import Recipe


def write_run(
    run_dir: Path,
    recipe: Recipe,
    shares: list[float],
    *,
    seconds: float = 60.0,
    finished: bool = True,
    env_steps: int = 0,
) -> Path:
    """A run with these `time_at_goal_share`, evenly spaced up to `env_steps` and `seconds`."""
    run_dir.mkdir(parents=True)
    (run_dir / "recipe.json").write_text(recipe.to_json())
    end, length = env_steps or recipe.budget.env_steps, recipe.task.episode_length
    records = [
        {
            "kind": "evaluation",
            "env_steps": end * number // len(shares),
            "updates": 100 * number,
            "seconds": seconds * number / len(shares),
            "time_at_goal": share * length,
            "time_at_goal_share": share,
            "success_any": min(1.0, 2 * share),
            "final_distance": 1.0 - share,
            "mean_distance": 1.0 - share / 2,
            "episode_length": length,
        }
        for number, share in enumerate(shares, start=1)
    ]
    other = {"kind": "train", "env_steps": 1, "updates": 0, "seconds": 0.1}
    lines = [json.dumps(record) for record in (other, *records)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if finished:
        evaluation = {name: value for name, value in records[-1].items() if name != "kind"}
        (run_dir / "result.json").write_text(json.dumps({"evaluation": evaluation}))
    return run_dir
