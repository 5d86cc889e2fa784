"""The command as users run it: a process of its own."""

import atexit
import gc
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.helpers import warm
from tests.helpers.commands import SMALL_FLAGS
from tests.helpers.paths import EXAMPLES, OLD_RUN
from tests.helpers.recipes import tiny
from torch_crl import train
from torch_crl.cli import envs
from torch_crl.cli.main import COMMANDS, main
from torch_crl.envs.registry import TASKS
from torch_crl.system.garbage import freeze
from torch_crl.training import calibration

TINY_FLAGS = [
    *("--num-envs", "4", "--num-eval-envs", "2", "--episode-length", "10", "--width", "8"),
    *("--batch-size", "8", "--env-steps", "120", "--unroll-length", "5"),
    *("--env-steps-per-update", "10", "--prefill-rows", "10", "--replay-rows", "20"),
    *("--evaluations", "2", "--checkpoints", "2", "--device", "cpu", "--torch-threads", "1"),
]


ENVIRONMENT = {"COLUMNS": "200", "PATH": "/usr/bin:/bin", "HOME": str(Path.home())}


def torch_crl(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("torch-crl")), *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=ENVIRONMENT,
    )


def succeeds(program: str) -> str:
    """What a program in a Python of its own, which must succeed, tells on standard error."""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stderr


