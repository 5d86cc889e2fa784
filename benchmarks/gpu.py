"""All tests and benchmarks on a GPU: `python -m torch_crl.benchmarks.gpu --out DIRECTORY`.

The parts run in this order, each in a process of its own, so that a crash of one leaves the others
alone. They make three calls of at most eight minutes, for hosts that are lent by the minute; the
first has what one would miss most:

--call ours
    tests      tests that need CUDA, and every kernel against fp64, the towers first
    update     our update by depth, and the floor of this card
    profile    the kernels of one replay by time
    counters   what Nsight Compute counts in the kernels of an update, if ncu is installed
    kernels    passes of the towers with every tile size, LayerNorm, scores of all pairs
--call peers
    update     our update again, since another card may be lent
    jax        the published update in JAX, the deepest first
    torch      eager and compiled PyTorch
    baselines  updates of SAC and PPO with towers of the same depths
--call rest
    variants   precisions, implementations, batch sizes, recomputed activations
    objectives updates of the other objectives
    act        the policy's actions
    memory     updates at the largest depths
    learning   the default task, from start to evaluation
    physics    collections of ant and humanoid on both simulators, training with its updates

Without `--call` all parts run. `--only` chooses parts; a part for which `--minutes` leaves no time
is reported as skipped. Writes three files: gpu.json, gpu.png and gpu.tar.gz, which holds the logs
and the run of `learning`. They are written again after every part, since the machine may be gone
before the next. The table of all rows comes last.
"""

import argparse
import csv
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch_crl.benchmarks.clocks import Clocks
from torch_crl.benchmarks.gpu_scenarios import scenarios
from torch_crl.benchmarks.picture import save_time_by_depth
from torch_crl.benchmarks.report import write_report
from torch_crl.benchmarks.scenario import USUAL, Scenario, unusual
from torch_crl.benchmarks.scenarios import run_scenario
from torch_crl.runs.directory import RunDirectory
from torch_crl.system.machine import machine

ROOT = Path(__file__).resolve().parents[1]
CALLS = {
    "ours": ("tests", "update", "profile", "counters", "kernels"),
    "peers": ("update", "jax", "torch", "baselines"),
    "rest": ("variants", "objectives", "act", "memory", "learning", "physics"),
}
PARTS = tuple(dict.fromkeys(part for call in CALLS.values() for part in call))
TIMED_OUT = 124
# Time limits of parts that compile a lot, so that the later ones have time left.
MOST_SECONDS = {"tests": 240.0, "jax": 200.0, "torch": 120.0, "counters": 60.0}
MOST_TEST_PROCESSES = 12
"""Each has a context of CUDA, of half a gigabyte, and compiles on a core."""
LONGEST_TABLE = 11_000
"""Characters; hosts that are lent by the minute may show the end of the output only."""
Row = dict[str, Any]

COUNTED = {
    "gpu__time_duration.sum": "ns",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_percent",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "memory_percent",
    "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed": (
        "shared_memory_percent"
    ),
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor_percent",
}
"""Metric of Nsight Compute to its name in a row."""


def _status(command: list[str], seconds: float, **options: Any) -> int:
    """The exit status of a command, or TIMED_OUT."""
    try:
        return subprocess.run(command, timeout=seconds, check=False, **options).returncode
    except subprocess.TimeoutExpired:
        return TIMED_OUT


