"""Benchmarks that need no GPU: `python -m torch_crl.benchmarks.cpu [scenario ...]`.

update   gradient updates against a plain module-by-module PyTorch version of the same update
compiled gradient updates on the kernels compiled by numba against plain PyTorch, on one core
peers    the same against torch.compile and, where it is installed, JAX
env      env steps against bare mujoco.batch on the same model, substeps and actions
startup  from the start of a process to its first gradient update, in seconds and of CPU time
deep     three updates on `ant` at depth 1024, batch 64: the last loss and the peak memory

Contenders take turns within one run and the ratio is the median of the turns' ratios, so that a
busy machine slows both. The last line of standard output is JSON.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from mujoco.batch import Batch
from torch import Generator, Tensor

from torch_crl.benchmarks.peers.eager_torch import EagerCrl
from torch_crl.benchmarks.report import report
from torch_crl.benchmarks.timing import median_ratio, take_turns
from torch_crl.envs.registry import make_task
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.kernels.blas import multiplies_bf16
from torch_crl.kernels.tower import BLOCK
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.system.garbage import THRESHOLD
from torch_crl.system.threads import torch_threads
from torch_crl.training.building import build_run

UPDATE_SIZES = [{"depth": depth, "width": 256, "batch_size": 256} for depth in (4, 16)]
COMPILED_SIZES = ((4, 64, 128), (64, 64, 128), (4, 128, 256), (4, 256, 256), (16, 256, 256))
"""Depth, width and batch size of the scenario `compiled`."""
PEER_SIZES = ((4, 64, 128), (16, 64, 128), (64, 64, 128), (4, 256, 256))
"""The same of the scenario `peers`."""
TURNS = 9
_TRAIN = [sys.executable, "-m", "torch_crl.cli.main", "train"]


def update() -> list[dict[str, Any]]:
    """Updates per second with the sizes of `ant` on random data, both contenders in fp32."""
    return [_update(**size) for size in UPDATE_SIZES]


def _update(*, depth: int, width: int, batch_size: int) -> dict[str, Any]:
    recipe = _recipe(depth=depth, width=width, batch_size=batch_size, tower="reference")
    learner, batch = build_run(recipe).learner, _random_batch(batch_size)
    peer = EagerCrl(state_size=29, goal_size=2, action_size=8, width=width, depth=depth)
    updates = max(4, 80 // depth)
    ours, theirs = take_turns(
        lambda: learner.update(batch),
        lambda: peer.update(batch["state"], batch["action"], batch["goal"]),
        turns=TURNS,
        repeats=updates,
    )
    row = _row("update", recipe, ours=ours, theirs=theirs, peer="eager_torch")
    return row | {"gflop_per_second": recipe.update_cost.flop / statistics.median(ours) / 1e9}


def compiled() -> list[dict[str, Any]]:
    """Updates per second with the sizes of `ant` on random data, one thread each.

    Plain PyTorch computes in fp32, the compiled kernels in fp32 and, where they can, in bf16.
    """
    with torch_threads(1):
        return [row for sizes in COMPILED_SIZES for row in _compiled(*sizes)]


def _compiled(depth: int, width: int, batch_size: int) -> list[dict[str, Any]]:
    batch = _random_batch(batch_size)
    plain = _recipe(depth=depth, width=width, batch_size=batch_size, tower="reference")
    numba = with_changes(plain, system={"tower": "numba", "precision": "fp32"})
    half = with_changes(numba, system={"precision": "bf16"})
    recipes = [numba, half] if multiplies_bf16() else [numba]
    learners = [build_run(recipe).learner for recipe in (plain, *recipes)]
    theirs, *ours = take_turns(
        *(partial(learner.update, batch) for learner in learners),
        turns=TURNS,
        repeats=max(2, 160 // depth),
    )
    return [
        _row("compiled", recipe, ours=seconds, theirs=theirs, peer="plain_torch")
        | {"precision": recipe.system.precision}
        for recipe, seconds in zip(recipes, ours, strict=True)
    ]


def peers() -> list[dict[str, Any]]:
    """Updates per second on one core, beside other compilers of the same update, all in fp32.

    JAX runs many updates as one program, as the published code does. torch.compile takes minutes
    for deep networks, so it is measured at depth 4.
    """
    with torch_threads(1), _one_cpu():
        return [row for sizes in PEER_SIZES for row in _peers(*sizes)]


def _peers(depth: int, width: int, batch_size: int) -> Iterator[dict[str, Any]]:
    recipe = _recipe(depth=depth, width=width, batch_size=batch_size, tower="numba")
    learner, batch = build_run(recipe).learner, _random_batch(batch_size)
    updates = max(4, 640 // depth)
    sizes: dict[str, Any] = {
        "state_size": 29,
        "goal_size": 2,
        "action_size": 8,
        "width": width,
        "depth": depth,
    }

    def ours() -> None:
        for _ in range(updates):
            learner.update(batch)

    contenders: dict[str, Callable[[], object]] = {}
    if depth == BLOCK:
        peer = EagerCrl(**sizes, compiled=True)

        def compiled_torch() -> None:
            for _ in range(updates):
                peer.update(batch["state"], batch["action"], batch["goal"])

        contenders["torch_compile"] = compiled_torch
    if find_spec("jax"):
        # Imported here, so that JAX is needed only where it is measured.
        from torch_crl.benchmarks.peers.jax_crl import JaxCrl

        in_jax = JaxCrl(**sizes, batch_size=batch_size)
        contenders["jax"] = lambda: in_jax.run(updates)
    for name, run in contenders.items():
        of_ours, of_theirs = take_turns(ours, run, turns=TURNS)
        seconds = [[each / updates for each in turn] for turn in (of_ours, of_theirs)]
        yield _row("peers", recipe, ours=seconds[0], theirs=seconds[1], peer=name)


@contextmanager
def _one_cpu() -> Iterator[None]:
    """Inside, this process and the threads that it starts run on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _row(
    scenario: str, recipe: Recipe, *, ours: list[float], theirs: list[float], peer: str
) -> dict[str, Any]:
    """Sizes of the updates, and their rates from the seconds of each turn."""
    return {
        "scenario": scenario,
        "depth": recipe.networks.critic_depth,
        "width": recipe.networks.width,
        "batch": recipe.algorithm.batch_size,
        "ours_per_second": 1 / statistics.median(ours),
        f"{peer}_per_second": 1 / statistics.median(theirs),
        "ratio": median_ratio(theirs, ours),
    }