def warm_torch_crl(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The same in a process that need not import torch first."""
    return warm.run("-m", "torch_crl", *arguments, cwd=cwd, env=ENVIRONMENT)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["train", "--help"], ["eval", "--help"], ["envs", "--help"], ["envs"]]
)
def test_help_answers_in_under_a_second_and_imports_nothing_heavy(arguments: list[str]) -> None:
    times = []
    for _ in range(3):
        # Time of the processor: the clock on the wall also tells what else the machine is doing.
        begin = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = torch_crl(*arguments)
        end = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(end.ru_utime + end.ru_stime - begin.ru_utime - begin.ru_stime)
        assert result.returncode == 0, result.stderr
    assert min(times) < 1.0
    program = (
        "import sys\nfrom torch_crl.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        # NumPy comes with Gymnasium, which is told of our tasks.
        "heavy = {'torch', 'mujoco', 'matplotlib', 'triton', 'warp'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    succeeds(program)


def test_mistakes_are_told_before_what_takes_long_to_import() -> None:
    program = (
        "import sys\nfrom torch_crl.cli.main import main\n"
        "for command in ('distil', 'eval', 'heatmap', 'plan', 'prune', 'watch'):\n"
        "    assert main([command, 'nowhere']) == 1\n"
        "assert main(['export', 'nowhere']) == main(['export', 'nowhere', '--to', 'c']) == 1\n"
        "assert 'torch' not in sys.modules\n"
        "assert main(['train', 'reacher', '--depth', '6']) == 1 and 'torch' in sys.modules\n"
        "assert 'matplotlib' not in sys.modules\n"
    )
    told = succeeds(program)
    assert told.count("nowhere is no run directory") == 7


def test_a_run_on_a_cpu_needs_no_compiler_of_torch(tmp_path: Path) -> None:
    program = "import sys\nfrom torch_crl.cli.main import main\n"
    for tower in ("reference", "numba"):
        folder = str(tmp_path / tower)
        flags = *SMALL_FLAGS, "--tower", tower, "--run-dir", folder
        program += f"assert main({['train', 'reacher', *flags]!r}) == 0\n"
    program += (
        f"assert main(['eval', {folder!r}, '--num-envs', '2']) == 0\n"
        f"distil = ['distil', {folder!r}, '--rows', '64', '--updates', '4']\n"
        "assert main(distil) == 0\n"
        # They take as long to import as torch itself.
        "slow = {'torch._dynamo', 'sympy', 'tensordict'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    succeeds(program)


def test_a_command_looks_for_garbage_seldom_and_a_call_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed: list[str] = []
    monkeypatch.setattr(gc, "set_threshold", lambda number: changed.append(f"threshold {number}"))
    monkeypatch.setattr(atexit, "register", lambda function: changed.append(function.__name__))
    main(["--version"])
    assert not changed
    monkeypatch.setattr(sys, "argv", ["torch-crl", "--version"])
    main()
    assert changed == ["threshold 10000", "freeze"]


@pytest.mark.parametrize(
    ("triton", "frozen"), [("", 1), ("3.7.1", 1), ("3.9.0", 0), ("3.10rc1", 0)]
)
def test_what_triton_binds_is_freed_where_it_would_be_told(
    triton: str, frozen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(gc, "freeze", lambda: calls.append(1))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    if triton:
        monkeypatch.setitem(sys.modules, "triton", SimpleNamespace(__version__=triton))
    freeze()
    assert len(calls) == frozen


@pytest.mark.parametrize("command", COMMANDS)
def test_a_flag_that_may_be_left_out_does_not_offer_none_as_its_value(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "None}" not in capsys.readouterr().out


def test_help_lists_the_flags_of_the_recipe() -> None:
    text = torch_crl("train", "--help").stdout
    flags = set(re.findall(r"--[a-z-]+", text))
    assert {
        "--depth",
        "--actor-depth",
        "--critic-depth",
        "--contrastive-loss",
        "--env-steps",
        "--seed",
        "--device",
        "--run-dir",
        "--resume",
        "--overwrite",
        "--dry-run",
    } <= flags


def test_envs_lists_every_task_with_its_numbers() -> None:
    result = torch_crl("envs")
    for name in TASKS:
        assert re.search(rf"\b{name}\b", result.stdout), name
    row = next(line for line in result.stdout.splitlines() if " humanoid " in line)
    assert re.findall(r"[\d.]+", row) == ["246", "3", "17", "0.5", "2", "1000"]
    narrowed = torch_crl("envs", "point").stdout
    assert "point_u_maze" in narrowed and "humanoid" not in narrowed
    assert "nearest: point" in torch_crl("envs", "poinnt").stderr
    assert "`torch-crl envs` lists all" in torch_crl("envs", "qqq").stderr


def test_envs_cuts_no_name_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert envs.main(["1f2f3f4f5f"]) == 0
    out = capsys.readouterr().out
    assert " ant_u_maze_eval_1f2f3f4f5f " in out and " point_u_maze_eval_1f2f3f4f5f " in out


def test_train_eval_and_resume(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    result = torch_crl("train", "reacher", *TINY_FLAGS, "--run-dir", str(run_dir))
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith("reached the goal in") and f"torch-crl eval {run_dir}" in last
    evaluated = warm_torch_crl("eval", str(run_dir), "--num-envs", "4", "--json")
    assert evaluated.returncode == 0, evaluated.stderr
    metrics = json.loads(evaluated.stdout)
    assert metrics["task"] == "reacher" and metrics["episode_length"] == 10
    # Deterministic: the same seed, the same numbers, also in a process with other states.
    again = torch_crl("eval", str(run_dir), "--num-envs", "4", "--json")
    assert again.stdout == evaluated.stdout
    table = warm_torch_crl("eval", str(run_dir), "--num-envs", "4")
    assert "success_any" in table.stdout
    # The flags may be left out, as long as none contradicts the run.
    resumed = warm_torch_crl("train", "--resume", "--run-dir", str(run_dir))
    assert resumed.returncode == 0, resumed.stderr
    changed = warm_torch_crl("train", "--resume", "--run-dir", str(run_dir), "--depth", "8")
    assert changed.returncode == 1
    assert "--actor-depth: 4 -> 8" in changed.stderr


def dry_run(
    *arguments: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[str, str]:
    """What `train --dry-run` tells of a run of 0.1 s an update, on a terminal of 80 columns."""
    pace = calibration.Pace(env_step=0.0, update=0.1)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    monkeypatch.setattr(calibration, "measure", lambda recipe: pace)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", *arguments, "--dry-run"]) == 0
    return capsys.readouterr()


def test_dry_run_prints_the_plan_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    out, err = dry_run("ant", "--depth", "64", monkeypatch=monkeypatch, capsys=capsys)
    # 2,507,200 updates of 0.1 s each are 69.6 hours.
    for quantity in ("12,787,600", "31,744", "2,507,200", "GFLOP", "839.7 MB", "69.6 h"):
        assert quantity in out
    assert err == "warning: about 70 hours on this machine\n"
    assert max(map(len, out.splitlines())) <= 80
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_of_a_busy_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dry_run("reacher", monkeypatch=monkeypatch, capsys=capsys)[1] == ""
    load = [1.9]

    def measure(recipe: object) -> calibration.Pace:
        load[0] = 8.0
        return calibration.Pace(env_step=0.0, update=1e-3)

    monkeypatch.setattr(os, "getloadavg", lambda: (load[0], 1.0, 1.0))
    monkeypatch.setattr(calibration, "measure", measure)
    assert main(["train", "reacher", "--dry-run"]) == 0
    told = "the load average is 1.9; what else runs here makes times longer\n"
    assert capsys.readouterr().err == told
    # Windows has no such function.
    monkeypatch.delattr(os, "getloadavg")
    assert main(["train", "reacher", "--dry-run"]) == 0
    assert capsys.readouterr().err == ""


def test_a_resumed_run_takes_the_time_of_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(OLD_RUN, tmp_path / "run")
    longer = ("--resume", "--run-dir", str(run), "--env-steps", "1520")
    out, _ = dry_run(*longer, monkeypatch=monkeypatch, capsys=capsys)
    # Of 144 updates of 0.1 s each, 72 are done.
    assert "7.2 s" in out and "measured just now, 50% done" in out


def test_another_task_with_the_settings_of_a_file_is_evaluated_on_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluated_on(*arguments: str) -> str:
        flags = (*arguments, "--recipe", str(OLD_RUN / "recipe.json"))
        out, _ = dry_run(*flags, monkeypatch=monkeypatch, capsys=capsys)
        return re.findall(r"evaluated on (\w+)", out)[0]

    assert evaluated_on("ant_u4_maze") == "ant_u4_maze_eval"
    assert evaluated_on("ant_u4_maze", "--eval-name", "ant_u4_maze") == "ant_u4_maze"
    assert evaluated_on("reacher") == evaluated_on() == "reacher"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["train", "ant_bigmaze"], 1, "unknown task 'ant_bigmaze'; nearest: ant_big_maze"),
        (["train", "--depth", "-4", "ant"], 1, "--actor-depth must be a positive multiple of 4"),
        (["train", "--depth", "7", "--depth", "10", "ant"], 1, "got 10"),
        (["train", "ant", "--depth", "6"], 1, "multiple of 4"),
        (["train", "ant", "--depth", "deep"], 2, "deep"),
        (["train", "ant", "--episode-length", "0"], 1, "--episode-length must be at least 1"),
        (["train", "ant", "--device", "cuda:99"], 1, "--device cuda:99"),
        (["train", "--resume"], 1, "--resume needs --run-dir"),
        (["train", "--resume", "--run-dir", "nowhere"], 1, "nowhere holds no run"),
        (["train", "--dpeth", "8"], 2, "--depth"),
        (["train", "ant", "--env-steps", "9"], 1, "--env-steps 9 ends within the prefill"),
        (["eval", "nowhere"], 1, "nowhere is no run directory"),
        (["eval", "nowhere", "--num-envs", "0"], 1, "--num-envs must be at least 1, got 0"),
        (["fly"], 2, "unknown command 'fly'"),
        ([], 2, "usage"),
    ],
)
def test_wrong_input_is_told_without_a_traceback(
    arguments: list[str], status: int, message: str, tmp_path: Path
) -> None:
    result = warm_torch_crl(*arguments, cwd=tmp_path)
    assert result.returncode == status
    assert message in result.stderr + result.stdout
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["train", "--task", "ant"], "the task is given without one: torch-crl train ant"),
        (["train", "--depth", "8", "--task"], "torch-crl train reacher"),
        (["eval", "--run-dir=runs/a"], "the run is given without one: torch-crl eval runs/a"),
        (["sweep", "--task", "ant"], "each task is given without one: torch-crl sweep ant"),
        (["study", "--name", "depth"], "the study is given without one: torch-crl study depth"),
    ],
)
def test_what_needs_no_flag_is_told(
    arguments: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problems"),
    [
        (
            ["eval", "x", "--num-envs", "1e13", "--seed", "-1", "--video-seconds", "inf"],
            [
                "--num-envs must be at most 2147483647, got 10000000000000",
                "--seed must be at least 0, got -1",
                "--video-seconds must be a finite number, got inf",
            ],
        ),
        (["eval", "x", "--video-seconds", "nan"], ["--video-seconds must be a finite number"]),
        (["eval", "x", "--video-seconds", "1e308"], ["--video-seconds must be at most 86400, got"]),
        (["compare", "ant", "--seeds", "1e9"], ["--seeds must be at most 10000, got 1000000000"]),
        (["watch", "x", "--episode-length", "-1"], ["--episode-length must be at least 0, got -1"]),
        (
            ["compare", "ant", "--depths", "4", "1e9", "--evaluations", "-1"],
            ["--depths must be at most 1048576, got 1000000000", "--evaluations must be at least"],
        ),
        (["sweep", "ant", "--runs-per-gpu", "0"], ["--runs-per-gpu must be at least 1, got 0"]),
        (["sweep", "\udcff"], ["tasks must be text in UTF-8, got '\\udcff'"]),
        (["study", "depth", "--parallel", "-1"], ["--parallel must be at least 0, got -1"]),
        (["bench", "--batch", "0"], ["--batch must be at least 1, got 0"]),
        (["bench", "--depths"], ["--depths are positive multiples of 4, got none"]),
        (["compare", "--runs", "~/no-such-runs"], [f"{Path.home() / 'no-such-runs'}"]),
        (["train", "ant", "--depth", "1e7"], ["--depth must be at most 1048576, got 10000000"]),
    ],
)
def test_all_values_out_of_range_are_told_at_once(
    arguments: list[str], problems: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert all(problem in told for problem in problems)
    assert len(problems) == 1 or f"torch-crl: {len(problems)} problems:" in told


def test_wrong_values_are_told_beside_the_defaults_of_the_preset(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "reacher", "--env-steps", "1.5"])
    told = " ".join(capsys.readouterr().err.replace("\u2502", " ").split())
    assert told.count("must be a whole number, as 1000000 or 1e6, got '1.5'") == 1
    assert "(default: 120000)" in told


def test_flags_may_stand_before_the_task(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [
        dry_run(*arguments, monkeypatch=monkeypatch, capsys=capsys)[0]
        for arguments in (["ant", "--depth", "8"], ["--depth", "8", "ant"], ["--depth=8", "ant"])
    ]
    assert texts[0] == texts[1] == texts[2]
    assert "8 / 8" in texts[0]
    overridden = ["ant", "--critic-depth", "16", "--depth", "8"]
    assert "8 / 16" in dry_run(*overridden, monkeypatch=monkeypatch, capsys=capsys)[0]


def test_help_shows_the_defaults_of_the_task() -> None:
    for task, width in (("reacher", "64"), ("ant", "256")):
        text = " ".join(torch_crl("train", task, "--help").stdout.replace("│", " ").split())
        assert f"Number of units of every hidden layer. (default: {width})" in text


def test_own_task_by_name_trains_and_evaluates(tmp_path: Path) -> None:
    examples = EXAMPLES
    run_dir = tmp_path / "run"
    result = warm_torch_crl(
        "train", "own_task:make", *TINY_FLAGS, "--run-dir", str(run_dir), cwd=examples
    )
    assert result.returncode == 0, result.stderr
    evaluate = ("eval", str(run_dir), "--num-envs", "4")
    # Only the run's files name the module, and they may be anybody's.
    refused = warm_torch_crl(*evaluate, cwd=examples)
    assert refused.returncode == 1 and "would import own_task (of own_task:make)" in refused.stderr
    # The installed command, which has no place of its own among those that Python searches.
    assert torch_crl(*evaluate, "--task", "own_task:make", cwd=examples).returncode == 0
    elsewhere = warm_torch_crl(*evaluate, "--trust", cwd=tmp_path)
    assert elsewhere.returncode == 1
    assert f"trained with {examples / 'own_task.py'}: go to that folder" in elsewhere.stderr


def test_a_policy_with_shared_weights_is_evaluated_at_another_depth(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny(networks={"block": "gated"}, algorithm={"chunk": 2}), tmp_path / "run", show=False)
    scores = []
    for depth in ("4", "16"):
        flags = ["--num-envs", "4", "--depth", depth, "--json"]
        assert main(["eval", str(tmp_path / "run"), *flags]) == 0
        scores.append(json.loads(capsys.readouterr().out)["final_distance"])
    assert scores[0] != scores[1]
    assert main(["eval", str(OLD_RUN), "--num-envs", "2", "--depth", "8"]) == 1
    assert "with --block published is fixed at 4" in capsys.readouterr().err
