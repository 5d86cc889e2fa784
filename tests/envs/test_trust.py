"""Code that only a file names, or that lies in the working directory, is not run unasked."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.paths import OLD_RUN, ROOT
from torch_crl.cli.main import main
from torch_crl.envs.registry import make_task, task_files

# Importing it leaves a mark, and so does making a task of it.
MODULE = """
from pathlib import Path
Path("ran").touch()
def make():
    raise ValueError("nothing to make")
"""


@pytest.fixture
def received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run from a stranger, whose task is a module that lies beside its files."""
    run = tmp_path / "received"
    shutil.copytree(OLD_RUN, run)
    (run / "strange.py").write_text(MODULE)
    monkeypatch.chdir(run)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    name_task(run, "strange:make")
    yield run
    sys.modules.pop("strange", None)
    make_task.cache_clear()


def name_task(run: Path, name: str) -> None:
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["task"]["name"] = recipe["task"]["eval_name"] = name
    (run / "recipe.json").write_text(json.dumps(recipe))


COMMANDS = [
    ["eval", "."],
    ["watch", "."],
    ["train", "--resume", "--run-dir", "."],
    ["train", "--resume", "--run-dir", ".", "--dry-run"],
    ["train", "--recipe", "recipe.json", "--run-dir", "new"],
    ["train", "--recipe", "recipe.json", "--dry-run"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("name", ["strange:make", "gymnasium:strange:Env-v0"])
def test_a_task_that_only_a_file_names_needs_trust(
    received: Path, command: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name_task(received, name)
    assert main(command) == 1
    told = capsys.readouterr().err
    assert f"would import strange (of {name})" in told and "--trust" in told
    assert not (received / "ran").exists() and "strange" not in sys.modules
    # Then it is imported, and what it does wrong is told.
    assert main([*command, "--trust"]) == 1
    assert (received / "ran").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        *COMMANDS[2:],
        ["heatmap", "."],
        ["plan", "."],
        ["distil", "."],
        ["eval", ".", "--report", "r"],
    ],
    ids=" ".join,
)
def test_an_objective_that_only_a_file_names_needs_trust(
    received: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = json.loads((received / "recipe.json").read_text())
    recipe["algorithm"]["objective"] = "strange:make"
    recipe["task"]["name"] = recipe["task"]["eval_name"] = "reacher"
    (received / "recipe.json").write_text(json.dumps(recipe))
    main(command)
    assert not (received / "ran").exists() and "strange" not in sys.modules
    told = capsys.readouterr().err
    assert "would import strange (of strange:make)" in told and "--trust" in told


@pytest.mark.parametrize("command", COMMANDS[:4], ids=" ".join)
@pytest.mark.parametrize("name", ["strange:make", "gymnasium:strange:Env-v0"])
def test_where_the_module_of_a_run_was_is_told(
    received: Path, command: list[str], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name_task(received, name)
    (received / "strange.py").unlink()
    (received / "machine.json").write_text(json.dumps({"task_files": {name: "/there/strange.py"}}))
    assert main([*command, "--trust"]) == 1
    told = capsys.readouterr().err
    assert "No module named 'strange'" in told
    assert "The run was trained with /there/strange.py: go to that folder" in told


def test_the_files_of_own_modules_are_known() -> None:
    here = __name__
    names = [f"{here}:make", f"gymnasium:{here}:Env-v0", "gymnasium:Env-v0", "reacher", "none:make"]
    assert task_files(names) == dict.fromkeys(names[:2], __file__)


def test_a_task_that_was_typed_may_run(received: Path) -> None:
    assert main(["eval", ".", "--task", "strange:make"]) == 1
    assert (received / "ran").exists()
    # Last, so that nothing there is taken for a library.
    assert sys.path[-1] == str(received)


@pytest.mark.parametrize(
    "command",
    [
        ["sweep", "strange:make", "--dry-run"],
        ["sweep", "reacher", "--set", "eval_name=strange:make", "--dry-run"],
        ["compare", "strange:make", "--dry-run"],
        ["envs", "strange:make", "--png", "a.png"],
    ],
    ids=" ".join,
)
def test_commands_that_name_a_task_find_it_in_the_working_directory(
    received: Path, command: list[str]
) -> None:
    assert main(command) == 1
    assert (received / "ran").exists()


def test_comparing_runs_nothing(received: Path) -> None:
    main(["compare", "--runs", ".", "--out", "out"])
    assert not (received / "ran").exists()


@pytest.mark.parametrize("arguments", [["eval", "."], ["envs"], ["--version"]], ids=" ".join)
def test_files_in_the_working_directory_are_no_libraries(
    received: Path, arguments: list[str]
) -> None:
    for library in ("tyro", "rich", "numpy", "torch_crl", "json"):
        (received / f"{library}.py").write_text(MODULE)
    command = Path(sys.executable).with_name("torch-crl")
    subprocess.run([command, *arguments], capture_output=True, check=False)
    assert not (received / "ran").exists()


# An env of one's own, in processes; the rest of the program is as of a command.
STEPPED = """
from torch_crl.envs.gymnasium.foreign import probe
from torch_crl.envs.gymnasium.workers import Workers
from torch_crl.envs.trust import allow_tasks
name = "gymnasium:mine:Mine-v0"
allow_tasks([name], typed=[name])
workers = Workers(probe(name), episode_length=7, num_envs=1, num_processes=1, timeout=0)
workers.reset(0)
workers.close()
"""
MINE = """
import gymnasium
from tests.helpers.goal_envs import PuckEnv
class Mine(PuckEnv):
    def reset(self, **options):
        from pathlib import Path
        Path("found").touch()
        return super().reset(**options)
gymnasium.register("Mine-v0", entry_point="mine:Mine")
"""


def test_processes_of_envs_take_no_file_in_the_working_directory_for_a_library(
    received: Path, tmp_path: Path
) -> None:
    for library in ("signal", "numpy", "torch_crl", "gymnasium"):
        (received / f"{library}.py").write_text(MODULE)
    (received / "mine.py").write_text(MINE)
    # Installed in another folder, as torch-crl is.
    command = tmp_path / "command.py"
    command.write_text(STEPPED)
    done = subprocess.run(
        [sys.executable, command],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not (received / "ran").exists()
    # Their own module they find, after all libraries.
    assert (received / "found").exists() and not done.stderr
