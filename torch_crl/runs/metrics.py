"""A run's metrics: metrics.jsonl, TensorBoard, Weights & Biases, and the display of progress.

Updates return metrics as tensors on the device; the host waits for them once per collection.
"""

import io
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor

from torch_crl.errors import TorchCrlError
from torch_crl.runs.directory import Moment, RunDirectory
from torch_crl.runs.weights_and_biases import WandbProcess
from torch_crl.system.append_file import AppendFile
from torch_crl.system.terminal import console, duration, plain

# Shortest time between two lines of progress where there is no terminal to draw a bar on.
_SECONDS_OF_SILENCE = 15.0
_NARROW, _WIDE = 100, 132
"""Columns that a terminal needs for an evaluation in one line, and for all beside the bar."""


class DivergenceError(TorchCrlError, RuntimeError):
    """A loss or a parameter is no longer finite; the message names it and the update."""


class UpdateMetrics:
    """Sums up the 0-D device tensors that updates return, without waiting for any of them."""

    def __init__(self, sums: Mapping[str, float] | None = None, count: int = 0) -> None:
        """Begin with the sums over `count` earlier updates."""
        self.sums, self.count = dict(sums or {}), count
        self._rows: list[Tensor] = []
        self._names: list[str] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Keep one update's metrics; every update must have the same names."""
        self._names = list(metrics)
        self._rows.append(torch.stack(list(metrics.values())))

    def sum_up(self, *, first_update: int) -> None:
        """Move what was added into the sums. The host waits for the device here.

        `first_update` is the number of the first of these updates, for the error message. Raises
        DivergenceError, which names the first update with a metric that is not finite.
        """
        if not self._rows:
            return
        values = torch.stack(self._rows).double().cpu()
        self._rows.clear()
        finite = values.isfinite()
        if not finite.all():
            update = int((~finite.all(1)).nonzero()[0])
            column = int((~finite[update]).nonzero()[0])
            raise DivergenceError(
                f"{self._names[column]} became {values[update, column].item()} at update "
                f"{first_update + update}"
            )
        begin = [self.sums.get(name, 0.0) for name in self._names]
        # In the order of the updates, so that a round in two parts has the sums of a whole one.
        sums = np.cumsum(np.vstack([begin, values.numpy()]), axis=0)[-1]
        self.sums = dict(zip(self._names, sums.tolist(), strict=True))
        self.count += len(values)

    def take_means(self) -> dict[str, float]:
        """The means over the updates that were summed up, which are then forgotten."""
        means = {name: value / self.count for name, value in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


def first_not_finite(named_tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor that contains NaN or infinity; None if there is none."""
    finite = torch.stack([tensor.isfinite().all() for tensor in named_tensors.values()]).tolist()
    return next((name for name, good in zip(named_tensors, finite, strict=True) if not good), None)


class RunLog:
    """Writes records to metrics.jsonl and TensorBoard, and shows the progress of a run.

    Records that cannot be written are kept until they can be. The first failure for each file is
    reported, and none ends the run.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        total: int,
        resumed_at: Moment | None,
        show: bool,
        wandb: str = "",
    ) -> None:
        """Open the files. Raises OSError if metrics.jsonl cannot be opened.

        Args:
            total: env steps at the end of the run, for the display of progress.
            resumed_at: for a resumed run; TensorBoard drops its records after this moment.
            wandb: project of Weights & Biases; empty for none.
        """
        self._console = console(stderr=True, quiet=not show)
        on_terminal = self._console.is_terminal and not self._console.is_dumb_terminal
        self._progress = Progress(
            TextColumn("{task.description:<10}", markup=False),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps"),
            TimeRemainingColumn(compact=True),
            TextColumn("left{task.fields[more]}"),
            console=self._console,
            disable=not (show and on_terminal),
        )
        self._bar = self._progress.add_task("starting", total=total, more="")
        self._total = total
        self._began: tuple[float, float] | None = None
        """Env steps and seconds when training was shown first."""
        self._spoke_at = time.monotonic()
        self._told: set[Path] = set()
        self._run, self._project = run, wandb
        self._wandb: WandbProcess | None = None
        self._records = AppendFile(run.metrics)
        self._records.write(b"")
        name = f"events.out.tfevents.{time.time_ns():019d}"
        self._events = AppendFile(run.tensorboard / name)
        self._append(self._events, _framed(Event(file_version="brain.Event:2")))
        if resumed_at is not None:
            restart = SessionLog(status=SessionLog.START)
            event = Event(step=resumed_at.env_steps + 1, session_log=restart)
            self._append(self._events, _framed(event))

    def __enter__(self) -> Self:
        """Start the display of progress, and the process that sends to Weights & Biases."""
        if self._project:
            self._wandb = WandbProcess(self._run, project=self._project, tell=self.announce)
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Write what can be written and close everything."""
        self._progress.stop()
        for file in (self._records, self._events):
            self._append(file, b"")
            file.close()
        if self._wandb is not None:
            self._wandb.close(succeeded=kind is None)

    def announce(self, *lines: str) -> None:
        """Print lines above the progress bar."""
        for line in lines:
            self._console.print(plain(line), soft_wrap=True)

    def progress(
        self,
        phase: str,
        *,
        completed: float,
        updates: int,
        seconds: float,
        rates: dict[str, float],
    ) -> None:
        """Move the bar to `completed` env steps; without a terminal, print a line now and then."""
        speed = (
            f"collects {rates['collected_steps_per_second']:,.0f} steps/s, "
            f"makes {rates['updates_per_second']:,.1f} updates/s"
        )
        # What comes before, such as a compilation, comes once.
        if phase == "training" and self._began is None:
            self._began = completed, seconds
            self._progress.reset(self._bar, completed=int(completed))
        if not self._progress.disable:
            # On a narrow terminal it would take the room of the bar and of the time left.
            more = f"   {updates:,} updates; {speed}" if self._console.width >= _WIDE else ""
            self._progress.update(self._bar, description=phase, completed=completed, more=more)
            return
        if time.monotonic() - self._spoke_at < _SECONDS_OF_SILENCE:
            return
        left = ""
        if self._began and completed > self._began[0]:
            pace = (seconds - self._began[1]) / (completed - self._began[0])
            left = f", about {duration(pace * (self._total - completed))} left"
        self._speak(completed, updates, seconds, f"{phase}, {speed}{left}")

    def train(self, record: dict[str, float]) -> None:
        """Write the record of a collection and its updates."""
        self._write("train", record)

    def evaluation(self, record: dict[str, float]) -> None:
        """Write the record of an evaluation, and print a line about it."""
        self._write("evaluation", record)
        success, share = record["success_any"], record["time_at_goal_share"]
        found = (
            f"success {success:>4.0%}   at goal {share:>4.0%}   "
            f"mean distance {record['mean_distance']:.3g} m"
        )
        self._speak(record["env_steps"], record["updates"], record["seconds"], found)

    def sync(self) -> None:
        """Wait until all records are on the disk. Raises OSError if they cannot be written."""
        self._records.sync()

    def _speak(self, env_steps: float, updates: float, seconds: float, what: str) -> None:
        self._spoke_at = time.monotonic()
        if self._progress.disable or self._console.width >= _NARROW:
            so_far = f"{env_steps:>12,.0f} steps {updates:>9,.0f} updates"
        else:
            so_far = f"{env_steps:>10,.0f} steps"
        self.announce(f"{so_far} {seconds:>6,.0f} s   {what}")

    def _write(self, kind: str, record: dict[str, float]) -> None:
        self._append(self._records, (json.dumps({"kind": kind, **record}) + "\n").encode())
        values = [
            Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in record.items()
            if name != "env_steps" and math.isfinite(value)
        ]
        event = Event(step=int(record["env_steps"]), summary=Summary(value=values))
        self._append(self._events, _framed(event))
        if self._wandb is not None:
            self._wandb.poll()

    def _append(self, file: AppendFile, data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:
            if file.path not in self._told:
                self._told.add(file.path)
                self.announce(
                    f"warning: {file.path} cannot be written ({error.strerror}); the run goes on, "
                    "and its records are kept until they can be"
                )


class SilentLog(RunLog):
    """The log of a rank that is not the first: it neither writes nor shows anything."""

    def __init__(self) -> None:
        """Open nothing."""

    def __enter__(self) -> Self:
        """Nothing begins."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing ends."""

    def announce(self, *lines: str) -> None:
        """Say nothing."""

    def progress(self, phase: str, **position: Any) -> None:
        """Show nothing."""

    def train(self, record: dict[str, float]) -> None:
        """Write nothing."""

    def evaluation(self, record: dict[str, float]) -> None:
        """Write nothing."""

    def sync(self) -> None:
        """There is nothing to wait for."""


def _framed(event: Event) -> bytes:
    """The event as a record of TensorBoard's file format, stamped with the current time."""
    event.wall_time = time.time()
    buffer = io.BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())
    return buffer.getvalue()