def _recipe(*, depth: int, width: int, batch_size: int, tower: str) -> Recipe:
    return with_changes(
        preset("ant", depth=depth),
        task={"num_envs": 4},
        networks={"width": width},
        algorithm={"batch_size": batch_size},
        budget={"replay_rows": 64},
        system={"device": "cpu", "tower": tower},
    )


def _random_batch(batch_size: int) -> dict[str, Tensor]:
    generator = Generator().manual_seed(0)
    state, action, goal = (torch.randn(batch_size, n, generator=generator) for n in (29, 8, 2))
    return {"state": state, "action": action.tanh(), "goal": goal}


def env() -> list[dict[str, Any]]:
    """Env steps per second of `ant`, 512 envs; only ours include resets of fallen ants."""
    task, num_envs = make_task("ant"), 512
    actions = torch.rand(100, num_envs, 8, generator=Generator().manual_seed(0)) * 2 - 1
    start = task.sample_start(num_envs, Generator().manual_seed(0))
    bare = Batch(task.model, num_envs)
    bare.qpos[:], bare.qvel[:] = start.qpos_NQ.numpy(), start.qvel_NV.numpy()
    simulator = CpuSimulator(task.model, num_envs=num_envs, fields=task.fields)
    vector_env = TaskVectorEnv(
        task, simulator, episode_length=1000, generator=Generator().manual_seed(0)
    )
    controls = actions.double().numpy()

    def bare_steps() -> None:
        for control in controls:
            bare.ctrl[:] = control
            bare.step(nstep=task.substeps)

    def env_steps() -> None:
        for action in actions:
            vector_env.step(action)

    with torch_threads(1):
        ours, theirs = take_turns(env_steps, bare_steps, turns=TURNS)
    steps = num_envs * len(actions)
    return [
        {
            "scenario": "env",
            "task": "ant",
            "envs": num_envs,
            "ours_per_second": steps / statistics.median(ours),
            "bare_mujoco_batch_per_second": steps / statistics.median(theirs),
            "ratio": median_ratio(theirs, ours),
        }
    ]


