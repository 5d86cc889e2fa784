"""`torch-crl bench`: measures the speed of this machine, and of plain PyTorch beside it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Table

from torch_crl.cli.flags import read_flags
from torch_crl.cli.progress import Stages
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, Depth
from torch_crl.system.terminal import console, print_line

_UNITS = {
    "tflop_per_second": "TFLOP/s",
    "actions_per_second": "actions/s",
    "env_steps_per_second": "steps/s",
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Time gradient updates, actions and env steps, and the updates in plain PyTorch as well."""

    __pydantic_config__ = STRICT

    device: str = "auto"
    """Device to measure: `auto`, `cpu`, `cuda`, or a certain GPU such as `cuda:1`."""
    depths: Annotated[tuple[Depth, ...], tyro.conf.arg(metavar="DEPTH ...")] = (4, 16, 64)
    """Depths to measure, each for all three networks (actor and two encoders); multiples of 4."""
    batch: Count = 256
    """Batch size of the updates."""
    policies: bool = False
    """Time single actions instead, on one core: as `load_policy` gives them, and in every runtime
    that `torch-crl export` writes for and this machine has."""
    out: Path = Path("bench")
    """Directory that bench.json and bench.png are written to, or policies.json and policies.png."""


def main(arguments: list[str]) -> int:
    """Measure, print a table, write JSON and a picture. Returns the exit status."""
    options = read_flags(Options, arguments, command="bench")
    device, out = options.device, options.out
    wrong = [depth for depth in options.depths if depth <= 0 or depth % 4]
    if wrong or not options.depths:
        raise UsageError(f"--depths are positive multiples of 4, got {wrong or 'none'}")
    # Imported here, so that --help stays quick.
    from torch_crl.system.devices import device_problems, resolve_device

    if problems := device_problems(device):
        raise UsageError(problems[0])
    if options.policies:
        return _policies(options)
    from torch_crl.benchmarks.picture import save_time_by_depth
    from torch_crl.benchmarks.report import write_report
    from torch_crl.benchmarks.scenarios import quick, run_scenario
    from torch_crl.system.machine import machine

    out.mkdir(parents=True, exist_ok=True)
    for note in _notes(resolve_device(device).type):
        print_line(f"note: {note}", stderr=True)
    scenarios = quick(depths=options.depths, batch=options.batch)
    rows: list[dict[str, Any]] = []
    with Stages() as stages:
        for number, scenario in enumerate(scenarios):
            what = f"{scenario.kind}, depth {scenario.depth}, {scenario.implementation}"
            stages.begin(what, len(scenarios))
            stages.done(number)
            rows += run_scenario(scenario, device=device)
    console().print(_table(rows))
    write_report(rows, out / "bench.json")
    save_time_by_depth(rows, out / "bench.png", machine=machine()["device"])
    print_line(f"written: {out / 'bench.json'}, {out / 'bench.png'}", stderr=True)
    return 0


def _notes(device: str) -> Iterator[str]:
    """What makes the numbers of this machine worse than they could be."""
    from torch_crl.kernels.blas import leaves_avx512_unused
    from torch_crl.system.machine import busy

    yield from busy()
    if device == "cpu" and leaves_avx512_unused():
        yield (
            "plain PyTorch leaves AVX-512 unused on this AMD processor; --tower numba uses it, and "
            "docs/performance.md says how to change that"
        )


def _policies(options: Options) -> int:
    from torch_crl.benchmarks.policies import policy_rows, runtimes, save_latency_by_depth
    from torch_crl.benchmarks.report import write_report
    from torch_crl.system.machine import machine

    options.out.mkdir(parents=True, exist_ok=True)
    json_file, picture = (options.out / f"policies.{kind}" for kind in ("json", "png"))
    table = Table(title="one action on one core", title_justify="left", box=SIMPLE_HEAD)
    for heading in ("depth", "by", "ms, p50", "p99", "of reading"):
        table.add_column(heading, justify="left" if heading == "by" else "right")
    rows = []
    with Stages() as stages:
        stages.begin("actions", len(options.depths) * len(runtimes()))
        for row in policy_rows(options.depths):
            rows.append(row)
            cells = (f"{row[key]:.3g}" for key in ("ms_p50", "ms_p99"))
            share = f"{row['ms_p50'] / row['floor_ms']:.1f} x"
            table.add_row(str(row["depth"]), row["by"], *cells, share)
            stages.advance()
    console().print(table)
    load = max(row["load_average"] for row in rows)
    print_line(
        "the last column: times as long as reading all weights from memory takes, which a cache "
        f"may beat; load average {load:.1f}"
    )
    write_report(rows, json_file)
    save_latency_by_depth(rows, picture, machine=machine()["device"])
    print_line(f"written: {json_file}, {picture}", stderr=True)
    return 0


def _table(rows: list[dict[str, Any]]) -> Table:
    from torch_crl.study.report import shown

    table = Table(
        title="median time of a call, 20th to 80th percentile; ratio to eager PyTorch",
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ("what", "depth", "by", "ms", "spread", "rate", "ratio"):
        left = heading in ("what", "by")
        table.add_column(heading, justify="left" if left else "right", no_wrap=heading != "by")
    eager = {
        row["depth"]: row["ms_p50"]
        for row in rows
        if row["kind"] == "update" and row["implementation"] == "eager_torch"
    }
    for row in rows:
        ratio = ""
        if row["kind"] == "update" and row["implementation"] == "ours":
            ratio = f"{eager[row['depth']] / row['ms_p50']:.2f} x"
        rate = next(
            f"{row[key]:,.{0 if row[key] > 100 else 3}f} {unit}"
            for key, unit in _UNITS.items()
            if key in row
        )
        spread = f"{shown(row['ms_p20'])} - {shown(row['ms_p80'])}"
        by = row["implementation"]
        if row["kind"] == "floor":
            # Computed from rates, so it has no spread.
            spread, by = "", "matmuls and Adam alone"
        cells = (row["kind"], str(row["depth"]), by, shown(row["ms_p50"]))
        table.add_row(*cells, spread, rate, ratio)
    return table
