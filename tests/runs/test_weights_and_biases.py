"""What goes to Weights & Biases, and that nothing that happens there ends or holds up a run."""

import importlib.util
import json
import sys
import threading
import time
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.helpers.recipes import tiny
from torch_crl.recipe.checks import RecipeError
from torch_crl.runs import weights_and_biases
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.weights_and_biases import WandbProcess, follow, run_id, send
from torch_crl.training.trainer import train


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.begin(tiny(), machine={"begun": "2026-01-01T00:00:00.000001+00:00"})
    return directory


def process(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, script: str
) -> tuple[WandbProcess, list[str]]:
    """One that runs this shell script in the place of the library; and what it tells."""
    monkeypatch.setattr(weights_and_biases, "_COMMAND", ("sh", "-c", script))
    told: list[str] = []
    return WandbProcess(run, project="mine", tell=told.append), told


def look_until_told(process: WandbProcess, told: list[str]) -> None:
    deadline = time.monotonic() + 20
    while not told and time.monotonic() < deadline:
        process.poll()
        time.sleep(0.01)


@pytest.mark.parametrize("sent_before", [0, 1, 2])
def test_every_record_goes_there_once_with_its_env_steps(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, sent_before: int
) -> None:
    logged: list[Any] = []
    asked: dict[str, Any] = {}

    def init(**options: Any) -> Any:
        asked.update(options)
        return SimpleNamespace(
            step=sent_before,
            log=logged.append,
            define_metric=lambda name, step_metric: asked.update({name: step_metric}),
        )

    fake = SimpleNamespace(init=init, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    records = [
        {"kind": "train", "env_steps": 10, "critic_loss": 2.0},
        {"kind": "evaluation", "env_steps": 10, "success_any": 0.5},
    ]
    send(run, "mine", iter(records))
    assert asked["*"] == "env_steps"
    all_logged = [
        {"env_steps": 10, "train/critic_loss": 2.0},
        {"env_steps": 10, "evaluation/success_any": 0.5},
    ]
    assert logged == all_logged[sent_before:]
    assert asked["project"] == "mine" and asked["name"] == "run"
    assert asked["config"]["networks"]["width"] == tiny().networks.width
    assert (asked["id"], asked["resume"]) == (run_id(run), "allow")
    assert asked["settings"] == {"silent": True, "console": "off"}


def test_records_are_followed_while_they_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_and_biases, "_SECONDS_BETWEEN_LOOKS", 0.01)
    path, ended = tmp_path / "metrics.jsonl", threading.Event()
    path.write_text('{"env_steps": 1}\n{"env_st')
    ended.set()
    assert list(follow(path, ended)) == [{"env_steps": 1}]
    ended.clear()
    found = follow(path, ended)
    assert next(found) == {"env_steps": 1}
    with path.open("a") as file:
        file.write('eps": 2}\n{"env_steps": 3}\n')
    ended.set()
    assert list(found) == [{"env_steps": 2}, {"env_steps": 3}]


def test_a_run_that_goes_on_keeps_its_id_and_one_in_its_place_has_another(
    run: RunDirectory, tmp_path: Path
) -> None:
    first = run_id(run)
    run.extend(tiny(budget={"env_steps": 10_000}))
    assert run_id(run) == first
    run.begin(tiny(), machine={"begun": "2026-01-01T00:00:00.000002+00:00"})
    assert run_id(run) != first


def test_without_the_library_nothing_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the folder `wandb` that the library leaves in the present folder.
    namespace = ModuleSpec("wandb", None, is_package=True)
    for found in (None, namespace):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, found=found: found)
        with pytest.raises(RecipeError, match=r"pip install 'wandb"):
            train(tiny(), tmp_path / "run", wandb="mine", show=False)
        assert not (tmp_path / "run").exists()


def test_a_process_that_fails_is_told_once(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, told = process(run, monkeypatch, "echo warming up; echo no network. >&2; exit 1")
    look_until_told(failing, told)
    failing.poll()
    failing.close(succeeded=True)
    assert told == [
        "warning: Weights & Biases was given up: no network; metrics.jsonl has every record"
    ]


def test_what_is_raised_in_the_process_is_told(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.recipe.unlink()
    # Files where the command is given are no libraries.
    monkeypatch.chdir(tmp_path)
    for library in ("torch_crl", "json", "wandb"):
        (tmp_path / f"{library}.py").write_text("raise SystemExit('taken for a library')")
    told: list[str] = []
    look_until_told(WandbProcess(run, project="mine", tell=told.append), told)
    assert len(told) == 1 and "given up: RunDirectoryError: " in told[0] and "no run" in told[0]


def test_a_process_that_hangs_is_ended(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_and_biases, "_SECONDS_OF_SILENCE", 0.05)
    monkeypatch.setattr(weights_and_biases, "_SECONDS_TO_END", 0.1)
    hanging, told = process(run, monkeypatch, "exec sleep 60")
    hanging.poll()
    begin = time.monotonic()
    hanging.close(succeeded=True)
    assert time.monotonic() - begin < 5
    assert told[0] == "Weights & Biases has up to 0.1 s to send the rest"
    assert "did not come to its end within 0.1 s" in told[1] and len(told) == 2


def test_a_process_that_cannot_be_started_is_told(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights_and_biases, "_COMMAND", ("/nowhere/python",))
    told: list[str] = []
    absent = WandbProcess(run, project="mine", tell=told.append)
    absent.poll()
    absent.close(succeeded=True)
    assert len(told) == 1 and "No such file" in told[0]


def test_the_process_is_told_whether_the_run_came_to_its_end(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for succeeded, said in ((True, "succeeded"), (False, "")):
        there, told = process(run, monkeypatch, f"cat > {tmp_path / 'said'}")
        there.close(succeeded=succeeded)
        assert (tmp_path / "said").read_text() == said and not told


def test_training_with_the_library_itself_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    train(tiny(), tmp_path / "run", wandb="mine", show=False)
    assert capfd.readouterr() == ("", "")
    name = run_id(RunDirectory(tmp_path / "run"))
    (written,) = (tmp_path / "wandb").glob(f"offline-run-*/run-{name}.wandb")
    # What is in it is framed and checked, and the names are readable.
    last = RunDirectory(tmp_path / "run").read_metrics("train")[-1]
    data = written.read_bytes()
    assert b"evaluation/success_any" in data and b"train/critic_loss" in data
    assert json.dumps(last["critic_loss"]).encode() in data
