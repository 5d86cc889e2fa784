"""Ranks that hold up the others."""

from torch_crl.distributed.stragglers import Stragglers


def test_a_rank_that_is_late_again_and_again_is_told_once() -> None:
    stragglers = Stragglers()
    told = [line for _ in range(4) for line in stragglers.report([1.0, 1.0, 1.5, 1.1])[1]]
    # One collection in time, and it has to be late as often again.
    told += stragglers.report([1.0, 1.0, 1.1, 1.1])[1]
    assert told == []
    for _ in range(9):
        metrics, lines = stragglers.report([1.0, 1.0, 1.5, 1.1])
        told += lines
    assert metrics == {"collect_seconds_median": 1.05, "collect_seconds_slowest": 1.5}
    assert told == [
        "warning: rank 2 takes 1.4 times as long as the others for 5 collections in a row, and all "
        "wait for it"
    ]


def test_one_process_is_no_straggler() -> None:
    assert Stragglers().report([3.0]) == ({}, [])