def _run_command(
    name: str, command: list[str], folder: Path, seconds: float
) -> tuple[Row, list[str]]:
    """A row with the status, and the lines of the log."""
    begin, log = time.monotonic(), folder / f"{name}.log"
    with log.open("w") as output:
        status = _status(command, seconds, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
    lines = log.read_text(errors="replace").splitlines()
    row: Row = {"kind": name, "status": status, "seconds": time.monotonic() - begin}
    return row | ({"last_line": lines[-1][:300]} if lines else {}), lines


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
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        rows.append({"kind": "failure", "part": part, "status": status, "tail": tail[-1500:]})
    return rows


def _tests(folder: Path, seconds: float) -> list[Row]:
    # Verbose, so that the log names every failure even of a process that was stopped.
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider"]
    # A host may have newer libraries than those that are tested; their deprecations are no failure.
    command += ["-W", "default::DeprecationWarning"]
    if importlib.util.find_spec("xdist"):
        # Most of the time goes into compiling. pytest-benchmark objects to several processes.
        command += ["-n", str(min(MOST_TEST_PROCESSES, os.cpu_count() or 1)), "-p", "no:benchmark"]
    command += ["tests/kernels/test_tower.py", "tests/test_gpu.py"]
    command += ["tests/system/test_cuda_graph.py", "tests/kernels", "-k", "not compile"]
    # Kernels of the CPU, which take their time to compile.
    command += ["--ignore", "tests/kernels/test_cpu.py"]
    row, lines = _run_command("tests", command, folder, seconds)
    return [row | test_results(lines)]


_OUTCOME = r"\b(?:PASSED|FAILED|ERROR|SKIPPED)\b"


def test_results(lines: Iterable[str]) -> Row:
    """Numbers of tests that passed and were skipped, and the names of those that failed."""
    names: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        outcome = re.search(_OUTCOME, line)
        test = re.search(rf"tests/\S+::.+?(?=\s+{_OUTCOME}| - |$)", line)
        if outcome and test:
            names[outcome[0]].add(test[0])
    failed = sorted(names["FAILED"] | names["ERROR"])
    return {"passed": len(names["PASSED"]), "skipped": len(names["SKIPPED"]), "failed": failed}


# pytest would take it for a test where a test module imports it.
test_results.__test__ = False  # type: ignore[attr-defined]


def _counters(folder: Path, seconds: float) -> list[Row]:
    if shutil.which("ncu") is None:
        return [{"kind": "skipped", "part": "counters", "reason": "ncu is not installed"}]
    command = ["ncu", "--clock-control", "none", "--csv", "--metrics", ",".join(COUNTED)]
    command += ["--kernel-name", "regex:tower|pairs|infonce", "--launch-skip", "20"]
    command += ["--launch-count", "20"]
    command += [sys.executable, "-m", "torch_crl.benchmarks.gpu", "--worker", "counters"]
    row, lines = _run_command("counters", command, folder, seconds)
    return [row, *counted(lines)]


def counted(lines: Iterable[str]) -> list[Row]:
    """A row for each kernel of ncu's CSV, with the mean of every metric over its launches."""
    table = [line for line in lines if line.startswith('"')]
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cells in csv.DictReader(table):
        name = COUNTED.get(cells.get("Metric Name", ""))
        try:
            value = float(cells["Metric Value"].replace(",", ""))
        # A counter that this card does not have is "n/a".
        except (KeyError, ValueError):
            continue
        if name:
            values[cells["Kernel Name"][:60]][name].append(value)
    return [
        {"kind": "counters", "part": kernel, "launches": len(next(iter(metrics.values())))}
        | {name: sum(each) / len(each) for name, each in metrics.items()}
        for kernel, metrics in values.items()
    ]


def _learning(folder: Path, seconds: float) -> list[Row]:
    run_dir = folder / "reacher"
    command = [sys.executable, "-m", "torch_crl.cli.main", "train", "reacher"]
    command += ["--device", "cuda", "--run-dir", str(run_dir), "--overwrite"]
    row, _ = _run_command("learning", command, folder, seconds)
    if not row["status"]:
        # It names a folder that is gone.
        row.pop("last_line", None)
    evaluations = RunDirectory(run_dir).read_metrics("evaluation")
    return [row | (evaluations[-1] if evaluations else {}) | {"kind": "learning"}]


SPECIAL = {"tests": _tests, "counters": _counters, "learning": _learning}


def _work(part: str) -> None:
    """The worker process of a part: prints a JSON line for each row."""
    # Under ncu every launch is measured many times, so a few updates without a graph are enough.
    few = [Scenario(kind="update", depth=4, cuda_graph="off", seconds=0.01)]
    for scenario in few if part == "counters" else scenarios()[part]:
        with Clocks() as clocks:
            try:
                rows = run_scenario(scenario, device="cuda")
            except Exception as error:
                # An error of a compiler or a driver is recorded for this scenario; others go on.
                rows = [asdict(scenario) | {"error": f"{type(error).__name__}: {error}"[:500]}]
        for row in rows:
            print(json.dumps(row | clocks.row), flush=True)


_SHOWN = (
    *("kind", "part", "status", "passed", "failed", "task", "block", "objective", "simulator"),
    *("overlap", "envs"),
    *("implementation", "depth", "batch", "width", "precision", "tower", "cuda_graph", "recompute"),
    *("ms_p50", "us_per_layer", "peak_gb", "launches", "us", "us_per_launch", "share"),
    *("share_of_towers", *COUNTED.values(), "sm_mhz", "watts", "env_steps_per_second"),
    *("time_at_goal_share", "out_of_memory", "compile_seconds", "reason", "error", "tail"),
)


def _short(row: Row) -> str:
    cells = [
        (name, row[name])
        for name in _SHOWN
        if name in row and row[name] not in ((USUAL | {"status": 0}).get(name), [])
    ]
    return "  ".join(f"{n}={v:.4g}" if isinstance(v, float) else f"{n}={v}" for n, v in cells)


def _failed(row: Row) -> bool:
    return bool(row.get("status") or row.get("failed") or "error" in row)


def table(rows: list[Row], *, longest: int = LONGEST_TABLE) -> str:
    """A line for each row, failures first; what is too long for the limit is left out and said."""
    lines = [_short(row)[:2000] for row in sorted(rows, key=lambda row: not _failed(row))]
    shown, length = 0, 0
    while shown < len(lines) and length + len(lines[shown]) + 1 <= longest - 60:
        length += len(lines[shown]) + 1
        shown += 1
    left = [f"and {len(lines) - shown} more rows in gpu.json"] if shown < len(lines) else []
    return "\n".join([*lines[:shown], *left])


def _save(rows: list[Row], work: Path, out: Path) -> None:
    """Write the three files."""
    write_report(rows, out / "gpu.json")
    picture = [
        row
        for row in rows
        if row["kind"] in ("update", "floor") and "ms_p50" in row and not unusual(row)
    ]
    if any(row["kind"] == "update" for row in picture):
        save_time_by_depth(picture, out / "gpu.png", machine=machine()["device"])
    with tarfile.open(out / "gpu.tar.gz", "w:gz") as archive:
        archive.add(work, arcname="gpu")


def main() -> int:
    """Run the parts and write their results; the exit status is 1 if one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--call", choices=CALLS, help="the parts of one of three calls")
    parts.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="directory for the results")
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options.worker)
        return 0
    # Tests and training run in the repository, whatever the current directory is.
    out = options.out.resolve()
    end = time.monotonic() + 60 * options.minutes
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in CALLS[options.call] if options.call else options.only:
            left = min(end - time.monotonic(), MOST_SECONDS.get(part, 600.0))
            if left < 15:
                rows.append({"kind": "skipped", "part": part, "reason": "the time is used up"})
                continue
            print(f"--- {part}, up to {left:.0f} s", flush=True)
            special = SPECIAL.get(part)
            rows += special(work, left) if special else _measure(part, work, left)
            _save(rows, work, out)
    print(table(rows), flush=True)
    return int(any(map(_failed, rows)))


if __name__ == "__main__":
    sys.exit(main())
