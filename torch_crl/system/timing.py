"""How long a call takes, by the clock on the wall."""

import time
from collections.abc import Callable


def wall_clock(function: Callable[[], object], calls: int) -> list[float]:
    """The milliseconds of each of so many calls, one after the other."""
    milliseconds = []
    for _ in range(calls):
        begin = time.perf_counter()
        function()
        milliseconds.append(1e3 * (time.perf_counter() - begin))
    return milliseconds
