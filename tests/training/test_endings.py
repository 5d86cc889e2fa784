"""How runs end: with what they made, whatever is missing, full or removed, and at every signal."""

import io
import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.helpers.recipes import tiny
from torch_crl import load_policy
from torch_crl.runs import metrics
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.metrics import RunLog
from torch_crl.runs.plots import load_matplotlib
from torch_crl.system import checkpoint
from torch_crl.system.machine import machine
from torch_crl.system.stopping import StopSignals
from torch_crl.training import clock as clocks
from torch_crl.training import crl_run, trainer
from torch_crl.training.trainer import train


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Files may grow to this many bytes, as if the disk were full beyond."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def do_after_update(monkeypatch: pytest.MonkeyPatch, number: int, what: Any) -> None:
    real = crl_run.CrlRun.update

    def update(self: crl_run.CrlRun) -> dict[str, torch.Tensor]:
        found = real(self)
        if self.updates_done == number:
            what()
        return found

    monkeypatch.setattr(crl_run.CrlRun, "update", update)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("", os.uname().machine),
        ("processor : 0\nBogoMIPS : 50.00\nCPU part : 0xd40\n", os.uname().machine),
        ("cpu family : 6\nmodel : 143\nmodel name : Xeon 8480\n", "Xeon 8480"),
        ("cpu family : 25\nmodel : 17\nmodel name : AMD EPYC\n", "AMD EPYC (family 25, model 17)"),
    ],
)
def test_a_processor_is_named_so_that_its_kind_can_be_told(
    told: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cpuinfo"
    if told:
        other = "\nprocessor : 1\nmodel name : other"
        file.write_text(told + (other if "model name" in told else ""))
    monkeypatch.setattr("torch_crl.system.machine.PROCESSORS", file)
    assert machine(torch.device("cpu"))["device"] == f"{os.cpu_count()} cores, {expected}"


def test_a_machine_without_its_optional_parts_is_described(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: 1 / 0)
    found = machine()
    assert found["commit"] == "" and found["device"].startswith("CUDA device of unknown name, ")
    # A run on the CPU was not made on the GPU beside it.
    assert "CUDA" not in machine(torch.device("cpu"))["device"]


def test_a_run_ends_without_git_terminal_home_tensorboard_and_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.chdir("/proc")
    run_dir = tmp_path / "run"

    def no_folder(run_dir: Path) -> Path:
        raise OSError("no writable cache directory")

    monkeypatch.setattr(trainer, "save_learning_curve", no_folder)
    do_after_update(monkeypatch, 2, lambda: shutil.rmtree(run_dir / "tensorboard"))
    result = train(tiny(), run_dir)
    told = capsys.readouterr().err
    assert told.count("/tensorboard/events.out.tfevents.") == 1
    assert "no learning curve was drawn: OSError: no writable cache directory" in told
    assert result.learning_curve is None
    made_on = json.loads((run_dir / "result.json").read_text())["machine"]
    assert made_on["commit"] == "" and made_on["torch"] == torch.__version__
    assert made_on["computed"].startswith("fp32, towers: reference")


def test_tensorboard_in_the_way_is_told_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tensorboard").touch()
    record = {"env_steps": 1, "updates": 1, "seconds": 0.0}
    with RunLog(RunDirectory(tmp_path), total=10, resumed_at=None, show=True) as log:
        log.train(record)
        log.train(record)
    assert len(RunDirectory(tmp_path).read_metrics("train")) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ") and "cannot be written (File exists)" in line


def test_records_that_found_no_room_are_written_when_there_is_some(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunLog(RunDirectory(tmp_path), total=10, resumed_at=None, show=True) as log:
        with room_for(100):
            for step in range(9):
                log.train({"env_steps": step, "updates": step, "seconds": 0.0})
            with pytest.raises(OSError, match=r"File too large.*metrics\.jsonl"):
                log.sync()
        assert len(RunDirectory(tmp_path).read_metrics("train")) < 9
        log.train({"env_steps": 9, "updates": 9, "seconds": 0.0})
        log.sync()
        assert [record["env_steps"] for record in RunDirectory(tmp_path).read_metrics("train")] == [
            *range(10)
        ]
    assert capsys.readouterr().err.count("metrics.jsonl cannot be written (File too large)") == 1


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
def test_a_signal_saves_and_leaves_with_its_status(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    status: int,
) -> None:
    before = signal.getsignal(number)
    # `timeout` signals the process and then its group.
    do_after_update(monkeypatch, 5, lambda: [os.kill(os.getpid(), number) for _ in range(2)])
    with pytest.raises(SystemExit) as left:
        train(tiny(), tmp_path / "run")
    assert left.value.code == status and signal.getsignal(number) == before
    _, _, meta, _ = checkpoint.load_newest(RunDirectory(tmp_path / "run").saved_checkpoints)
    assert meta["updates_done"] == 5
    assert capsys.readouterr().err.count("stopping after this phase") == 1


def test_a_signal_on_a_full_disk_leaves_with_its_status_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    do_after_update(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with room_for(2_000), pytest.raises(SystemExit) as left:
        train(tiny(), tmp_path / "run")
    assert left.value.code == 143
    assert "warning: could not write the checkpoint" in capsys.readouterr().err


def test_policies_that_found_room_alone_are_not_said_to_be_resumable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = tiny(budget={"checkpoints": 4}), RunDirectory(tmp_path / "run")
    do_after_update(monkeypatch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with room_for(6_000), pytest.raises(SystemExit):
        train(recipe, run.path)
    told = capsys.readouterr().err
    assert len(run.saved_policies) == 3 and not run.saved_checkpoints
    assert told.count("File too large") == 3
    assert told.count("; there is no earlier one") == 3
    assert "stopped; no checkpoint was written, so the run can only be started again" in told
    with pytest.raises(checkpoint.CheckpointError, match="holds no checkpoint to go on from; the"):
        train(recipe, run.path, resume=True)
    assert len(run.saved_policies) == 3


def test_a_stop_that_found_no_room_names_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = tiny(budget={"checkpoints": 4}), RunDirectory(tmp_path / "run")

    def fill_the_disk_and_stop() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
        os.kill(os.getpid(), signal.SIGTERM)

    do_after_update(monkeypatch, 5, fill_the_disk_and_stop)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with room_for(before[0]), pytest.raises(SystemExit):
        train(recipe, run.path)
    told = capsys.readouterr().err
    assert len(run.saved_checkpoints) == 2 and "; earlier ones are kept" in told
    assert f"stopped; `torch-crl train --resume --run-dir {run}` goes on from the last" in told


def test_an_ignored_signal_stays_ignored_and_others_are_given_back() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals(lambda line: None) as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.requested
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.requested
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_ctrl_c_stops_at_once_unless_it_is_the_first_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    lines: list[str] = []
    with StopSignals(lines.append) as stop:
        os.kill(os.getpid(), signal.SIGINT)
        now += 0.5
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested and len(lines) == 1
        now += 1.0
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(metrics.time, "monotonic", lambda: now)
    evaluated = {"success_any": 0.5, "time_at_goal_share": 0.25, "mean_distance": 0.1}
    with RunLog(RunDirectory(tmp_path), total=10_000, resumed_at=None, show=True) as log:
        for second in range(60):
            now = float(second)
            moment = {"updates": 10 * second, "seconds": second}
            rates = {"collected_steps_per_second": 100.0, "updates_per_second": 10.0}
            log.progress("training", completed=100 * second, rates=rates, **moment)
            if second == 20:
                log.evaluation({"env_steps": 100 * second, **moment, **evaluated})
    lines = capsys.readouterr().err.splitlines()
    # Fifteen seconds after the start, and after the evaluation, and so on.
    assert [int(line.split()[4]) for line in lines] == [15, 20, 35, 50]
    told = "training, collects 100 steps/s, makes 10.0 updates/s, about 85 s left"
    assert lines[0].split("   ")[-1] == told


@pytest.mark.parametrize("updates", [20, 1])
def test_the_first_update_of_a_session_tells_nothing_about_the_others(
    updates: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    now = 0.0
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, lambda: now)
    run: Any = SimpleNamespace(
        seconds=0.0, updates_done=7, progress=0.0, recipe=SimpleNamespace(steps_per_collection=100)
    )
    clock = clocks.Clock(run)
    with RunLog(RunDirectory(tmp_path), total=10_000, resumed_at=None, show=True) as log:
        for _ in range(3):
            clock.show("collecting", log)
            with clock.collecting():
                now += 1.0
            with clock.updating():
                for _ in range(updates):
                    # The first one waits for a compiler.
                    now += 30.0 if run.updates_done == 7 else 0.5
                    run.updates_done, run.progress = run.updates_done + 1, run.progress + 5
                    clock.show("training", log)
            alone = updates == 1 and run.updates_done == 8
            rate = clock.rates()["updates_per_second"]
            assert rate == pytest.approx(1 / 30 if alone else 2.0)
    if updates == 1:
        return
    first, second, *_ = capsys.readouterr().err.splitlines()
    assert first.endswith("training, collects 100 steps/s, makes 2.0 updates/s")
    # The 140 steps since then took 15 s, and 9,850 are left.
    assert second.endswith("makes 2.0 updates/s, about 17.6 min left")


@pytest.mark.parametrize("columns", [80, 140])
def test_on_a_terminal_bar_and_time_left_are_never_cut(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    rates = {"collected_steps_per_second": 123_456.0, "updates_per_second": 1_234.5}
    moment = {"updates": 771_605, "seconds": 12_345.0}
    evaluated = {"success_any": 1.0, "time_at_goal_share": 0.25, "mean_distance": 0.0123}
    with RunLog(RunDirectory(tmp_path), total=100_000_000, resumed_at=None, show=True) as log:
        log.progress("evaluating", completed=12_345_678, rates=rates, **moment)
        log.evaluation({"env_steps": 12_345_678, **moment, **evaluated})
    text = re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", shown.getvalue())
    lines = [line.rstrip() for line in re.split("[\r\n]+", text)]
    (bar,) = {line for line in lines if "evaluating" in line}
    assert "12,345,678 of 100,000,000 steps" in bar and " left" in bar and "\u2026" not in bar
    assert ("771,605 updates; collects 123,456 steps/s" in bar) == (columns == 140)
    (evaluation,) = {line for line in lines if "success" in line}
    assert evaluation.endswith("mean distance 0.0123 m")
    assert max(map(len, lines)) <= columns


def test_matplotlib_says_nothing_of_its_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "matplotlib"
    folder.mkdir()
    warn = "import logging; logging.getLogger(__name__).warning('temporary cache directory')"
    for name in ("__init__.py", "font_manager.py"):
        (folder / name).write_text(warn)
    monkeypatch.syspath_prepend(tmp_path)
    load_matplotlib()
    assert caplog.records == [] and logging.getLogger("matplotlib").level == logging.NOTSET
    # Not by monkeypatch, which would put these back.
    for name in ("matplotlib", "matplotlib.font_manager"):
        del sys.modules[name]


def test_a_run_directory_need_not_be_utf_8(tmp_path: Path) -> None:
    run_dir = tmp_path / os.fsdecode(b"\xff[bold]")
    train(tiny(), run_dir)
    train(tiny(), run_dir, resume=True)
    assert load_policy(run_dir)
