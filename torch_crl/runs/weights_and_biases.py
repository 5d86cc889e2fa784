"""Weights & Biases beside a run: a process of its own follows metrics.jsonl and sends its records.

A process of its own, since the library may wait for a network, print, ask or fail, and the run must
not. It ends when its standard input does, so also when the run is killed.
"""

import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import IO, Any

from torch_crl.errors import in_one_line
from torch_crl.runs.directory import RunDirectory

# Without -P, files in the working directory would be taken for libraries.
_COMMAND = (sys.executable, "-P", "-m", __name__)
_SECONDS_BETWEEN_LOOKS = 1.0
# At the end of a run: until the user is told what it waits for, and until it is given up.
_SECONDS_OF_SILENCE = 3.0
_SECONDS_TO_END = 30
# What the process reads before the end of its input if all went well.
_SUCCEEDED = b"succeeded"


def missing_wandb() -> list[str]:
    """Why nothing can be sent from this installation."""
    found = importlib.util.find_spec("wandb")
    # A folder `wandb` of earlier runs in the present folder looks like a package without a file.
    if found is not None and found.origin is not None:
        return []
    return ["--wandb needs the library of Weights & Biases; pip install 'torch_crl[wandb]'"]


class WandbProcess:
    """Sends every record of a run, until it fails; that is told once and ends nothing."""

    def __init__(self, run: RunDirectory, *, project: str, tell: Callable[[str], object]) -> None:
        """Start it; the run must have begun. `tell` is called with lines for the user."""
        self._tell = tell
        self._process: subprocess.Popen[bytes] | None = None
        self._output: IO[bytes] | None = None
        try:
            self._output = tempfile.TemporaryFile()  # noqa: SIM115
            self._process = subprocess.Popen(
                [*_COMMAND, str(run.path), project],
                stdin=subprocess.PIPE,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                # Ctrl-C is for the run, which then ends this.
                start_new_session=True,
            )
        except OSError as error:
            self._give_up(str(error))

    def poll(self) -> None:
        """Tell if it has ended before its time."""
        if self._process is not None and self._process.poll() is not None:
            self._give_up(self._last_line())

    def close(self, *, succeeded: bool) -> None:
        """Wait a while for what is still to be sent. Returns in any case."""
        process = self._process
        if process is None:
            return
        try:
            self._end_input(process, succeeded=succeeded)
        finally:
            process.kill()
            process.wait()
        if process.returncode == 0:
            self._release()
        elif process.returncode in (-signal.SIGALRM, -signal.SIGKILL):
            self._give_up(f"it did not come to its end within {_SECONDS_TO_END} s")
        else:
            self._give_up(self._last_line())

    def _end_input(self, process: subprocess.Popen[bytes], *, succeeded: bool) -> None:
        try:
            process.communicate(_SUCCEEDED if succeeded else b"", timeout=_SECONDS_OF_SILENCE)
        except subprocess.TimeoutExpired:
            self._tell(f"Weights & Biases has up to {_SECONDS_TO_END} s to send the rest")
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_END)

    def _last_line(self) -> str:
        assert self._output is not None
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1] if said else "its process died"

    def _give_up(self, reason: str) -> None:
        self._release()
        self._tell(
            f"warning: Weights & Biases was given up: {reason.rstrip('.')}; metrics.jsonl has "
            "every record"
        )

    def _release(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()
        if self._output is not None:
            self._output.close()
        self._process = self._output = None


def follow(path: Path, ended: threading.Event) -> Iterator[dict[str, Any]]:
    """The records of a growing metrics.jsonl, each once, until it has `ended` and all are read."""
    with path.open("rb") as file:
        is_last, half = False, b""
        while not is_last:
            is_last = ended.wait(_SECONDS_BETWEEN_LOOKS)
            *lines, half = (half + file.read()).split(b"\n")
            yield from map(json.loads, lines)


def run_id(run: RunDirectory) -> str:
    """The same for a run that goes on, another for one that begins in its place."""
    origin = f"{run.path.resolve().name} {run.read_machine().begun}"
    return hashlib.blake2b(origin.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def send(run: RunDirectory, project: str, records: Iterator[dict[str, Any]]) -> Any:
    """Log each record as `kind/name` over env steps; returns the library's run, still open.

    A run that goes on there is sent what it lacks: it has one of the library's steps a record.
    """
    name, config = run.path.resolve().name, asdict(run.read_recipe())
    import wandb

    session = wandb.init(
        project=project,
        id=run_id(run),
        name=name,
        resume="allow",
        config=config,
        # A run that goes on may be made longer.
        allow_val_change=True,
        dir=os.environ.get("WANDB_DIR") or run.path.resolve(),
        settings=wandb.Settings(silent=True, console="off"),
    )
    # Of our own, since the library drops what has a step below its newest.
    session.define_metric("*", step_metric="env_steps")
    for record in islice(records, session.step, None):
        kind, env_steps = record.pop("kind"), record.pop("env_steps")
        values = {f"{kind}/{name}": value for name, value in record.items()}
        session.log({"env_steps": env_steps, **values})
    return session


def main() -> None:
    """The process: its arguments are a run directory and a project."""
    run, project = RunDirectory(sys.argv[1]), sys.argv[2]
    ended, said = threading.Event(), bytearray()

    def wait_for_the_end() -> None:
        # Not by `sys.stdin`, whose lock this thread would hold when the process ends by itself.
        while part := os.read(0, 1024):
            said.extend(part)
        # Ends the process where the library, in a thread that waits for a network, does not.
        signal.alarm(_SECONDS_TO_END)
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    try:
        session = send(run, project, follow(run.metrics, ended))
        session.finish(exit_code=0 if said == _SUCCEEDED else 1)
    # Whatever it is, the run tells it as its reason.
    except Exception as error:
        sys.exit(in_one_line(error))


if __name__ == "__main__":
    main()
