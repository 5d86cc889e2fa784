"""Env steps per second: `python -m torch_crl.benchmarks.envs [families peers] [--out FILE]`.

families  one task of each family against bare mujoco.batch, from equal starts with equal actions
peers     `ant` against Ant-v5 in Gymnasium's AsyncVectorEnv and in envpool, if installed

Ant-v5 has the same control step as `ant`, 0.05 s. Contenders take turns within one run and the
ratio is the median of the turns' ratios. The last line of standard output is JSON.
"""

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import torch
from mujoco.batch import Batch
from torch import Generator

from torch_crl.benchmarks.report import report
from torch_crl.benchmarks.timing import median_ratio, take_turns
from torch_crl.envs.make import make_task_vector_env
from torch_crl.system.threads import torch_threads

FAMILIES = (
    *("reacher", "point_u_maze", "ant", "ant_u_maze", "ant_ball", "ant_push", "humanoid"),
    *("half_cheetah", "pusher_easy", "pusher2", "arm_reach", "arm_grasp", "arm_push_easy"),
    *("arm_binpick_easy", "arm_binpick_easy_eef"),
)
ENVS, STEPS, TURNS = 512, 25, 15
Row = dict[str, Any]


def families() -> list[Row]:
    """One task of each family; every turn simulates the same, from the same fresh starts."""
    return [_against_bare_batch(name) for name in FAMILIES]


def _against_bare_batch(name: str) -> Row:
    env = make_task_vector_env(name, num_envs=ENVS, episode_length=1000, seed=0)
    task, everyone = env.task, torch.ones(ENVS, dtype=torch.bool)
    start = task.sample_start(ENVS, Generator().manual_seed(0))
    actions = _actions(STEPS, task.spec.action_size)
    bare = Batch(task.model, ENVS)
    env.simulator.reset(everyone, start.qpos_NQ, start.qvel_NV)
    fresh = env.simulator.get_state()
    # Some controls depend on the state; the bare batch uses those of the first state.
    controls = [task.control(action, env.simulator).double().numpy() for action in actions]
    bare_state = bare.state.copy()

    def ours() -> None:
        for action in actions:
            env.step(action)

    def theirs() -> None:
        for control in controls:
            bare.ctrl[:] = control
            bare.step(nstep=task.substeps)

    def begin() -> None:
        env.simulator.set_state(fresh)
        bare.state[:] = bare_state
        bare.qpos[:], bare.qvel[:] = start.qpos_NQ.numpy(), start.qvel_NV.numpy()

    rates = _compare(ours, theirs, "bare_mujoco_batch", begin=begin)
    return {"scenario": "families", "task": name, **rates}


def peers() -> list[Row]:
    """Other vector envs; all contenders include the resets that random actions cause."""
    actions = _actions(STEPS, 8)
    arrays = [action.numpy() for action in actions]
    env = make_task_vector_env("ant", num_envs=ENVS, episode_length=1000, seed=0)

    def ours() -> None:
        for action in actions:
            env.step(action)

    rows = []
    for name, make in {"gymnasium_async": _gymnasium_async, "envpool": _envpool}.items():
        if name == "envpool" and importlib.util.find_spec("envpool") is None:
            print("envpool is not installed; left out", file=sys.stderr)
            continue
        peer = make()
        peer.reset()

        def theirs(peer: Any = peer) -> None:
            for action in arrays:
                peer.step(action)

        rates = _compare(ours, theirs, name)
        peer.close()
        rows.append({"scenario": "peers", "task": "ant", "peer": name, **rates})
    return rows


def _gymnasium_async() -> Any:
    return gymnasium.make_vec("Ant-v5", num_envs=ENVS, vectorization_mode="async")


def _envpool() -> Any:
    import envpool

    return envpool.make("Ant-v5", env_type="gymnasium", num_envs=ENVS, num_threads=2)


def _actions(steps: int, size: int) -> list[torch.Tensor]:
    drawn = torch.rand(steps, ENVS, size, generator=Generator().manual_seed(0)) * 2 - 1
    return list(drawn)


def _compare(
    ours: Callable[[], object],
    theirs: Callable[[], object],
    peer: str,
    *,
    begin: Callable[[], object] = lambda: None,
) -> Row:
    with torch_threads(1):
        seconds = take_turns(ours, theirs, turns=TURNS, begin=begin)
    ours_rate, peer_rate = (ENVS * STEPS / statistics.median(values) for values in seconds)
    return {
        "envs": ENVS,
        "ours_per_second": ours_rate,
        f"{peer}_per_second": peer_rate,
        "ratio": median_ratio(seconds[1], seconds[0]),
    }


def main() -> None:
    """Run the chosen scenarios, print a line for each row, then everything as JSON."""
    scenarios = {"families": families, "peers": peers}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", choices=[[], *scenarios], default=[])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    rows = []
    for name in options.scenarios or scenarios:
        for row in scenarios[name]():
            rows.append(row)
            print(row, flush=True)
    report(rows, options.out)


if __name__ == "__main__":
    main()
