"""A sample of each campaign, in a process that has never computed: `python -m tests.campaigns`.

What forks must not have started threads, which a child lacks and may wait for.
"""

import sys
import tempfile
from pathlib import Path

from tests.campaigns import damaged_files, kill_points, power_cuts, rank_kills


def sample(folder: Path) -> list[str]:
    """What was lost or not told cleanly."""
    calls, whole = kill_points.count_points(folder)
    # In a checkpoint, in the removal of the oldest, and at the very end.
    points = (calls // 3, calls - 10, calls - 2)
    killed = {
        f"killed at call {n} of {calls}": kill_points.lost_at(n, folder, whole) for n in points
    }
    syncs, whole = power_cuts.whole_run(folder)
    points = (syncs // 2,)
    cut = {f"power cut after fsync {n}": power_cuts.lost_at(n, folder, whole) for n in points}
    ranks = {"ranks killed three times": rank_kills.lost_after(3, folder)}
    told = [f"{where}: {what}" for where, what in (killed | cut | ranks).items() if what]
    return told + damaged_files.campaign(20, folder, seed=7)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        problems = sample(Path(name))
    print("\n".join(problems))
    sys.exit(bool(problems))
