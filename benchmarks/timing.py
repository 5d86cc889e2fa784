"""Measures how long a call takes: percentiles over many calls, after warming up."""

import itertools
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from torch_crl.system.timing import wall_clock as on_wall_clock


class Timing(NamedTuple):
    """Percentiles of the milliseconds of a call."""

    p20: float
    p50: float
    p80: float

    def row(self) -> dict[str, float]:
        """The percentiles as columns of a result."""
        return {f"ms_{name}": value for name, value in self._asdict().items()}


def time_calls(
    function: Callable[[], object],
    *,
    device: torch.device,
    seconds: float = 1.0,
    units: int = 1,
    warmup: int = 3,
    wall_clock: bool = False,
) -> Timing:
    """Percentiles of the time of a unit of work, over 5 to 1000 calls in about `seconds`.

    A call does `units` of the work. On CUDA the time is between events around each call, and calls
    follow each other without waiting, as they do in training. On the CPU, or for a function that
    waits for its own work (`wall_clock`), it is wall-clock time.
    """
    for _ in range(warmup):
        function()
    _wait(device)
    begin = time.perf_counter()
    function()
    _wait(device)
    one = time.perf_counter() - begin
    calls = int(min(max(seconds / max(one, 1e-9), 5), 1000))
    on_cuda = device.type == "cuda" and not wall_clock
    milliseconds = (_on_cuda if on_cuda else on_wall_clock)(function, calls)
    shares = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)
    samples = torch.tensor(milliseconds, dtype=torch.float64) / units
    return Timing(*samples.quantile(shares).tolist())


def _on_cuda(function: Callable[[], object], calls: int) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(calls + 1)]
    events[0].record()
    for event in events[1:]:
        function()
        event.record()
    torch.cuda.synchronize()
    return [first.elapsed_time(second) for first, second in itertools.pairwise(events)]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def take_turns(
    *contenders: Callable[[], object],
    turns: int,
    repeats: int = 1,
    begin: Callable[[], object] = lambda: None,
) -> list[list[float]]:
    """Wall-clock seconds per call of each contender in `turns` turns, after one to warm up.

    Contenders alternate, so that a busy machine slows all of them. `begin` is called before every
    turn and is not timed.
    """
    seconds: list[list[float]] = [[] for _ in contenders]
    for turn in range(turns + 1):
        begin()
        for contender, log in zip(contenders, seconds, strict=True):
            start = time.perf_counter()
            for _ in range(repeats):
                contender()
            if turn:
                log.append((time.perf_counter() - start) / repeats)
    return seconds


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the turns' ratios."""
    return statistics.median(n / d for n, d in zip(numerators, denominators, strict=True))
