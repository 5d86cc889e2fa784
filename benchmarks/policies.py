"""How long one action of a policy takes, by depth and runtime, on one core."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.policy import Policy
from torch_crl.agent.sizes import TowerSizes
from torch_crl.benchmarks import policy_calls
from torch_crl.benchmarks.picture import save_by_depth
from torch_crl.benchmarks.scenario import Row
from torch_crl.deploy.checks import compiler
from torch_crl.deploy.export import export
from torch_crl.envs.registry import task_spec
from torch_crl.runs.plots import load_matplotlib
from torch_crl.runs.policies import save_policy

TASK, WIDTH = "ant", 256
# Without -P, files in the working directory would be imported in place of libraries.
_PYTHON = (sys.executable, "-P")
_ONE_CORE = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_NAMES = {"torch": "load_policy", "numpy": "NumPy", "onnx": "ONNX Runtime", "c": "C"}


def runtimes() -> list[str]:
    """Those that this machine has."""
    others = [("onnx", find_spec("onnxruntime")), ("c", compiler())]
    return ["torch", "numpy", *(name for name, found in others if found)]


def policy_rows(depths: Sequence[int], *, seconds: float = 1.0) -> Iterator[Row]:
    """A row for each depth and runtime: p50 and p99 of the milliseconds of a call at batch 1.

    Each runtime has a process of its own with one thread. `floor` is the time in which one core
    reads all weights from memory.
    """
    bandwidth = _bytes_per_second()
    for depth in depths:
        policy = _policy(depth)
        size = sum(4 * parameter.numel() for parameter in policy.actor.parameters())
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            save_policy(policy, folder / "torch", {})
            for runtime in runtimes():
                if runtime != "torch":
                    export(policy, TASK, runtime, folder / runtime)  # type: ignore[arg-type]
                milliseconds = np.array(_calls(runtime, folder / runtime, seconds)) / 1e6
                yield {
                    "kind": "policy",
                    "depth": depth,
                    "width": WIDTH,
                    "by": _NAMES[runtime],
                    "ms_p50": float(np.percentile(milliseconds, 50)),
                    "ms_p99": float(np.percentile(milliseconds, 99)),
                    "calls": len(milliseconds),
                    "floor_ms": 1e3 * size / bandwidth,
                    "load_average": os.getloadavg()[0],
                }


def _policy(depth: int) -> Policy:
    spec = task_spec(TASK)
    sizes = TowerSizes(
        input_size=spec.state_size + spec.goal_size,
        output_size=2 * spec.action_size,
        width=WIDTH,
        depth=depth,
    )
    actor = ResidualTower(sizes, generator=torch.Generator().manual_seed(0))
    return Policy(actor, state_size=spec.state_size, goal_size=spec.goal_size)


def _calls(runtime: str, folder: Path, seconds: float) -> list[int]:
    """Nanoseconds of each call."""
    if runtime != "c":
        program = [*_PYTHON, "-m", policy_calls.__name__]
        return [int(x) for x in json.loads(_run([*program, runtime, str(folder), str(seconds)]))]
    binary = str(folder / "policy")
    flags = ["-O3", "-march=native", "-DPOLICY_MAIN"]
    _run([str(compiler()), *flags, str(folder / "policy.c"), "-lm", "-o", binary])
    first = [int(x) for x in _run([binary, str(folder / "policy.bin"), "20"]).split()[2:]]
    calls = int(min(max(1e9 * seconds / min(first), 20), 20_000))
    # The first calls read the file.
    return [
        int(x) for x in _run([binary, str(folder / "policy.bin"), str(calls + 10)]).split()[12:]
    ]


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command, env=os.environ | _ONE_CORE, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def _bytes_per_second() -> float:
    """What one core reads from memory, the best of five times.

    Small networks stay in a cache and can be faster than this.
    """
    read = "import numpy, time; x = numpy.ones(2**27, numpy.float32); taken = []\n"
    read += "for _ in range(5):\n begin = time.perf_counter(); numpy.dot(x, x)\n"
    read += " taken.append(time.perf_counter() - begin)\nprint(x.nbytes / min(taken))"
    return float(_run([*_PYTHON, "-c", read]))


def save_latency_by_depth(rows: list[dict[str, Any]], path: Path, *, machine: str) -> None:
    """Log-log PNG: a line for each runtime from p50, shaded up to p99, and the floor."""
    load_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["by"] for row in rows):
        points = [row for row in rows if row["by"] == name]
        depths, middle, high = ([row[k] for row in points] for k in ("depth", "ms_p50", "ms_p99"))
        (line,) = axes.plot(depths, middle, marker="o", label=name)
        axes.fill_between(depths, middle, high, color=line.get_color(), alpha=0.2)
    floor = sorted({row["depth"]: row["floor_ms"] for row in rows}.items())
    label = "all weights read from memory"
    axes.plot(*zip(*floor, strict=True), ":", color="grey", label=label)
    axes.set(xlabel="depth", title=f"width {WIDTH}, {machine}")
    axes.set(ylabel="time of one action (ms), p50 to p99")
    save_by_depth(figure, [depth for depth, _ in floor], path)
