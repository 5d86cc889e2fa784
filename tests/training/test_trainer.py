"""Whole runs: they learn, resume bit for bit, survive kills, and stop when numbers go bad."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import warm
from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_same_run, final_tensors
from torch_crl import evaluate, load_policy
from torch_crl.envs.simulators import SimulatorError
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import StepResult
from torch_crl.errors import OwnCodeError, TorchCrlError
from torch_crl.recipe.checks import RecipeError
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import Moment, RunDirectory, default_run_dir
from torch_crl.runs.metrics import DivergenceError, UpdateMetrics, first_not_finite
from torch_crl.system import checkpoint
from torch_crl.training import saving
from torch_crl.training.building import build_run
from torch_crl.training.trainer import train


def ant_recipe(**parts: dict[str, Any]) -> Recipe:
    """Falls and resets often, in a replay that wraps."""
    budget = {"env_steps": 400, "checkpoints": 20, "evaluations": 3, "replay_rows": 16}
    return tiny("ant", budget=budget, task={"num_envs": 4, "episode_length": 12}, **parts)


@pytest.mark.parametrize("parity", ["none", "reference"])
def test_resume_equals_the_uninterrupted_run(tmp_path: Path, parity: str) -> None:
    recipe = ant_recipe(algorithm={"parity": parity})
    train(recipe, tmp_path / "whole", show=False)
    train(recipe, tmp_path / "parts", show=False)
    newest, older, *_ = RunDirectory(tmp_path / "parts").saved_checkpoints
    # Go back to the checkpoint before the last one: the newest is damaged.
    (newest / checkpoint.TENSORS).write_bytes(b"not a safetensors file")
    assert older.exists()
    train(recipe, tmp_path / "parts", resume=True, show=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resuming_on_another_number_of_threads_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDirectory(tmp_path / "run")
    train(tiny(), run.path)
    train(tiny(), run.path, resume=True)
    assert "computed until now" not in capsys.readouterr().err
    monkeypatch.setattr(saving, "thread_count", lambda recipe: 2)
    train(tiny(), run.path, resume=True)
    told = capsys.readouterr().err
    assert re.search("until now as fp32, .*, CPU threads: 1, from here on as .*threads: 2: ", told)
    # Of before the number was saved.
    folder = run.saved_checkpoints[0]
    tensors, meta = checkpoint.load(folder)
    shutil.rmtree(folder)
    checkpoint.save(folder, tensors, {name: meta[name] for name in meta if name != "threads"})
    train(tiny(), run.path, resume=True)
    assert "computed until now" not in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tiny()
    first = train(recipe, tmp_path / "run", show=False)
    before = final_tensors(tmp_path / "run")
    second = train(recipe, tmp_path / "run", resume=True)
    assert "the run is finished; a larger --env-steps lets it go on" in capsys.readouterr().err
    assert second.evaluation == first.evaluation
    assert before[1] == final_tensors(tmp_path / "run")[1]


def spawn(recipe: Recipe, run_dir: Path, *flags: str) -> subprocess.Popen[str]:
    """`train` in a process of its own, as the command line starts it."""
    program = (
        "import sys; from pathlib import Path; from torch_crl import Recipe, train\n"
        "try:\n"
        "    train(Recipe.from_json(sys.argv[1]), Path(sys.argv[2]), resume='resume' in sys.argv)\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(130)\n"
    )
    arguments = [sys.executable, "-c", program, recipe.to_json(), str(run_dir), *flags]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def test_ctrl_c_of_a_process_saves_and_leaves(tmp_path: Path) -> None:
    # No checkpoint is due before the end: the one that is there came from the signal.
    budget = {"env_steps": 40_000, "checkpoints": 1, "evaluations": 1, "replay_rows": 50}
    recipe = tiny("ant", budget=budget, system={"device": "cpu"})
    process = spawn(recipe, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count('"train"') > 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "--resume --run-dir" in errors
    assert final_tensors(tmp_path / "run")[1]["updates_done"] > 0
    assert load_policy(tmp_path / "run")(torch.zeros(29), torch.zeros(2)).shape == (8,)


def test_stopped_between_two_updates_equals_the_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_crl.training import crl_run as run_module

    recipe = ant_recipe(system={"seed": 3})
    train(recipe, tmp_path / "whole", show=False)
    real = run_module.CrlRun.update

    def update_then_interrupt(self: run_module.CrlRun) -> dict[str, torch.Tensor]:
        metrics = real(self)
        if self.updates_done == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return metrics

    monkeypatch.setattr(run_module.CrlRun, "update", update_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "parts", show=False)
    stopped = final_tensors(tmp_path / "parts")[1]
    assert stopped["updates_done"] == 9 and recipe.updates_per_collection == 2
    monkeypatch.undo()
    train(recipe, tmp_path / "parts", resume=True, show=False)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.parametrize("again", [False, True], ids=["once", "at each reset too"])
@pytest.mark.parametrize("fault", ["own code", "NaN", "no room"])
def test_an_env_that_fails_loses_no_updates(
    fault: str,
    again: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Chunks, whose rest must not be carried out in other episodes.
    recipe = with_changes(ant_recipe(), budget={"checkpoints": 1}, algorithm={"chunk": 4})
    step, reset, check, calls = TaskVectorEnv.step, TaskVectorEnv.reset, CpuSimulator.check, 0

    def now() -> bool:
        """In the middle of the sixth collection."""
        return calls == 5 * recipe.budget.unroll_length + 3

    def fails(self: TaskVectorEnv, action: torch.Tensor) -> StepResult:
        nonlocal calls
        calls += self.num_envs == recipe.task.num_envs
        if now() and fault == "own code":
            # Physics has gone on, and not the rest of the env.
            self.simulator.step(1)
            raise OwnCodeError("boom")
        return step(self, action * torch.nan if now() and fault == "NaN" else action)

    def has_no_room(self: CpuSimulator) -> None:
        check(self)
        if fault == "no room" and calls == 6 * recipe.budget.unroll_length:
            raise SimulatorError("no room")

    def fails_again(self: TaskVectorEnv, *mask: torch.Tensor) -> None:
        if calls > 5 * recipe.budget.unroll_length:
            raise KeyError("boom")
        reset(self, *mask)

    monkeypatch.setattr(TaskVectorEnv, "step", fails)
    monkeypatch.setattr(CpuSimulator, "check", has_no_room)
    if again:
        monkeypatch.setattr(TaskVectorEnv, "reset", fails_again)
    run = RunDirectory(tmp_path / "run")
    message = {"own code": "boom", "NaN": "the action that was given is NaN", "no room": "no room"}
    with pytest.raises(TorchCrlError, match=message[fault]):
        train(recipe, run.path)
    told = capsys.readouterr().err.count("goes on from here")
    if again:
        assert told == 0 and not run.saved_checkpoints
        return
    assert told == 1
    tensors, meta = checkpoint.load(run.saved_checkpoints[0])
    assert meta["collections_done"] == 5 and meta["updates_done"] > 0
    assert int(tensors["replay/next_row"]) == 5 * recipe.budget.unroll_length
    # The envs are where an episode begins, without a plan.
    assert not tensors["collector/env/steps"].any() and not tensors["collector/age"].any()
    monkeypatch.undo()
    train(recipe, run.path, resume=True, show=False)
    assert run.is_finished


def test_nan_stops_with_step_and_tensor_and_keeps_the_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch_crl.training import crl_run as run_module

    real = run_module.CrlRun.update

    def poisoned(self: run_module.CrlRun) -> dict[str, torch.Tensor]:
        if self.updates_done == 13:
            with torch.no_grad():
                self.learner.objective.networks.goal_encoder.weight[1, 2, 3] = float("nan")
        return real(self)

    monkeypatch.setattr(run_module.CrlRun, "update", poisoned)
    message = r"_loss became nan at update 13 \(180 env steps\).* checkpoint is .*step_0000000001"
    with pytest.raises(DivergenceError, match=message):
        train(ant_recipe(), tmp_path / "run", show=False)
    tensors, meta = final_tensors(tmp_path / "run")
    assert 0 < meta["updates_done"] <= 13
    assert first_not_finite({name: t for name, t in tensors.items() if "parameter" in name}) is None


def test_a_parameter_that_went_bad_in_the_last_update_is_named() -> None:
    good, bad = torch.zeros(3), torch.tensor([0.0, float("inf")])
    assert first_not_finite({"actor.weight": good, "log_alpha": bad}) == "log_alpha"


def test_update_metrics_are_means_of_all_updates() -> None:
    metrics = UpdateMetrics()
    for value in (1.0, 2.0, 6.0):
        metrics.add({"a": torch.tensor(value), "b": torch.tensor(-value)})
    metrics.sum_up(first_update=0)
    assert metrics.take_means() == {"a": 3.0, "b": -3.0}
    assert metrics.take_means() == {}


def test_means_of_a_round_in_two_parts_are_those_of_a_whole_one() -> None:
    whole, part = UpdateMetrics(), UpdateMetrics()
    losses = torch.rand(100, generator=torch.Generator().manual_seed(0))
    for number, loss in enumerate(losses):
        if number == 37:
            part.sum_up(first_update=0)
            part = UpdateMetrics(part.sums, part.count)
        for metrics in (whole, part):
            metrics.add({"loss": loss})
    for metrics in (whole, part):
        metrics.sum_up(first_update=37)
    means = whole.take_means()
    assert means == part.take_means()
    assert means["loss"] == pytest.approx(losses.double().mean().item(), rel=1e-12)


def test_a_failed_checkpoint_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    # The system grants files of 300 kB: enough for half of the replay and for the metrics. The
    # third checkpoint is only told; the last one must succeed, so the run ends in an error.
    budget = {"replay_rows": 500, "env_steps": 8000, "env_steps_per_update": 40.0}
    recipe = tiny(task={"num_envs": 16}, budget={**budget, "checkpoints": 4})
    program = tmp_path / "program.py"
    program.write_text(
        "import resource, sys; from torch_crl import Recipe, train\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "train(Recipe.from_json(sys.argv[1]), sys.argv[2])\n"
    )
    result = warm.run(str(program), recipe.to_json(), str(tmp_path / "run"))
    assert "warning: could not write the checkpoint" in result.stderr
    assert "CheckpointError: could not write the checkpoint" in result.stderr
    assert result.returncode == 1
    _, meta = final_tensors(tmp_path / "run")
    assert 0 < meta["updates_done"] < recipe.total_updates


def test_records_after_the_checkpoint_are_written_again_and_not_twice(tmp_path: Path) -> None:
    moments = [(10, 0), (20, 2), (30, 4)]
    lines = [
        json.dumps({"kind": "train", "env_steps": steps, "updates": updates, "seconds": 0}) + "\n"
        for steps, updates in moments
    ]
    # Stopped after one of the two updates that belong to step 30; half a line from a kill.
    (tmp_path / "metrics.jsonl").write_text("".join(lines) + '{"kind": "tr')
    run = RunDirectory(tmp_path)
    assert run.drop_metrics_after(Moment(30, 3)) == []
    kept = [(record["env_steps"], record["updates"]) for record in run.read_metrics("train")]
    assert kept == moments[:2]


def test_run_directory_rules(tmp_path: Path) -> None:
    recipe, run_dir = tiny(), tmp_path / "run"
    with pytest.raises(RecipeError, match="holds no run"):
        train(recipe, run_dir, resume=True)
    train(recipe, run_dir, show=False)
    with pytest.raises(RecipeError, match="--resume continues the run in it, --overwrite"):
        train(recipe, run_dir, show=False)
    with pytest.raises(RecipeError, match=r"asked to change --width: 8 -> 16"):
        train(tiny(networks={"width": 16}), run_dir, resume=True, show=False)
    with pytest.raises(RecipeError, match="exclude each other"):
        train(recipe, run_dir, resume=True, overwrite=True, show=False)
    train(recipe, run_dir, overwrite=True, show=False)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.tex").write_text("")
    with pytest.raises(RecipeError, match="not a run; it is left alone"):
        train(recipe, tmp_path / "precious", overwrite=True, show=False)
    with pytest.raises(RecipeError, match="cannot be written"):
        train(recipe, "/proc/nowhere/run", show=False)


def test_two_runs_of_one_second_do_not_share_a_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(time, "strftime", lambda _: "20260101-000000")
    first = default_run_dir(tiny())
    assert first == Path("runs/reacher_seed0_20260101-000000")
    first.mkdir(parents=True)
    assert default_run_dir(tiny()) == Path("runs/reacher_seed0_20260101-000000_2")


def test_a_run_goes_on_only_where_and_with_what_it_began(tmp_path: Path) -> None:
    recipe = tiny()
    train(recipe, tmp_path / "run", show=False)
    saved = RunDirectory(tmp_path / "run").saved_checkpoints
    folder, tensors, meta, _ = checkpoint.load_newest(saved)
    later = [folder.with_name(f"step_{number}_update_0") for number in (10**12 - 2, 10**12 - 1)]
    checkpoint.save(later[0], tensors, meta | {"device": "cuda"})
    with pytest.raises(checkpoint.CheckpointError, match="written on cuda and this run is on cpu"):
        train(recipe, tmp_path / "run", resume=True, show=False)
    del tensors["replay/achieved"]
    checkpoint.save(later[1], tensors, meta)
    with pytest.raises(checkpoint.CheckpointError, match="replay/achieved is missing"):
        train(recipe, tmp_path / "run", resume=True, show=False)


def test_killed_before_the_first_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    recipe = ant_recipe()
    train(recipe, tmp_path / "whole", show=False)
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "recipe.json").write_text(recipe.to_json())
    train(recipe, tmp_path / "killed", resume=True, show=False)
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_parity_checkpoints_a_task_that_gives_one_tensor_twice(tmp_path: Path) -> None:
    recipe = tiny("own_task:make", algorithm={"parity": "reference"})
    train(recipe, tmp_path / "run", show=False)
    train(recipe, tmp_path / "run", resume=True, show=False)


def test_what_a_run_leaves_behind(tmp_path: Path) -> None:
    recipe = tiny(budget={"evaluations": 3, "checkpoints": 2})
    result = train(recipe, tmp_path / "run", show=False)
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {
        "recipe.json",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "policies",
        "learning_curve.png",
        "result.json",
        "machine.json",
    }
    assert Recipe.from_json((tmp_path / "run" / "recipe.json").read_text()) == recipe
    evaluations = RunDirectory(tmp_path / "run").read_metrics("evaluation")
    assert len(evaluations) == 3
    assert evaluations[-1] == {"kind": "evaluation"} | result.evaluation
    assert evaluations[-1]["env_steps"] == recipe.total_env_steps
    assert evaluations[-1]["updates"] == recipe.total_updates
    trained = RunDirectory(tmp_path / "run").read_metrics("train")
    assert len(trained) == recipe.prefill_collections + recipe.collections
    for name in ("critic_loss", "gradient_norm_actor", "update_size_critic"):
        assert name not in trained[0] and trained[-1][name] > 0
    assert result.learning_curve.read_bytes().startswith(b"\x89PNG")
    policies = RunDirectory(tmp_path / "run").saved_policies
    assert len(policies) == 2
    size = sum(path.stat().st_size for path in policies[0].iterdir())
    actor = recipe.update_cost.networks.actor.parameters
    assert size < 4 * actor + 5_000


def test_tensorboard_can_read_the_run(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny(), tmp_path / "run", show=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"evaluation/success_any", "train/critic_loss", "train/updates_per_second"} <= tags


def test_policy_takes_one_or_many_and_numpy_or_torch(tmp_path: Path) -> None:
    train(tiny("ant"), tmp_path / "run", show=False)
    policy = load_policy(tmp_path / "run")
    states, goals = torch.randn(5, 29), torch.randn(5, 2)
    actions = policy(states, goals)
    assert actions.shape == (5, 8) and actions.abs().max() < 1
    torch.testing.assert_close(policy(states[3], goals[3]), actions[3])
    array = policy(states.double().numpy(), goals.numpy())
    torch.testing.assert_close(torch.from_numpy(array), actions)
    with pytest.raises(ValueError, match=r"states of 29 and goals of 2 numbers.* \[5, 28\]"):
        policy(states[:, 1:], goals)
    folder = RunDirectory(tmp_path / "run").saved_policies[0]
    torch.testing.assert_close(load_policy(folder)(states, goals), actions)
    with pytest.raises(checkpoint.CheckpointError, match="give the run directory instead"):
        load_policy(RunDirectory(tmp_path / "run").saved_checkpoints[0])


def test_learns_a_toy_task_in_seconds(tmp_path: Path) -> None:
    recipe = with_changes(
        preset("own_task:make"),
        task={"num_envs": 32, "num_eval_envs": 64},
        networks={"width": 32},
        algorithm={"batch_size": 128},
        budget={
            "env_steps": 20_000,
            "unroll_length": 25,
            "env_steps_per_update": 16.0,
            "prefill_rows": 100,
            "replay_rows": 1000,
            "evaluations": 1,
            "checkpoints": 1,
        },
        # In so short a run the time at the goal is between 0.4 and 0.8, depending on the seed.
        system={"device": "cpu", "torch_threads": 1, "seed": 1},
    )
    untrained = evaluate(build_run(recipe).policy, "own_task:make", num_envs=64, episode_length=100)
    assert untrained["time_at_goal_share"] < 0.2
    threads = torch.get_num_threads()
    trained = train(recipe, tmp_path / "run", show=False).evaluation
    assert torch.get_num_threads() == threads
    assert trained["success_any"] >= 0.9
    assert trained["time_at_goal_share"] >= 0.6
    # The critic that made it possible beats chance (1 / 128) by far.
    record = RunDirectory(tmp_path / "run").read_metrics("train")[-1]
    assert record["categorical_accuracy"] > 10 / 128
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["task"]["num_envs"] == 32
