"""Sweeps: grids and their names, and trials in processes that fail, are killed, and go on."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.recipes import TINY
from torch_crl.cli import sweep as command
from torch_crl.cli.main import main
from torch_crl.envs.registry import make_task
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.errors import UsageError
from torch_crl.recipe.checks import RecipeError
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.runs.directory import RunDirectory, RunDirectoryError
from torch_crl.sweep import driver
from torch_crl.sweep.driver import SweepResult, run_trials
from torch_crl.sweep.grid import Trial, check_trials, grid
from torch_crl.sweep.launch import Launch
from torch_crl.sweep.launchers import LocalLauncher, local_launcher
from torch_crl.sweep.ray_launcher import ray_launcher
from torch_crl.sweep.results import collect
from torch_crl.sweep.worker import is_finished, log_of, other_run_in, work
from torch_crl.system.threads import usable_cpus

FAKE_WORKER = (str(ROOT / "tests" / "helpers" / "sweep_worker.py"),)
TINY_SETTINGS = {f"{part}.{name}": v for part, values in TINY.items() for name, v in values.items()}


def fakes(*seeds: int) -> list[Trial]:
    return grid(["reacher"], axes={"seed": seeds}, settings=TINY_SETTINGS)


def launcher(**options: Any) -> LocalLauncher:
    return LocalLauncher(**({"parallel": 4, "cpus_per_run": 1, "worker": FAKE_WORKER} | options))


def sweep(trials: list[Trial], folder: Path, **options: Any) -> SweepResult:
    using = options.pop("launcher", None) or launcher()
    return run_trials(trials, folder, launcher=using, launch=Launch(**options), show=False)


def trace(folder: Path, trial: Trial) -> list[dict[str, Any]]:
    """What the stand-in wrote when it began and ended this trial."""
    path = folder / f"{trial.name}.trace"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_grid_is_the_product_on_top_of_each_preset() -> None:
    axes = {"depth": ["4", "8"], "actor-learning-rate": ["1e-3"], "system.seed": [0, 1]}
    trials = grid(["reacher", "ant"], axes=axes, settings={"env_steps": "5e6"})
    assert [trial.name for trial in trials[:3]] == [
        "reacher_crl_depth4_actor_learning_rate0.001_seed0",
        "reacher_crl_depth4_actor_learning_rate0.001_seed1",
        "reacher_crl_depth8_actor_learning_rate0.001_seed0",
    ]
    assert len(trials) == 8
    wanted = with_changes(
        preset("ant", depth=8),
        algorithm={"actor_learning_rate": 1e-3},
        budget={"env_steps": 5_000_000},
        system={"seed": 1},
    )
    assert trials[-1].recipe == wanted


def test_a_single_depth_beats_both_and_an_algorithm_brings_its_preset() -> None:
    axes = {"critic_depth": [16], "depth": [8], "algo": ["crl", "sac"]}
    ours, sac = grid(["reacher"], axes=axes)
    assert (ours.recipe.networks.actor_depth, ours.recipe.networks.critic_depth) == (8, 16)
    assert ours.name == "reacher_crl_critic_depth16_depth8"
    sac_preset = preset("reacher", depth=8, algo="sac")
    assert sac.recipe == with_changes(sac_preset, networks={"critic_depth": 16})


def test_names_are_folder_names() -> None:
    axes = {"contrastive_loss": ["binary_nce"]}
    (trial,) = grid(["gymnasium:PointMaze_UMaze-v3"], axes=axes)
    assert trial.name == "gymnasium_PointMaze_UMaze-v3_crl_contrastive_loss-binary_nce"


def test_everything_wrong_with_a_grid_is_told_at_once() -> None:
    axes = {"dpeth": [4], "contrastive_loss": ["binarynce"], "seed": ["0", "00"], "width": ["w"]}
    with pytest.raises(RecipeError) as caught:
        grid(["ant_bigmaze"], axes=axes | {"task": ["ant"]}, settings={"discount": "x"})
    for text in (
        "dpeth: no field of a recipe has this name; nearest: depth",
        "got 'binarynce'; nearest: binary_nce",
        "seed: 0 given twice",
        "width: must be a whole number, as 1000000 or 1e6, got 'w'",
        "task: tasks are given without a flag",
        "discount: must be a number, got 'x'",
        "nearest: ant_big_maze",
    ):
        assert text in str(caught.value)
    assert len(caught.value.problems) == 7


def test_problems_of_recipes_are_told_with_their_trials(tmp_path: Path) -> None:
    trials = grid(["reacher"], axes={"depth": [4, 6], "seed": [0, 1]}, settings={"discount": 2})
    with pytest.raises(RecipeError) as caught:
        sweep(trials, tmp_path)
    told = caught.value.problems
    assert told[0].startswith("all 4 trials: --discount must be above 0 and below 1")
    assert told[1].startswith("reacher_crl_depth6_seed0, reacher_crl_depth6_seed1: --actor-depth")
    with pytest.raises(RecipeError, match="two trials have this name"):
        check_trials([*fakes(0), *fakes(0)])
    assert list(tmp_path.iterdir()) == []


def test_failures_are_retried_and_told_and_the_others_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    trials = fakes(0, 10, 11, 13)
    result = run_trials(trials, tmp_path, launcher=launcher(), launch=Launch(retries=1))
    finished, fails, fails_once, ends_early = trials
    assert result.finished == (tmp_path / finished.name, tmp_path / fails_once.name)
    assert result.failed == {
        fails.name: "exit status 1; RuntimeError: the critic is not finite",
        ends_early.name: "ended without a result",
    }
    begun = {
        trial.name: sum("begin" in note for note in trace(tmp_path, trial)) for trial in trials
    }
    assert list(begun.values()) == [1, 2, 2, 2]
    told = capfd.readouterr().err
    assert "  RuntimeError: the critic is not finite" in told
    assert "(2 of 4 finished, 2 failed)" in told

    records = json.loads((tmp_path / "results.json").read_text())["trials"]
    assert [record["status"] for record in records] == ["finished", "failed", "finished", "failed"]
    # Of 0, 0.1, ..., 0.5 the last five.
    assert records[0]["score"] == pytest.approx(0.3)
    assert records[0]["success_any"] == pytest.approx(0.6)

    again = sweep(trials, tmp_path, retries=0)
    assert again.failed.keys() == result.failed.keys()
    begun_again = [sum("begin" in note for note in trace(tmp_path, trial)) for trial in trials]
    assert begun_again == [1, 3, 2, 3]


def test_results_of_earlier_sweeps_in_the_folder_are_kept(tmp_path: Path) -> None:
    first, second, third = fakes(0, 1, 2)
    results = tmp_path / "results.json"
    results.write_text("[1, 2]")
    sweep([first, second], tmp_path)
    shutil.rmtree(tmp_path / second.name)
    sweep([third], tmp_path)
    sweep([third], tmp_path)
    records = json.loads(results.read_text())["trials"]
    # The run of the second one is no longer there.
    assert [record["trial"] for record in records] == [third.name, first.name]
    assert [record["status"] for record in records] == ["finished", "finished"]


def test_a_path_that_cannot_be_looked_at_fails_its_trial_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unstartable, unreadable, good = trials = fakes(0, 1, 2)

    def log_in_a_strange_place(run_dir: Path) -> Path:
        name = "x" * 300 if run_dir.name == unstartable.name else run_dir.name
        return log_of(run_dir.with_name(name))

    def finished(run_dir: Path) -> bool:
        if run_dir.exists() and run_dir.name == unreadable.name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(run_dir))
        return is_finished(run_dir)

    monkeypatch.setattr(driver, "log_of", log_in_a_strange_place)
    monkeypatch.setattr(driver, "is_finished", finished)
    result = sweep(trials, tmp_path, retries=0)
    assert result.finished == (tmp_path / good.name,)
    assert result.failed[unstartable.name].startswith("could not be started: [Errno 36]")
    assert "cannot be looked for: [Errno 13]" in result.failed[unreadable.name]


def test_names_that_no_file_can_have_are_refused() -> None:
    trials = [Trial(name=f"{'x' * 239}{seed}", recipe=preset("reacher")) for seed in (0, 1)]
    check_trials(trials)
    longer = [
        Trial(name=trial.name + "\N{GREEK SMALL LETTER ALPHA}", recipe=trial.recipe)
        for trial in trials
    ]
    with pytest.raises(RecipeError, match="all 2 trials: the name is longer than 240 bytes"):
        check_trials(longer)


def test_no_more_run_at_a_time_than_asked_and_cpus_are_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a busy machine one of two workers begins a good while after the other.
    monkeypatch.setenv("SWEEP_WORKER_SECONDS", "1.5")
    trials = fakes(*range(4))
    two = local_launcher([], parallel=2, cpus_per_run=3, worker=FAKE_WORKER)
    sweep(trials, tmp_path, launcher=two)
    spans = []
    for trial in trials:
        begin, end = trace(tmp_path, trial)
        assert begin["TORCH_CRL_THREADS"] == "3"
        spans.append((begin["begin"], end["end"]))
    at_once = [sum(a <= moment < b for a, b in spans) for moment, _ in spans]
    assert max(at_once) == 2


def test_gpus_are_shared_by_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    recipe = with_changes(preset("reacher"), system={"device": "cuda"})
    four = local_launcher([recipe], runs_per_gpu=2, worker=FAKE_WORKER)
    assert (four.parallel, four.gpus) == (4, ["3", "GPU-abc"])
    with pytest.raises(RecipeError, match="--parallel 3 is more than 2 GPUs with 1 runs each"):
        local_launcher([recipe], parallel=3)
    with pytest.raises(RecipeError, match="--device cuda:1: a sweep hands out the GPUs itself"):
        local_launcher([with_changes(recipe, system={"device": "cuda:1"})])
    on_cpu = local_launcher([with_changes(recipe, system={"device": "cpu"})])
    assert (on_cpu.parallel, on_cpu.gpus) == (1, [])

    trials = fakes(0, 1, 2, 3)
    sweep(trials, tmp_path, launcher=four)
    visible = [trace(tmp_path, trial)[0]["CUDA_VISIBLE_DEVICES"] for trial in trials]
    assert sorted(visible) == ["3", "3", "GPU-abc", "GPU-abc"]


def test_a_run_directory_of_another_recipe_is_refused_by_name(tmp_path: Path) -> None:
    trials = fakes(0, 1)
    sweep(trials[:1], tmp_path)
    changed = [
        Trial(name=trial.name, recipe=with_changes(trial.recipe, algorithm={"discount": 0.9}))
        for trial in trials
    ]
    (tmp_path / trials[1].name).mkdir()
    (tmp_path / trials[1].name / "thesis.txt").touch()
    with pytest.raises(RecipeError) as caught:
        sweep(changed, tmp_path)
    another, strange = caught.value.problems
    assert another.startswith(f"{trials[0].name}: ")
    assert "--discount: 0.99 -> 0.9" in another
    assert strange.startswith(f"{trials[1].name}: ") and "is not a run" in strange
    with pytest.raises(ValueError, match=r"--discount: 0\.99 -> 0\.9"):
        (tmp_path / trials[0].name / "result.json").unlink()
        work(changed[0].recipe, tmp_path / trials[0].name, train=pytest.fail)


@pytest.mark.parametrize("algo", ["crl", "gcbc", "sac"])
def test_only_ours_with_a_checkpoint_are_resumed(tmp_path: Path, algo: str) -> None:
    (trial,) = grid(["reacher"], axes={"algo": [algo]})
    run_dir = tmp_path / trial.name
    seen = []

    def train(recipe: Any, directory: RunDirectory, *, resume: bool) -> None:
        seen.append((resume, directory.path.exists()))

    run_dir.mkdir()
    # Killed before its first checkpoint, then between two of them.
    (run_dir / "recipe.json").write_text(trial.recipe.to_json())
    work(trial.recipe, run_dir, train=train)
    assert seen == [(False, False)]
    (run_dir / "checkpoints" / "step_1_update_1").mkdir(parents=True)
    (run_dir / "recipe.json").write_text(trial.recipe.to_json())
    work(trial.recipe, run_dir, train=train)
    assert seen[1] == ((True, True) if algo != "sac" else (False, False))


@pytest.mark.parametrize("text", ["", '{"task"'])
def test_a_folder_whose_recipe_cannot_be_read_is_left_alone(tmp_path: Path, text: str) -> None:
    (trial,) = fakes(0)
    (tmp_path / "recipe.json").write_text(text)
    (tmp_path / "thesis.txt").touch()
    assert "cannot be read" in other_run_in(tmp_path, trial.recipe)
    with pytest.raises(RunDirectoryError, match="cannot be read"):
        work(trial.recipe, tmp_path, train=pytest.fail)
    assert (tmp_path / "thesis.txt").exists()


def drive(folder: Path, trials: list[Trial], **options: Any) -> BaseProcess:
    """A driver that can be killed; forked, since importing torch takes seconds."""
    context = multiprocessing.get_context("fork")
    process = context.Process(target=sweep, args=(trials, folder), kwargs=options)
    process.start()
    return process


def ended(process: BaseProcess) -> int | None:
    process.join(timeout=60)
    return process.exitcode


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


FORKS = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@FORKS
def test_killed_driver_and_workers_repeat_nothing_and_lose_nothing(tmp_path: Path) -> None:
    trials = fakes(0, 1, 2, 12)
    holds = trials[-1]
    driver = drive(tmp_path, trials)
    wait_until(lambda: trace(tmp_path, holds) and any(tmp_path.glob("*/result.json")))
    driver.kill()
    (orphan,) = (note["pid"] for note in trace(tmp_path, holds))
    assert ended(driver) == -signal.SIGKILL and alive(orphan)

    # The orphan goes on, and the second driver's worker waits for it.
    second = drive(tmp_path, trials)
    wait_until(lambda: "waiting for process" in (tmp_path / f"{holds.name}.log").read_text())
    assert len(trace(tmp_path, holds)) == 1
    # The lock goes with the orphan, so the trial begins again.
    os.kill(orphan, signal.SIGKILL)
    wait_until(lambda: len(trace(tmp_path, holds)) == 2)
    assert not alive(orphan)
    # Killed when the result was there already: the retry finds it.
    (tmp_path / holds.name / "result.json").write_text("{}")
    os.kill(trace(tmp_path, holds)[1]["pid"], signal.SIGKILL)
    assert ended(second) == 0
    for trial in trials[:3]:
        assert [next(iter(note)) for note in trace(tmp_path, trial)] == ["begin", "end"]
    assert len(trace(tmp_path, holds)) == 2
    assert {record["status"] for record in collect(trials, tmp_path, failed={})} == {"finished"}


@FORKS
@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 1), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_reach_the_workers_and_the_driver_leaves(
    tmp_path: Path, number: signal.Signals, status: int
) -> None:
    (trial,) = fakes(12)
    driver = drive(tmp_path, [trial])
    wait_until(lambda: trace(tmp_path, trial))
    assert driver.pid is not None
    os.kill(driver.pid, number)
    # A KeyboardInterrupt is an error to multiprocessing.
    assert ended(driver) == status
    assert "told to stop" in (tmp_path / f"{trial.name}.log").read_text()
    assert not alive(trace(tmp_path, trial)[0]["pid"])
    assert json.loads((tmp_path / "results.json").read_text())["trials"] == [
        {"trial": trial.name, "status": "unfinished"}
    ]


def test_progress_reads_the_last_whole_record(tmp_path: Path) -> None:
    assert RunDirectory(tmp_path).logged_env_steps == 0
    record = {"kind": "train", "updates": 0, "seconds": 0.0, "x" * 99: 1.0}
    whole = "".join(json.dumps(record | {"env_steps": k}) + "\n" for k in range(100))
    (tmp_path / "metrics.jsonl").write_text(whole + '{"env_steps": 10')
    assert RunDirectory(tmp_path).logged_env_steps == 99


def test_the_command_trains_and_prints_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    settings = [f"{name}={value}" for name, value in TINY_SETTINGS.items()]
    arguments = ["reacher", *(f"--set={text}" for text in settings), "--grid", "seed=1"]
    arguments += ["--out", str(tmp_path / "out")]
    assert command.main([*arguments, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "1 in all" in planned and "reacher_crl_seed1" in planned
    assert list(tmp_path.iterdir()) == []

    # Workers run what started them, and not what lies where the command is given.
    shadow = tmp_path / "torch_crl" / "__init__.py"
    shadow.parent.mkdir()
    shadow.write_text("raise ImportError('this is not the package')")
    monkeypatch.chdir(tmp_path)
    assert command.main(arguments) == 0
    assert "reacher_crl_seed1" in capsys.readouterr().out
    saved = json.loads((tmp_path / "out" / "results.json").read_text())["trials"]
    assert [record["evaluations"] for record in saved] == [2]
    run_dir = tmp_path / "out" / "reacher_crl_seed1"
    assert json.loads((run_dir / "recipe.json").read_text())["system"]["simulator_threads"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--grid", "depth"], "'depth' should be a name, an equals sign and values"),
        (["--grid", "seed=0", "--grid", "seed=1"], "seed is given twice; write seed=0,1"),
        (["--set", "seed=0,1"], "--set seed takes one value"),
        (["--grid", "dpeth=4"], "nearest: depth"),
        (["--retries", "-1"], "--retries must be at least 0, got -1"),
    ],
)
def test_wrong_commands_are_told(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "reacher", *arguments, "--out", str(tmp_path / "out")]) == 1
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def ray_cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_over_ray_ends_as_on_one_machine(tmp_path: Path) -> None:
    trials = fakes(0, 10, 11)
    over_ray = ray_launcher([trial.recipe for trial in trials], worker=FAKE_WORKER)
    assert (over_ray.parallel, over_ray.gpus_per_run, over_ray.shut_down) == (3, 0, False)
    result = sweep(trials, tmp_path, launcher=over_ray)
    assert result.failed == {
        trials[1].name: "exit status 1; RuntimeError: the critic is not finite"
    }
    begun = [sum("begin" in note for note in trace(tmp_path, trial)) for trial in trials]
    assert begun == [1, 2, 2]
    assert trace(tmp_path, trials[0])[0]["TORCH_CRL_THREADS"] == "1"
    assert sweep(trials[:1], tmp_path, launcher=over_ray).failed == {}
    assert len(trace(tmp_path, trials[0])) == 2


@pytest.mark.usefixtures("ray_cluster")
def test_ray_passes_a_stop_on_and_waits_for_the_worker(tmp_path: Path) -> None:
    (trial,) = fakes(12)
    job = ray_launcher([trial.recipe], worker=FAKE_WORKER).start(
        tmp_path / trial.name, trial.recipe
    )
    wait_until(lambda: trace(tmp_path, trial))
    assert job.status() is None
    job.stop()
    wait_until(lambda: job.status() is not None)
    assert job.status() == 143
    assert "told to stop" in (tmp_path / f"{trial.name}.log").read_text()


@pytest.mark.usefixtures("ray_cluster")
def test_what_ray_cannot_do_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="--cpus-per-run 3 is more than any node"):
        ray_launcher([], cpus_per_run=3)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RecipeError, match=r"pip install 'ray"):
        ray_launcher([])


@pytest.mark.parametrize(
    "command", [["sweep", "reacher"], ["compare", "reacher"], ["study", "depth"]]
)
def test_a_dry_run_with_ray_checks_for_ray(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*command, "--out", str(tmp_path / "out"), "--dry-run"]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(arguments) == 0
    assert main([*arguments, "--launcher", "ray"]) == 1
    assert "--launcher ray needs Ray: pip install" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["abc", "0", "-1", "1.5", ""])
def test_a_wrong_number_of_cpus_is_told(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CRL_THREADS", asked)
    with pytest.raises(UsageError, match=f"TORCH_CRL_THREADS must be .* at least 1, got '{asked}'"):
        usable_cpus()


def test_every_cpu_of_a_recipe_is_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cpus() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("TORCH_CRL_THREADS", "3")
    model = make_task("reacher").model
    counts = [CpuSimulator(model, num_envs=8, num_threads=n)._batch.nthread for n in (0, 2)]
    assert (usable_cpus(), counts) == (3, [3, 2])
