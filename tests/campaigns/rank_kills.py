"""Kill random ranks of a run at random moments, and demand what an undisturbed run has.

python -m tests.campaigns.rank_kills [--kills N]

torchrun starts all ranks again after each kill; every kill costs the time of a start, ten seconds.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.campaigns.runs import bring_to_an_end, difference, outcome, short_recipe
from tests.helpers.ranks import Stage, free_port, start_ranks
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe

RANKS = 2
# Ranks that are still meeting wait for one that has died.
_NOTICE_SECONDS = 5.0
_LONGEST_WAIT = 6.0


def train_or_resume(folder: str) -> None:
    """What one rank of the sample does."""
    bring_to_an_end(Path(folder))


def of_forks(folder: Path, kills: int, *, seed: int = 0) -> str:
    """Train with ranks that are forks of this process, of which some are killed.

    All are started again after a kill, as torchrun does. Returns how the last ones ended, if not
    well.
    """
    draw = random.Random(seed)
    stage = Stage(RANKS, f"{__name__}:train_or_resume", {"folder": str(folder)})
    for kill in range(kills + 1):
        ranks, store = start_ranks(stage, [folder.with_name("answer")] * RANKS)
        if kill < kills:
            time.sleep(draw.uniform(0.1, 1.5))
            os.kill(draw.choice(ranks), signal.SIGKILL)
            _end_the_others(ranks)
        ended = [os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks]
        del store
    return "" if ended == [0] * RANKS else f"the ranks ended with {ended}"


def _end_the_others(ranks: list[int]) -> None:
    """Give the others a few seconds to notice, then end them, as torchrun does."""
    limit = time.monotonic() + _NOTICE_SECONDS
    for rank in ranks:
        while time.monotonic() < limit and not _has_ended(rank):
            time.sleep(0.05)
    for rank in ranks:
        if not _has_ended(rank):
            os.kill(rank, signal.SIGKILL)


def _has_ended(process: int) -> bool:
    """Whether a child has ended; it can still be waited for."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process, options) is not None


def lost_after(kills: int, folder: Path) -> str:
    """What a run on forks has lost by these kills; empty if nothing."""
    told = of_forks(folder / "whole_of_ranks", 0) or of_forks(folder / "killed_ranks", kills)
    return told or difference(outcome(folder / "whole_of_ranks"), outcome(folder / "killed_ranks"))


def long_recipe() -> Recipe:
    """One that takes longer than a kill comes late, with many checkpoints."""
    return with_changes(
        short_recipe(), budget={"env_steps": 40_000, "checkpoints": 400, "evaluations": 10}
    )


def by_torchrun(folder: Path, kills: int) -> dict[str, Any]:
    """The outcome of a run by torchrun, some of whose ranks are killed."""
    recipe = folder.with_suffix(".json")
    recipe.write_text(long_recipe().to_json())
    draw = random.Random(kills)
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)),
        *("--max-restarts", str(kills), "--monitor-interval", "0.1", "--master-port"),
        *(str(free_port()), "-m", "torch_crl", "train", "--resume-if-any", "--run-dir"),
        *(str(folder), "--recipe", str(recipe)),
    ]
    log = folder.with_suffix(".log")
    with log.open("w") as output:
        agent = subprocess.Popen(command, stdout=output, stderr=output)
    killed = 0
    while killed < kills and agent.poll() is None:
        ranks = _children(agent.pid)
        if len(ranks) < RANKS:
            time.sleep(0.05)
            continue
        # In the imports, while it is built, resumed or trained, or in the middle of a checkpoint.
        time.sleep(draw.uniform(0.0, 8.0 + _LONGEST_WAIT))
        try:
            os.kill(draw.choice(ranks), signal.SIGKILL)
        except ProcessLookupError:
            continue
        killed += 1
        print(f"{killed} of {kills} killed", flush=True)
        while set(_children(agent.pid)) & set(ranks) and agent.poll() is None:
            time.sleep(0.05)
    status = agent.wait()
    if status or killed < kills:
        said = "\n".join(log.read_text().splitlines()[-60:])
        raise SystemExit(f"{said}\ntorchrun ended with {status} after {killed} kills")
    return outcome(folder)


def _children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    asked = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as name:
        undisturbed = by_torchrun(Path(name) / "whole", 0)
        lost = difference(undisturbed, by_torchrun(Path(name) / "killed", asked))
    print(lost or f"{asked} kills of random ranks: the outcome is that of the undisturbed run")
    sys.exit(bool(lost))
