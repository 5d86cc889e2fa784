"""All tests and benchmarks on a GPU: `python -m torch_crl.benchmarks.gpu --out DIRECTORY`.

The parts run in this order, each in a process of its own, so that a crash of one leaves the others
alone:

tests        tests that need CUDA, and every kernel against fp64
kernels      passes of the towers with every tile size, LayerNorm, scores of all pairs
update       our update by depth
peers        eager and compiled PyTorch, and JAX if it is installed
variants     precisions, implementations, batch sizes, recomputed activations
act          the policy's actions
physics      collections of ant and humanoid on both simulators, training with its updates
memory       updates at the largest depths
learning     the default task, from start to evaluation

`--only` chooses parts; a part for which `--minutes` leaves no time is reported as skipped. Writes
gpu.json, gpu.png and a log for each part, and prints a line for every row when its part has ended.
The last line of standard output is the JSON.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch_crl.benchmarks.picture import save_time_by_depth
from torch_crl.benchmarks.report import report
from torch_crl.benchmarks.scenarios import Scenario, run_scenario
from torch_crl.system.machine import machine

ROOT = Path(__file__).resolve().parents[1]
DEPTHS = (4, 16, 64, 256, 1024)
TIMED_OUT = 124
# Time limits of parts that compile a lot, so that the later ones have time left.
MOST_SECONDS = {"tests": 240.0, "peers": 180.0}
Row = dict[str, Any]


def _update(**sizes: Any) -> Scenario:
    return Scenario(kind="update", seconds=1.0, **sizes)


def scenarios() -> dict[str, list[Scenario]]:
    """Name of a part to the scenarios that it measures."""
    peers = [
        *(Scenario(kind="update", depth=d, implementation="eager_torch") for d in (4, 16, 64)),
        *(Scenario(kind="update", depth=d, implementation="compiled_torch") for d in (4, 16)),
    ]
    if importlib.util.find_spec("jax"):
        peers += [_update(depth=depth, implementation="jax") for depth in DEPTHS]
        peers += [_update(depth=64, implementation="jax", precision="bf16")]
    return {
        "kernels": [Scenario(kind="kernels", depth=64, seconds=0.1)],
        "update": [
            *(_update(depth=depth) for depth in DEPTHS),
            *(Scenario(kind="floor", depth=depth, seconds=0.2) for depth in DEPTHS),
        ],
        "peers": peers,
        "variants": [
            *(_update(depth=64, batch=batch) for batch in (256, 1024, 2048)),
            _update(depth=64, precision="bf16"),
            _update(depth=64, cuda_graph="off"),
            _update(depth=64, tower="norm_act"),
            _update(depth=64, tower="norm_act", precision="tf32"),
            _update(depth=64, tower="reference", precision="fp32"),
            _update(depth=64, width=128),
            _update(depth=64, width=512),
            _update(depth=256, tower="norm_act"),
            _update(depth=1024, recompute=64),
        ],
        "act": [
            Scenario(kind="act", depth=4),
            Scenario(kind="act", depth=64),
            Scenario(kind="env"),
        ],
        "physics": [
            *(
                Scenario(kind="collect", task=task, envs=envs, simulator=simulator)
                for task in ("ant", "humanoid")
                for simulator, sizes in (("cpu", (512,)), ("warp", (512, 4096, 8192)))
                for envs in sizes
                if simulator == "cpu" or importlib.util.find_spec("mujoco_warp")
            ),
            Scenario(kind="end_to_end", depth=16),
            Scenario(kind="end_to_end", depth=16, overlap="on"),
            *(
                [Scenario(kind="end_to_end", depth=16, simulator="warp")]
                if importlib.util.find_spec("mujoco_warp")
                else []
            ),
        ],
        "memory": [Scenario(kind="update", depth=depth, seconds=0.5) for depth in (4096, 8192)],
    }


PARTS = ("tests", *scenarios(), "learning")


def _status(command: list[str], seconds: float, **options: Any) -> int:
    """The exit status of a command, or TIMED_OUT."""
    try:
        return subprocess.run(command, timeout=seconds, check=False, **options).returncode
    except subprocess.TimeoutExpired:
        return TIMED_OUT


def _measure(part: str, folder: Path, seconds: float) -> list[Row]:
    """Rows of one part from a process of its own; if it fails, the rows written so far count."""
    command = [sys.executable, "-m", "torch_crl.benchmarks.gpu", "--worker", part]
    output, log = folder / f"{part}.jsonl", folder / f"{part}.log"
    with output.open("w") as rows_file, log.open("w") as errors:
        status = _status(command, seconds, stdout=rows_file, stderr=errors)
    # A process that was stopped may leave half a line, which follows the last newline.
    # Compilers may print other lines.
    lines = [line for line in output.read_text().split("\n")[:-1] if line.startswith("{")]
    rows: list[Row] = [json.loads(line) for line in lines]
    print(*map(_short, rows), sep="\n", flush=True)
    if status:
        tail = "\n".join(log.read_text().splitlines()[-15:])
        reason = f"stopped after {seconds:.0f} s" if status == TIMED_OUT else f"status {status}"
        print(f"{part}: {reason}\n{tail}", flush=True)
        rows.append({"kind": "failure", "part": part, "status": status, "tail": tail})
    return rows


def _run_command(name: str, command: list[str], folder: Path, seconds: float) -> list[Row]:
    begin = time.monotonic()
    with (folder / f"{name}.log").open("w") as log:
        status = _status(command, seconds, stdout=log, stderr=subprocess.STDOUT, cwd=ROOT)
    lines = (folder / f"{name}.log").read_text().splitlines()
    print(f"{name}: exit status {status}", *lines[-12:], sep="\n  ", flush=True)
    spent = time.monotonic() - begin
    return [{"kind": name, "status": status, "seconds": spent, "last_line": lines[-1:]}]


def _tests(folder: Path, seconds: float) -> list[Row]:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    # A host may have newer libraries than those that are tested; their deprecations are no failure.
    command += ["-W", "default::DeprecationWarning"]
    if importlib.util.find_spec("xdist"):
        # Most of the time goes into compiling. pytest-benchmark objects to several processes.
        command += ["-n", "6", "-p", "no:benchmark"]
    command += [
        "tests/test_gpu.py",
        "tests/system/test_cuda_graph.py",
        "tests/kernels",
        "-k",
        "not compile",
    ]
    return _run_command("tests", command, folder, seconds)


def _learning(folder: Path, seconds: float) -> list[Row]:
    run_dir = folder / "reacher"
    command = [sys.executable, "-m", "torch_crl.cli.main", "train", "reacher"]
    command += ["--device", "cuda", "--run-dir", str(run_dir), "--overwrite"]
    rows = _run_command("learning", command, folder, seconds)
    from torch_crl.runs.directory import RunDirectory

    evaluations = RunDirectory(run_dir).read_metrics("evaluation")
    return [rows[0] | (evaluations[-1] if evaluations else {}) | {"kind": "learning"}]


def _work(part: str) -> None:
    """The worker process of a part: prints a JSON line for each row."""
    for scenario in scenarios()[part]:
        try:
            rows = run_scenario(scenario, device="cuda")
        except Exception as error:
            # An error of a compiler or a driver is recorded for this scenario; the others go on.
            rows = [asdict(scenario) | {"error": f"{type(error).__name__}: {error}"[:500]}]
        for row in rows:
            print(json.dumps(row), flush=True)


def _short(row: Row) -> str:
    names: tuple[str, ...] = (
        "kind",
        "part",
        "task",
        "simulator",
        "overlap",
        "envs",
        "implementation",
        "depth",
        "batch",
        "width",
        "precision",
        "tower",
    )
    names += ("cuda_graph", "recompute", "ms_p50", "us_per_layer", "peak_gb", "error")
    names += ("env_steps_per_second", "out_of_memory", "compile_seconds")
    cells = ((name, row[name]) for name in names if name in row and row[name] not in ("auto", 0))
    return "  ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in cells)


def main() -> int:
    """Run the parts and write their results; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="directory for the results")
    parser.add_argument("--worker", choices=list(scenarios()), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.worker)
        return 0
    # Tests and training run in the repository, whatever the current directory is.
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * options.minutes
    rows: list[Row] = []
    for part in options.only:
        left = end - time.monotonic()
        if left < 15:
            print(f"{part}: skipped, the time is used up", flush=True)
            rows.append({"kind": "skipped", "part": part})
            continue
        left = min(left, MOST_SECONDS.get(part, left))
        print(f"--- {part}, up to {left:.0f} s", flush=True)
        special = {"tests": _tests, "learning": _learning}.get(part)
        rows += special(options.out, left) if special else _measure(part, options.out, left)
        # Written after every part, since the machine may be gone before the next.
        (options.out / "partial.json").write_text(json.dumps(rows))
    usual = {"batch": 512, "width": 256, "tower": "auto", "cuda_graph": "auto", "recompute": 0}
    picture = [
        row
        for row in rows
        if row["kind"] in ("update", "floor") and usual.items() <= row.items() and "ms_p50" in row
    ]
    if picture:
        save_time_by_depth(picture, options.out / "gpu.png", machine=machine()["device"])
    report(rows, options.out / "gpu.json")
    failed = any(row.get("status") or "error" in row for row in rows)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
