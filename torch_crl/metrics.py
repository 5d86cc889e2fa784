"""Numbers from the run to people: TensorBoard, metrics.jsonl, and the progress display.

Updates hand over tensors on the device; the host waits for them once for each collection.
"""

import json
import math
import os
from typing import Self

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from torch import Tensor

from torch_crl.errors import TorchCrlError
from torch_crl.runs.directory import Moment, RunDirectory


class DivergenceError(TorchCrlError, RuntimeError):
    """A loss or a parameter is no longer finite; the message names it and when it happened."""


class UpdateMetrics:
    """Collects the 0-D device tensors that updates return, without waiting for any of them."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows: list[Tensor] = []
        self._names: list[str] = []

    def add(self, metrics: dict[str, Tensor]) -> None:
        """Keep one update's metrics; every update must bring the same names."""
        self._names = list(metrics)
        self._rows.append(torch.stack(list(metrics.values())))

    def flush(self, *, first_update: int) -> dict[str, float]:
        """Means over the updates since the last flush; the host waits for the device here.

        `first_update` is the number of the first of them, for the error message. Raises
        DivergenceError for the first update with a metric that is not finite.
        """
        if not self._rows:
            return {}
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
        return dict(zip(self._names, values.mean(0).tolist(), strict=True))


def first_not_finite(named_tensors: dict[str, Tensor]) -> str | None:
    """The name of the first tensor that holds a NaN or an infinity."""
    finite = torch.stack([tensor.isfinite().all() for tensor in named_tensors.values()]).tolist()
    return next((name for name, good in zip(named_tensors, finite, strict=True) if not good), None)


class RunLog:
    """Writes records to metrics.jsonl and TensorBoard, and shows the progress of a run."""

    def __init__(
        self, run: RunDirectory, *, total: int, resumed_at: Moment | None, show: bool
    ) -> None:
        """`total` env steps to show progress towards; TensorBoard forgets what it has after
        `resumed_at`.
        """
        self._file = run.metrics.open("a")
        self._tensorboard = EventFileWriter(str(run.tensorboard))
        if resumed_at is not None:
            restart = SessionLog(status=SessionLog.START)
            self._tensorboard.add_event(Event(step=resumed_at.env_steps + 1, session_log=restart))
        self._console = Console(stderr=True, quiet=not show, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} steps"),
            TextColumn("{task.fields[rates]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left{task.fields[last]}"),
            console=self._console,
            disable=not (show and self._console.is_terminal),
        )
        self._bar = self._progress.add_task("starting", total=total, rates="", last="")

    def __enter__(self) -> Self:
        """Start the display."""
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        """Flush everything."""
        self._progress.stop()
        self._file.close()
        self._tensorboard.close()

    def announce(self, *lines: str) -> None:
        """Show lines above the progress."""
        for line in lines:
            self._console.print(line, soft_wrap=True, markup=False)

    def progress(
        self, phase: str, *, completed: float, updates: int, rates: dict[str, float]
    ) -> None:
        """Move the bar to `completed` env steps."""
        text = (
            f"{updates:,} updates · {rates['collected_steps_per_second']:,.0f} steps/s "
            f"{rates['updates_per_second']:,.1f} updates/s ·"
        )
        self._progress.update(self._bar, description=phase, completed=completed, rates=text)

    def train(self, record: dict[str, float]) -> None:
        """A collection and its updates are done."""
        self._write("train", record)

    def evaluation(self, record: dict[str, float]) -> None:
        """An evaluation is done; shown as a line of its own."""
        self._write("evaluation", record)
        success, share = record["success_any"], record["time_at_goal_share"]
        self._progress.update(self._bar, last=f"   success {success:.0%}, at goal {share:.0%}")
        self.announce(
            f"{record['env_steps']:>12,.0f} steps {record['updates']:>9,.0f} updates "
            f"{record['seconds']:>6,.0f} s   success {success:>4.0%}   at goal {share:>4.0%}   "
            f"mean distance {record['mean_distance']:.3g} m"
        )

    def sync(self) -> None:
        """Everything logged so far is on the disk."""
        self._tensorboard.flush()
        self._file.flush()
        os.fsync(self._file.fileno())

    def _write(self, kind: str, record: dict[str, float]) -> None:
        self._file.write(json.dumps({"kind": kind, **record}) + "\n")
        self._file.flush()
        values = [
            Summary.Value(tag=f"{kind}/{name}", simple_value=value)
            for name, value in record.items()
            if name != "env_steps" and math.isfinite(value)
        ]
        event = Event(step=int(record["env_steps"]), summary=Summary(value=values))
        self._tensorboard.add_event(event)
