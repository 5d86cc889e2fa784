"""Stands in for `torch_crl.sweep.worker` in tests of sweeps: the same but for the training.

A run of it writes into RUN.trace beside the run directory when it begins and ends, and does what
the recipe's seed says: seeds below 10 finish after a moment, 10 fails always, 11 the first time,
12 holds on until it is told to stop, 13 ends without a result.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.sweep.worker import work

SECONDS = float(os.environ.get("SWEEP_WORKER_SECONDS", "0.2"))


def train(recipe: Recipe, directory: RunDirectory, *, resume: bool) -> None:
    run_dir = directory.path
    trace = run_dir.with_name(run_dir.name + ".trace")
    begun_before = trace.exists()
    note: dict[str, Any] = {"resume": resume, "pid": os.getpid()}
    note |= {name: os.environ.get(name) for name in ("TORCH_CRL_THREADS", "CUDA_VISIBLE_DEVICES")}
    with trace.open("a") as file:
        file.write(json.dumps({"begin": time.time(), **note}) + "\n")
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "recipe.json").write_text(recipe.to_json())
    seed = recipe.system.seed
    if seed == 10 or (seed == 11 and not begun_before):
        raise RuntimeError("the critic is not finite")
    if seed == 13:
        return
    time.sleep(60 if seed == 12 else SECONDS)
    record = {"kind": "evaluation", "env_steps": 100, "updates": 1, "seconds": 60.0}
    records = [record | {"time_at_goal_share": k / 10, "success_any": k / 5} for k in range(6)]
    text = "".join(json.dumps(record) + "\n" for record in records)
    (run_dir / "metrics.jsonl").write_text(text)
    with trace.open("a") as file:
        file.write(json.dumps({"end": time.time(), "pid": os.getpid()}) + "\n")
    (run_dir / "result.json").write_text("{}")


def say_so_and_leave(number: int, frame: object) -> None:
    print("told to stop", flush=True)
    sys.exit(128 + number)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, say_so_and_leave)
    work(Recipe.from_json(sys.stdin.read()), Path(sys.argv[1]), train=train)
