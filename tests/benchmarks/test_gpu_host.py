"""What runs on a lent GPU: its logistics, with a host that has no GPU and with recorded output."""

import json
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_crl.benchmarks import gpu
from torch_crl.benchmarks.clocks import Clocks, medians
from torch_crl.benchmarks.gpu_scenarios import scenarios
from torch_crl.benchmarks.replays import Kernel, kernel_table
from torch_crl.benchmarks.scenario import Row


def test_every_part_is_in_a_call_and_has_scenarios_or_a_function_of_its_own() -> None:
    assert set(gpu.PARTS) == set(scenarios()) | set(gpu.SPECIAL)
    for part in scenarios().values():
        for scenario in part:
            assert scenario.depth % 4 == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="for a host without a GPU")
def test_a_host_without_a_gpu_says_so_in_three_files_and_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--only", "profile", "--out", str(tmp_path)])
    assert gpu.main() == 1
    told = capsys.readouterr().out
    assert "kind=profile" in told and "error=" in told
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert [row["depth"] for row in rows] == [4, 64, 1024]
    with tarfile.open(tmp_path / "gpu.tar.gz") as archive:
        assert {"gpu/profile.jsonl", "gpu/profile.log"} <= set(archive.getnames())
    assert {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.tar.gz"}


def test_without_time_parts_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--call", "peers", "--minutes", "0", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gpu", *flags])
    assert gpu.main() == 0
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"kind=skipped  part={part}  reason=the time is used up" for part in gpu.CALLS["peers"]
    ]


def test_failures_of_tests_are_named_even_if_the_process_was_stopped() -> None:
    log = """
    [gw0] [  1%] PASSED tests/kernels/test_tower.py::test_sizes[4-64]
    tests/test_gpu.py::test_training[ppo] SKIPPED (no library)       [ 2%]
    [gw3] [  3%] FAILED tests/test_gpu.py::test_resume[a b]
    [gw3] [  3%] ERROR tests/test_gpu.py::test_other
    FAILED tests/test_gpu.py::test_resume[a b] - assert 0
    [gw1] [  4%] PASSED tests/kernels/test_tow"""
    assert gpu.test_results(log.splitlines()) == {
        "passed": 1,
        "skipped": 1,
        "failed": ["tests/test_gpu.py::test_other", "tests/test_gpu.py::test_resume[a b]"],
    }


def test_counters_are_read_from_the_profilers_csv() -> None:
    log = """==PROF== Connected to process 17
"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"
"0","tower_forward","gpu__time_duration.sum","ns","12,000"
"0","tower_forward","sm__throughput.avg.pct_of_peak_sustained_elapsed","%","40.5"
"1","tower_forward","gpu__time_duration.sum","ns","14,000"
"1","tower_forward","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","n/a"
"2","pairs","gpu__time_duration.sum","ns","3,000"
==PROF== Disconnected"""
    assert gpu.counted(log.splitlines()) == [
        {
            "kind": "counters",
            "part": "tower_forward",
            "launches": 2,
            "ns": 13000.0,
            "sm_percent": 40.5,
        },
        {"kind": "counters", "part": "pairs", "launches": 1, "ns": 3000.0},
    ]


def test_the_table_has_failures_first_and_says_what_it_leaves_out() -> None:
    rows: list[Row] = [
        {"kind": "update", "depth": depth, "ms_p50": 1.0, "width": 256} for depth in range(100)
    ]
    rows.append({"kind": "tests", "status": 1, "failed": ["tests/test_gpu.py::test_resume"]})
    lines = gpu.table(rows, longest=1000).splitlines()
    assert lines[0] == "kind=tests  status=1  failed=['tests/test_gpu.py::test_resume']"
    assert lines[1] == "kind=update  depth=0  ms_p50=1"
    assert lines[-1] == f"and {102 - len(lines)} more rows in gpu.json"
    assert len("\n".join(lines)) <= 1000
    assert len(gpu.table(rows).splitlines()) == 101


def test_kernels_of_a_replay_by_time() -> None:
    kernels = [Kernel("tower_forward", 30.0), Kernel("adam", 10.0), Kernel("tower_forward", 20.0)]
    summary, first, second = kernel_table(kernels * 2, replays=2)
    assert summary == {
        "part": "all",
        "launches": 3.0,
        "us": 60.0,
        "us_per_launch": 20.0,
        "share_of_towers": pytest.approx(5 / 6),
    }
    assert first == {"part": "tower_forward", "launches": 2.0, "us": 50.0, "share": 5 / 6}
    assert second["part"] == "adam"
    assert kernel_table([], replays=2) == [{"part": "all", "launches": 0.0}]


def test_clocks_are_those_of_a_busy_card(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = "345, 2619, 70.1\n1980, 2619, 500.0\n1965, 2619, 520.0\n345, 2619, 71\n19"
    assert medians(samples) == {"sm_mhz": 1972.5, "memory_mhz": 2619.0, "watts": 510.0}
    assert medians("[N/A], [N/A], [N/A]") == {}

    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr("torch_crl.benchmarks.clocks.subprocess.Popen", missing)
    with Clocks() as clocks:
        pass
    assert clocks.row == {}
