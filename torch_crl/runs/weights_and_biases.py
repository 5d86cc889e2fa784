"""Weights & Biases: a separate process follows a run's metrics.jsonl and sends its records.

It is a separate process because the library may wait for a network, print, ask questions or fail,
none of which may affect the run. It ends when its standard input does, so also if the run is
killed.
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
from torch_crl.system.extras import install

# Without -P, files in the working directory would be imported in place of libraries.
_COMMAND = (sys.executable, "-P", "-m", __name__)
_SECONDS_BETWEEN_LOOKS = 1.0
# At the end of a run: seconds until a message says what the run waits for, and until it gives up.
_SECONDS_OF_SILENCE = 3.0
_SECONDS_TO_END = 30
# The process reads this before the end of its input if the run succeeded.
_SUCCEEDED = b"succeeded"


def missing_wandb() -> list[str]:
    """The reason why this installation cannot send to Weights & Biases, if there is one."""
    found = importlib.util.find_spec("wandb")
    # A folder `wandb` left by earlier runs in "." looks like a package without a file.
    if found is not None and found.origin is not None:
        return []
    return [f"--wandb needs the library of Weights & Biases: {install('wandb')}"]


class WandbProcess:
    """Sends every record of a run. A failure is reported once and does not end the run."""

    def __init__(self, run: RunDirectory, *, project: str, tell: Callable[[str], object]) -> None:
        """Start the process; the run must have begun. `tell` is called with lines for the user."""
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
                # Ctrl-C must reach only the run, which then ends this process.
                start_new_session=True,
            )
        except OSError as error:
            self._give_up(str(error))

    def poll(self) -> None:
        """Report it if the process has ended too early."""
        if self._process is not None and self._process.poll() is not None:
            self._give_up(self._last_line())

    def close(self, *, succeeded: bool) -> None:
        """Wait a limited time for the last records to be sent. Raises nothing if that fails."""
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
    """The records of a growing metrics.jsonl, each once, until `ended` is set and all are read."""
    with path.open("rb") as file:
        is_last, half = False, b""
        while not is_last:
            is_last = ended.wait(_SECONDS_BETWEEN_LOOKS)
            *lines, half = (half + file.read()).split(b"\n")
            yield from map(json.loads, lines)


def run_id(run: RunDirectory) -> str:
    """Identifier of a run: a resumed run keeps it, a new run in the same directory has another."""
    origin = f"{run.path.resolve().name} {run.read_machine().begun}"
    return hashlib.blake2b(origin.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def send(run: RunDirectory, project: str, records: Iterator[dict[str, Any]]) -> Any:
    """Log each record as `kind/name` over env steps; returns wandb's run object, still open.

    A resumed run gets only the records that it lacks: each record is one step of wandb's counter.
    """
    name, config = run.path.resolve().name, asdict(run.read_recipe())
    import wandb

    session = wandb.init(
        project=project,
        id=run_id(run),
        name=name,
        resume="allow",
        config=config,
        # A resumed run may be made longer, which changes its recipe.
        allow_val_change=True,
        dir=os.environ.get("WANDB_DIR") or run.path.resolve(),
        settings=wandb.Settings(silent=True, console="off"),
    )
    # Env steps are a metric, not wandb's own step: wandb drops records below its newest step.
    session.define_metric("*", step_metric="env_steps")
    for record in islice(records, session.step, None):
        kind, env_steps = record.pop("kind"), record.pop("env_steps")
        values = {f"{kind}/{name}": value for name, value in record.items()}
        session.log({"env_steps": env_steps, **values})
    return session


def main() -> None:
    """Entry point of the process; its arguments are a run directory and a project."""
    run, project = RunDirectory(sys.argv[1]), sys.argv[2]
    ended, said = threading.Event(), bytearray()

    def wait_for_the_end() -> None:
        # Not `sys.stdin`, whose lock this thread would still hold when the process exits.
        while part := os.read(0, 1024):
            said.extend(part)
        # Ends the process even if the library waits for a network in one of its threads.
        signal.alarm(_SECONDS_TO_END)
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    try:
        session = send(run, project, follow(run.metrics, ended))
        session.finish(exit_code=0 if said == _SUCCEEDED else 1)
    # The run reads this line and reports it as the reason.
    except Exception as error:
        sys.exit(in_one_line(error))


if __name__ == "__main__":
    main()
