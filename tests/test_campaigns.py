"""A sample of the hostile campaigns; `python -m tests.campaigns.NAME` does all of each."""

import subprocess
import sys
from pathlib import Path


def test_kills_power_cuts_and_damage_lose_nothing_and_are_told() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.campaigns"],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
