"""Kill a run at every call that changes files, resume it, and demand what an undisturbed run has.

python -m tests.campaigns.kill_points [--every N]
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.campaigns.runs import bring_to_an_end, difference, in_child, outcome, try_every_point
from torch_crl.system import checkpoint

_CHANGES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link"}


def kill_at(point: int, folder: Path, *, count: Callable[[int], object] | None = None) -> None:
    """Make this process kill itself at its `point`-th call that changes files in the folder.

    `count` is told the number of each call instead.
    """
    calls = 0

    def pass_by(*_: object) -> None:
        nonlocal calls
        calls += 1
        if count is not None:
            count(calls)
        elif calls == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _CHANGES and str(arguments[0]).startswith(str(folder)):
            writes = event != "open" or set(str(arguments[1])) & set("wax+") or arguments[2] & 3
            if writes:
                pass_by()

    def synced(descriptor: int) -> None:
        pass_by()
        fsync(descriptor)

    def saved_in_parts(tensors: Any, path: Path) -> None:
        save_file(tensors, path)
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        pass_by()
        path.write_bytes(whole)

    fsync, save_file = os.fsync, checkpoint.save_file
    os.fsync = synced
    checkpoint.save_file = saved_in_parts  # type: ignore[assignment]
    sys.addaudithook(hook)


def count_points(folder: Path) -> tuple[int, dict[str, Any]]:
    """How many such calls a whole run makes, and what it leaves."""
    total = folder / "total"

    def work() -> None:
        with total.open("w") as file:
            os.dup2(file.fileno(), 9)
        run_dir = folder / "whole"
        kill_at(0, run_dir, count=lambda calls: os.pwrite(9, f"{calls:9d}".encode(), 0))
        bring_to_an_end(run_dir)

    assert in_child(work) == 0
    return int(total.read_text()), outcome(folder / "whole")


def lost_at(point: int, folder: Path, whole: dict[str, Any]) -> str:
    """What a run that is killed at this point and resumed has lost; empty if nothing."""
    run_dir = folder / f"killed_{point}"

    def die() -> None:
        kill_at(point, folder / f"killed_{point}")
        bring_to_an_end(run_dir)

    status = in_child(die)
    if status != -signal.SIGKILL:
        return f"the run ended with status {status} before it was killed"
    status = in_child(lambda: bring_to_an_end(run_dir))
    return difference(whole, outcome(run_dir)) if status == 0 else f"resume ended with {status}"


if __name__ == "__main__":
    try_every_point(count_points, lost_at, what="killed at call")
