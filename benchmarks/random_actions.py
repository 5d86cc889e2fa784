"""Every task under random actions: `python -m torch_crl.benchmarks.random_actions [TASK ...]`.

Each task runs 1,000 control steps of 64 envs: are all states finite and of the size that the spec
says, does MuJoCo warn, and how many contacts and scalar constraints do the simulations have at
once? A task has to reserve these numbers on MuJoCo Warp (`Task.capacity`). The last line of
standard output is JSON; the exit status is 1 if a task fails.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Generator

from torch_crl.benchmarks.report import report
from torch_crl.envs.make import make_task_vector_env
from torch_crl.envs.registry import TASKS
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.system.threads import torch_threads

STEPS, ENVS = 1000, 64
# Steps for which an action is held: this gets a robot further than a new action at every step.
_HELD = 5


@torch_threads(1)
def random_actions(name: str, *, steps: int = STEPS, num_envs: int = ENVS) -> dict[str, Any]:
    """A row on `steps` control steps with uniform random actions."""
    env = make_task_vector_env(name, num_envs=num_envs, episode_length=1000, seed=0)
    assert isinstance(env.simulator, CpuSimulator)
    generator = Generator().manual_seed(1)
    counts = env.simulator.live_counts()
    most = dict.fromkeys(counts, 0)
    finite, largest = True, 0.0
    for step in range(steps):
        if step % _HELD == 0:
            action_NA = torch.rand(num_envs, env.spec.action_size, generator=generator) * 2 - 1
        state_NS = env.step(action_NA).final_state_NS
        finite &= bool(state_NS.isfinite().all())
        largest = max(largest, float(state_NS.abs().max()))
        most = {kind: max(most[kind], int(counts[kind].max())) for kind in counts}
    capacity = env.task.capacity
    return {
        "task": name,
        "steps": steps,
        "envs": num_envs,
        "finite": finite,
        "state_size": state_NS.shape[1],
        "largest_entry": largest,
        "warnings": env.simulator.num_warnings,
        "most_contacts": most["contacts"],
        "most_constraints": most["constraints"],
        "room_for_contacts": capacity.contacts,
        "room_for_constraints": capacity.constraints,
    }


def failed(row: dict[str, Any]) -> bool:
    """Whether a row shows an error: numbers that are not finite, warnings or wrong sizes."""
    return (
        not row["finite"]
        or row["warnings"] > 0
        or row["state_size"] != TASKS[row["task"]].state_size
        or row["most_contacts"] > row["room_for_contacts"]
        or row["most_constraints"] > row["room_for_constraints"]
    )


def main() -> int:
    """Run the tasks, print a line for each, then everything as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="all if none is given")
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    rows = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        names = options.tasks or list(TASKS)
        bar = progress.add_task("", total=len(names))
        for name in names:
            progress.update(bar, description=name)
            rows.append(random_actions(name))
            print("FAILED" if failed(rows[-1]) else "ok", rows[-1], flush=True)
            progress.advance(bar)
    report(rows, options.out)
    return int(any(map(failed, rows)))


if __name__ == "__main__":
    sys.exit(main())
