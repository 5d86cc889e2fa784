"""What judges a rehearsal, which itself takes too long to be a test."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from torch_crl.benchmarks.null_gpu import library
from torch_crl.benchmarks.null_gpu.__main__ import all_steps, main
from torch_crl.benchmarks.null_gpu.plugin import WANTS_VALUES
from torch_crl.benchmarks.null_gpu.steps import Ended, Result, Step, part, run

ROW = {"kind": "update", "depth": 4, "ms_p50": 1.0}
STOPPED = {"kind": "failure", "part": "update", "status": 124, "tail": "compiling"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([ROW, ROW], (True, "2 rows")),
        ([ROW, STOPPED], (True, "1 rows, then stopped")),
        ([STOPPED], (False, "0 rows, then stopped")),
        ([ROW, ROW | {"error": "E: no"}], (False, "1 rows, 1 failures, the first: E: no")),
        (
            [ROW, STOPPED | {"status": 1, "tail": "Traceback\n  E: no\n"}],
            (False, "1 rows, 1 failures, the first: E: no"),
        ),
    ],
)
def test_a_part_is_judged_by_its_rows(
    rows: list[dict[str, Any]], expected: tuple[bool, str], tmp_path: Path
) -> None:
    (tmp_path / "gpu.json").write_text(json.dumps({"rows": rows}))
    ended = Ended(status=0, text="", part=tmp_path)
    assert part("update", 60).judge(ended) == expected


def test_a_part_without_a_report_has_failed(tmp_path: Path) -> None:
    ended = Ended(status=1, text="Traceback\nE: no\n", part=tmp_path)
    assert part("update", 60).judge(ended) == (False, "no gpu.json; E: no")


def result_of(program: str, folder: Path, seconds: float = 60) -> Result:
    def judge(ended: Ended) -> tuple[bool, str]:
        return ended.status == 0, ended.text.strip()

    step = Step(
        name="a step", command=[sys.executable, "-c", program], seconds=seconds, judge=judge
    )
    return run(step, folder, {"NULL_GPU_LOG": str(folder / "violations")})


def test_a_violation_fails_a_step_that_ends_well(tmp_path: Path) -> None:
    assert result_of("print('fine')", tmp_path).words == "fine"
    log = "import os; open(os.environ['NULL_GPU_LOG'], 'a').write('VIOLATION one\\n')"
    result = result_of(log, tmp_path)
    assert (result.passed, result.words) == (False, "1 violations, the first: VIOLATION one")
    # It is that step's, and not the next one's.
    assert result_of("print('fine')", tmp_path).passed


def test_a_step_that_does_not_end_is_ended_with_its_children(tmp_path: Path) -> None:
    child = "import time; time.sleep(60)"
    program = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "open('child', 'w').write(str(child.pid))\n"
        "child.wait()\n"
    )
    result = result_of(program, tmp_path, seconds=3)
    assert (result.passed, result.words) == (False, "did not end within 3 s")
    stat = Path("/proc", (tmp_path / "child").read_text(), "stat")
    deadline = time.monotonic() + 10
    # Until the system has noticed the end of what nobody waits for.
    while stat.exists() and stat.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_step_has_a_limit_of_memory(tmp_path: Path) -> None:
    assert "MemoryError" in result_of("bytearray(2**36)", tmp_path).words


def test_all_files_and_tests_that_are_named_exist() -> None:
    files = [step.name for step in all_steps() if step.name.startswith("tests/")]
    assert files and all((ROOT / file).exists() for file in files)
    for name in WANTS_VALUES:
        file, _, test = name.partition("::")
        assert f"def {test}(" in (ROOT / file).read_text()


def test_without_the_library_a_check_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(library, "PATH", tmp_path / "libcuda.so.1")
    monkeypatch.setattr(sys, "argv", ["null_gpu"])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2 and "make rehearse" in capsys.readouterr().err
