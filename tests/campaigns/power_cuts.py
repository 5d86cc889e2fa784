"""Cut the power after every fsync of a run, and demand that what the disk then holds can resume.

    python -m tests.campaigns.power_cuts [--every N]

The disk is the worst that POSIX allows: a file holds what it held at its last fsync, and a folder
the names that it had at its own. Everything else is gone.
"""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.campaigns.runs import bring_to_an_end, difference, in_child, outcome, try_every_point


@dataclass
class Disk:
    """What is safe, by the identity of each file and folder."""

    contents: dict[int, bytes] = field(default_factory=dict)
    """Of files."""
    names: dict[int, dict[str, tuple[int, bool]]] = field(default_factory=dict)
    """Of folders: each name with the identity of what it names, and whether that is a folder."""
    syncs: int = 0
    _open: list[int] = field(default_factory=list)
    """Keeps every file that was seen open, or its identity would be given to another."""

    def sync(self, descriptor: int) -> None:
        """Note what an fsync makes safe."""
        self.syncs += 1
        self._open.append(os.dup(descriptor))
        status = os.fstat(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not stat.S_ISDIR(status.st_mode):
            self.contents[status.st_ino] = path.read_bytes()
            return
        named = {}
        for below in path.iterdir():
            self._open.append(os.open(below, os.O_RDONLY))
            named[below.name] = (below.stat().st_ino, below.is_dir())
        self.names[status.st_ino] = named

    def restore(self, root: int, folder: Path) -> None:
        """Write what is safe below the folder of identity `root` into another one."""
        folder.mkdir(exist_ok=True)
        for name, (identity, is_folder) in self.names.get(root, {}).items():
            if is_folder:
                self.restore(identity, folder / name)
            else:
                (folder / name).write_bytes(self.contents.get(identity, b""))


def cut_after(point: int, place: Path, survived: Path) -> int:
    """Run in `place` until the `point`-th fsync, and leave in `survived` what is then safe.

    Returns how many there were; 0 for a point stands for none, and the run comes to its end.
    """
    reader, writer = os.pipe()

    def work() -> None:
        disk, fsync = Disk(), os.fsync

        def sync(descriptor: int) -> None:
            fsync(descriptor)
            disk.sync(descriptor)
            if disk.syncs == point:
                disk.restore(place.stat().st_ino, survived)
                os._exit(0)

        os.fsync = sync
        bring_to_an_end(place / "runs" / "run")
        os.write(writer, str(disk.syncs).encode())

    assert in_child(work) == 0
    os.close(writer)
    with os.fdopen(reader) as file:
        return int(file.read() or 0)


def lost_at(point: int, folder: Path, whole: dict[str, Any]) -> str:
    """What is lost of a run whose power was cut after this fsync; empty if nothing."""
    place, survived = folder / f"place_{point}", folder / f"survived_{point}"
    for each in (place, survived):
        each.mkdir()
    cut_after(point, place, survived)
    run_dir = survived / "runs" / "run"
    status = in_child(lambda: bring_to_an_end(run_dir))
    return difference(whole, outcome(run_dir)) if status == 0 else f"resume ended with {status}"


def whole_run(folder: Path) -> tuple[int, dict[str, Any]]:
    """How many fsyncs an undisturbed run makes, and what it leaves."""
    place = folder / "undisturbed"
    place.mkdir()
    return cut_after(0, place, folder), outcome(place / "runs" / "run")


if __name__ == "__main__":
    try_every_point(whole_run, lost_at, what="power cut after fsync")
