"""Evaluates what was trained by pictures: `python -m torch_crl.benchmarks.pictures FOLDER ...`.

A folder is a run with --goals pictures, which is evaluated at goals that it has not been commanded
in training, or the students of `torch-crl distil --observe camera`, whose results are read. Rows
are added to benchmarks/results/pictures.json, and the tables are part of docs/words.md.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from torch_crl.benchmarks.table_parts import RESULTS, machine_line, read_result
from torch_crl.goals.pictures import PictureReader
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import find_policy
from torch_crl.runs.zoo import command_of
from torch_crl.system.machine import machine
from torch_crl.training.evaluation import evaluate

EPISODES = 256
SEED = 1_000_000


def run_row(run_dir: Path) -> dict[str, Any]:
    """What is known of a finished run. Raises ValueError for one whose goals are no pictures."""
    directory = RunDirectory(run_dir)
    recipe = directory.read_recipe()
    policy = find_policy(run_dir).policy
    if not isinstance(policy.reader, PictureReader):
        raise ValueError(f"{run_dir} was not trained with --goals pictures")
    found = evaluate(
        policy,
        recipe.task.eval_name,
        num_envs=EPISODES,
        episode_length=recipe.task.episode_length,
        seed=SEED,
    )
    return {
        "kind": "run",
        "task": recipe.task.name,
        "seed": recipe.system.seed,
        "command": command_of(recipe),
        "every": recipe.goal_space.picture_every,
        "env_steps": recipe.total_env_steps,
        "seconds": directory.read_metrics("evaluation")[-1]["seconds"],
        "episodes": EPISODES,
        **{name: found[name] for name in ("success_any", "time_at_goal_share", "final_distance")},
    }


def student_rows(folder: Path) -> list[dict[str, Any]]:
    """Retention of the students that a command wrote to this folder."""
    document = json.loads((folder / "students.json").read_text())
    return [
        {
            "kind": "student",
            "task": document["task"],
            "seed": row["seed"],
            "depth": row["depth"],
            "width": row["width"],
            "episodes": document["episodes"],
            # Saved policies are named by the labelled rows and the updates so far.
            "rows": int(Path(row["policy"]).name.split("_")[1]),
            "ms_p50": row["ms_p50"],
            "teacher": {name: document["teacher"][name] for name in _SCORES},
            **{name: row[name] for name in (*_SCORES, "retention")},
        }
        for row in document["students"]
    ]


_SCORES = ("success_any", "time_at_goal_share")


def pictures_table() -> str:
    """Runs by pictures, and students that see a camera."""
    document = read_result("pictures.json")
    runs = [row for row in document["rows"] if row["kind"] == "run"]
    students = [row for row in document["rows"] if row["kind"] == "student"]
    (episodes,) = {row["episodes"] for row in runs}
    (filmed,) = {row["episodes"] for row in students}
    return "\n".join(
        [
            "| task | seed | a picture every | env steps | minutes | reaches the goal | time at "
            "the goal | final distance, m |",
            "|---|---|---|---|---|---|---|---|",
            *(
                f"| {row['task']} | {row['seed']} | {row['every']} steps | {row['env_steps']:,} | "
                f"{row['seconds'] / 60:.1f} | {row['success_any']:.3f} | "
                f"{row['time_at_goal_share']:.3f} | {row['final_distance']:.3f} |"
                for row in runs
            ),
            "",
            f"{episodes} episodes, each commanded by a picture of its own goal; reached is what is "
            "within the success radius. Students that see a camera and read sentences, and their "
            f"teachers, in {filmed} episodes:",
            "",
            "| task | student | labelled pictures | reaches the goal, teacher | student | time at "
            "the goal, teacher | student | retention | ms an action |",
            "|---|---|---|---|---|---|---|---|---|",
            *(
                f"| {row['task']} | {row['depth']} x {row['width']}, seed {row['seed']} | "
                f"{row['rows']:,} | {row['teacher']['success_any']:.3f} | "
                f"{row['success_any']:.3f} | {row['teacher']['time_at_goal_share']:.3f} | "
                f"{row['time_at_goal_share']:.3f} | {row['retention']:.3f} | {row['ms_p50']:.3g} |"
                for row in students
            ),
            "",
            "Minutes are those of cores shared with other work. "
            + machine_line(document["machine"]),
        ]
    )


def main(arguments: list[str]) -> int:
    """Evaluate or read the folders, and replace their rows. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("folders", nargs="+", type=Path)
    path = RESULTS / "pictures.json"
    document = json.loads(path.read_text()) if path.exists() else {"rows": []}
    document["machine"] = machine(torch.device("cpu"))
    for folder in parser.parse_args(arguments).folders:
        is_of_students = (folder / "students.json").exists()
        for row in student_rows(folder) if is_of_students else [run_row(folder)]:
            print(row, flush=True)
            others = [each for each in document["rows"] if _kind(each) != _kind(row)]
            document["rows"] = sorted([*others, row], key=_kind)
        path.write_text(json.dumps(document, indent=2) + "\n")
    return 0


def _kind(row: dict[str, Any]) -> list[Any]:
    """What differs between the rows."""
    names = ("kind", "task", "seed", "depth", "width", "rows", "every", "env_steps")
    return [row.get(name, 0) for name in names]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
