"""A sample of the hostile campaigns; `python -m tests.campaigns.NAME` does all of each."""

import subprocess
import sys

from tests.helpers.paths import ROOT


def test_kills_power_cuts_and_damage_lose_nothing_and_are_told() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.campaigns"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
