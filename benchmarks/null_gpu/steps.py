"""The steps of a rehearsal: commands on the null GPU, each with a limit of time and of memory."""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch_crl.benchmarks import gpu

MOST_BYTES = 10 * 2**30
"""Of a process's own data. The memory of the null GPU is not part of it.

Networks begin on the host, which at a depth of 8192 takes most of this.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One command of a rehearsal."""

    name: str
    command: list[str]
    seconds: float
    judge: Callable[["Ended"], tuple[bool, str]]
    """Whether what has ended is as it should be, and a few words on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """What a step has left."""

    status: int
    text: str
    """Output and errors."""
    part: Path
    """Where a part of the benchmarks writes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """A line of the table at the end."""

    name: str
    passed: bool
    seconds: float
    words: str


def tests(file: str, seconds: float) -> Step:
    """A file of tests."""
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
    # As on a GPU's host: other versions of libraries may deprecate what the tested ones do not.
    command += ["-W", "default::DeprecationWarning"]
    command += ["-p", "torch_crl.benchmarks.null_gpu.plugin", file]
    return Step(name=file, command=command, seconds=seconds, judge=_by_status)


def check(name: str, module: str, seconds: float) -> Step:
    """A module of this folder that is a command, and whose last line says what it found."""
    command = [sys.executable, "-m", f"torch_crl.benchmarks.null_gpu.{module}"]
    return Step(name=name, command=command, seconds=seconds, judge=_by_status)


def part(name: str, seconds: float) -> Step:
    """A part of `torch_crl.benchmarks.gpu`, which ends by itself before the step's time is up."""
    command = [sys.executable, "-m", "torch_crl.benchmarks.gpu", "--only", name, "--out", name]
    command += ["--minutes", str(seconds / 60)]
    # Beyond its limit: starting, and the picture and the report after the part.
    return Step(
        name=f"benchmarks.gpu {name}", command=command, seconds=seconds + 60, judge=_by_report
    )


def run(step: Step, folder: Path, environment: dict[str, str]) -> Result:
    """Run a step in an own folder and session, so that nothing of it is left afterwards."""
    violations = Path(environment["NULL_GPU_LOG"])
    before = _lines(violations)
    log = _log_of(step, folder)
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            step.command,
            # Tests are named by their paths in the repository; a part of the benchmarks is told
            # where it writes.
            cwd=gpu.ROOT if "pytest" in step.command else folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_limit_memory,
        )
        try:
            status = process.wait(timeout=step.seconds)
        except subprocess.TimeoutExpired:
            status = gpu.TIMED_OUT
        finally:
            _end_session(process)
    ended = Ended(
        status=status, text=log.read_text(errors="replace"), part=folder / step.name.split()[-1]
    )
    passed, words = step.judge(ended)
    if new := _lines(violations)[len(before) :]:
        passed, words = False, f"{len(new)} violations, the first: {new[0]}"
    if status == gpu.TIMED_OUT:
        passed, words = False, f"did not end within {step.seconds:.0f} s"
    return Result(name=step.name, passed=passed, seconds=time.monotonic() - begin, words=words)


def tail(step: Step, folder: Path, lines: int = 30) -> str:
    """The end of what a step printed."""
    return "\n".join(_log_of(step, folder).read_text(errors="replace").splitlines()[-lines:])


def _log_of(step: Step, folder: Path) -> Path:
    return folder / f"{re.sub('[^a-z_]+', '-', step.name)}.log"


def _limit_memory() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))


def _end_session(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no output"


def _by_status(ended: Ended) -> tuple[bool, str]:
    return ended.status == 0, _last_line(ended.text)


def _by_report(ended: Ended) -> tuple[bool, str]:
    """By gpu.json. That a part was stopped in time after some rows is as it should be."""
    path = ended.part / "gpu.json"
    if not path.exists():
        return False, f"no gpu.json; {_last_line(ended.text)}"
    rows = json.loads(path.read_text())["rows"]
    errors = [row["error"].partition("\n")[0] for row in rows if "error" in row]
    failures = [row for row in rows if row.get("status")]
    stopped = [row for row in failures if row["status"] == gpu.TIMED_OUT]
    good = [row for row in rows if row not in failures and "error" not in row]
    errors += [
        _last_line(row.get("tail") or "".join(row.get("last_line", [])))
        for row in failures
        if row not in stopped
    ]
    words = f"{len(good)} rows" + (", then stopped" if stopped else "")
    if errors:
        words += f", {len(errors)} failures, the first: {errors[0]}"
    return bool(good) and not errors, words
