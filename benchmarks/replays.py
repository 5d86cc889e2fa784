"""Where the time of one update goes on a GPU: its kernels by time, from torch's profiler."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch

from torch_crl.benchmarks.scenario import Row

REPLAYS = 20
_SHOWN = 12
_TOWERS = "tower"
"""Part of the names of the tower's kernels."""


class Kernel(NamedTuple):
    """One launch of a kernel, or a copy, on the device."""

    name: str
    microseconds: float


def profiled(update: Callable[[], object]) -> list[Row]:
    """Rows of `kernel_table` for an update that is captured already, or captures itself."""
    # The warm-up calls of a graph, its capture, and a few replays.
    for _ in range(10):
        update()
    torch.cuda.synchronize()
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(REPLAYS):
            update()
        torch.cuda.synchronize()
    on_device = (
        Kernel(event.name, event.time_range.elapsed_us())
        for event in profiler.events()
        if event.device_type.name == "CUDA"
    )
    return kernel_table(on_device, replays=REPLAYS)


def kernel_table(kernels: Iterable[Kernel], *, replays: int) -> list[Row]:
    """A row about all kernels of a replay, and one for each that takes the most time.

    `us` is the time of a replay that these launches take, `launches` their number in a replay.
    """
    times: dict[str, list[float]] = defaultdict(list)
    for kernel in kernels:
        times[kernel.name].append(kernel.microseconds)
    launches = sum(map(len, times.values())) / replays
    total = sum(map(sum, times.values())) / replays
    if not launches:
        return [{"part": "all", "launches": 0.0}]
    of_towers = sum(sum(each) for name, each in times.items() if _TOWERS in name) / replays
    rows: list[Row] = [
        {"part": "all", "launches": launches, "us": total, "us_per_launch": total / launches}
        | {"share_of_towers": of_towers / total}
    ]
    longest = sorted(times.items(), key=lambda item: -sum(item[1]))[:_SHOWN]
    for name, each in longest:
        us = sum(each) / replays
        row: Row = {"part": name[:60], "launches": len(each) / replays, "us": us}
        rows.append(row | {"share": us / total})
    return rows
