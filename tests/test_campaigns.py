"""A sample of the hostile campaigns; `python -m tests.campaigns.NAME` does all of each."""

from pathlib import Path

import pytest

from tests.campaigns import damaged_files, kill_points, power_cuts

FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@FORKS
def test_killed_at_calls_that_change_files_nothing_is_lost(tmp_path: Path) -> None:
    total, whole = kill_points.count_points(tmp_path)
    assert total > 100
    # In the first checkpoint, in the middle, in the removal of the oldest, and at the very end.
    for point in (total // 5, total // 2, total - 10, total - 2):
        assert kill_points.lost_at(point, tmp_path, whole) == "", f"call {point} of {total}"


@FORKS
def test_after_a_power_cut_the_disk_holds_a_run_that_goes_on(tmp_path: Path) -> None:
    total, whole = power_cuts.whole_run(tmp_path)
    # As soon as the run directory has its name, then in the middle of its checkpoints.
    for point in (9, total // 2):
        assert power_cuts.lost_at(point, tmp_path, whole) == "", f"fsync {point} of {total}"


@FORKS
def test_damaged_files_are_told_cleanly(tmp_path: Path) -> None:
    assert damaged_files.campaign(40, tmp_path, seed=7) == []