def startup() -> list[dict[str, Any]]:
    """From the start of `torch-crl train` until the first update is logged, with a short prefill.

    Seconds, and seconds of CPU time, of which the libraries alone take some; medians of five.
    """
    prefill = "--unroll-length 2 --prefill-rows 2 --env-steps 100000 --env-steps-per-update 1024"
    # Depth 64 with the published sizes: 512 envs, width 256, batch 512.
    runs = {4: f"reacher {prefill}", 64: f"ant --depth 64 {prefill}"}
    libraries = statistics.median(_cpu_seconds_of_libraries() for _ in range(5))
    rows = []
    for depth, flags in runs.items():
        measured = [_until_first_update(flags.split()) for _ in range(5)]
        seconds, cpu_seconds = map(statistics.median, zip(*measured, strict=True))
        row = {"scenario": "startup", "task": flags.split()[0], "depth": depth, "seconds": seconds}
        rows.append(row | {"cpu_seconds": cpu_seconds, "libraries_cpu_seconds": libraries})
    return rows


def _until_first_update(flags: list[str]) -> tuple[float, float]:
    """Seconds, and CPU seconds, until the first update of such a run is logged."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*_TRAIN, *flags, "--run-dir", str(run_dir)],
            stderr=subprocess.DEVNULL,
            # Python keeps bytecode unless it is told not to.
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        )
        directory = RunDirectory(run_dir)
        while not any(record["updates"] for record in directory.read_metrics("train")):
            if process.poll() is not None:
                raise RuntimeError("the run ended before its first update")
            time.sleep(0.01)
        seconds = time.perf_counter() - begin
        process.kill()
        _, usage = _wait(process)
    return seconds, usage.ru_utime + usage.ru_stime


def _cpu_seconds_of_libraries() -> float:
    """CPU seconds of a process that imports what a run needs.

    It looks for garbage as seldom as a run does.
    """
    program = (
        "import gc, os\n"
        f"gc.set_threshold({THRESHOLD})\n"
        "import torch, mujoco.batch, gymnasium, tyro, torch.utils.tensorboard\n"
        "os._exit(0)"
    )
    status, usage = _wait(subprocess.Popen([sys.executable, "-c", program]))
    if status:
        raise RuntimeError("a library could not be imported")
    return usage.ru_utime + usage.ru_stime


def _wait(process: subprocess.Popen[Any]) -> tuple[int, resource.struct_rusage]:
    """The exit status of a process when it has ended, and what it has used."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage


def deep() -> list[dict[str, Any]]:
    """Three updates at depth 1024 in a process of their own, and its peak memory."""
    flags = (
        "--depth 1024 --batch-size 64 --num-envs 64 --num-eval-envs 2 --episode-length 20 "
        "--env-steps 512 --unroll-length 2 --prefill-rows 2 --replay-rows 100 "
        "--env-steps-per-update 85.4 --evaluations 1 --checkpoints 1 --device cpu"
    )
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*_TRAIN, "ant", *flags.split(), "--run-dir", str(run_dir)],
            stdout=subprocess.DEVNULL,
        )
        status, usage = _wait(process)
        if status:
            raise RuntimeError(f"the run ended with exit status {status}")
        seconds = time.perf_counter() - begin
        records = RunDirectory(run_dir).read_metrics("train")
    return [
        {
            "scenario": "deep",
            "depth": 1024,
            "batch": 64,
            "updates": records[-1]["updates"],
            "critic_loss": records[-1]["critic_loss"],
            "seconds_whole_run": seconds,
            # Linux gives ru_maxrss in KiB.
            "peak_gb": usage.ru_maxrss * 1024 / 1e9,
        }
    ]


SCENARIOS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "update": update,
    "compiled": compiled,
    "peers": peers,
    "env": env,
    "startup": startup,
    "deep": deep,
}


def main() -> None:
    """Run the chosen scenarios, print a line for each row, then everything as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], default=[])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    rows = []
    for name in options.scenarios or SCENARIOS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        for row in SCENARIOS[name]():
            rows.append(row)
            numbers = (
                f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
                for key, value in row.items()
            )
            print("  ".join(numbers))
    report(rows, options.out)


if __name__ == "__main__":
    main()
