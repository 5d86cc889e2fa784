"""Collections that run beside the updates: what enters the replay, when, and acted by whom."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_same_run
from torch_crl.envs.gymnasium.errors import ForeignEnvError
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import StepResult
from torch_crl.experience.overlap import OverlappingCollector, Staging
from torch_crl.experience.replay import Replay, Transition
from torch_crl.recipe import checks
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.system import checkpoint
from torch_crl.system.threads import torch_threads
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun
from torch_crl.training.trainer import train


def overlapped(**parts: dict[str, Any]) -> Recipe:
    return tiny("reacher", system={"overlap": "on", "torch_threads": 1}, **parts)


@pytest.fixture
def any_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlap is refused on the CPU, where it gains nothing and does the same."""
    monkeypatch.setattr(checks, "_simulator_problems", lambda recipe: [])


def test_staged_steps_enter_the_replay_oldest_first() -> None:
    replay = Replay(rows=8, num_envs=2, state_size=1, action_size=1, goal_slice=(0, 1))
    staging = Staging(rows=5, num_envs=2, state_size=1, goal_size=1, action_size=1)
    for turn in range(3):
        for step in range(5):
            number = 10.0 * turn + step
            row = torch.tensor([[number], [-number]])
            diverged = torch.tensor([False, step == 4])
            step_of_all = Transition(row, row / 100, row + 1, torch.tensor([turn, turn]), diverged)
            staging.write(step_of_all)
            staging.advance()
        staging.move_to(replay)
        assert staging.filled == 0
    # 15 rows passed through a ring of 8: slots 0 to 6 hold rows 8 to 14, slot 7 holds row 7.
    expected = [13.0, 14.0, 20.0, 21.0, 22.0, 23.0, 24.0, 12.0]
    assert replay.storage["state"][:, 0, 0].tolist() == expected
    assert replay.storage["state"][:, 1, 0].tolist() == [-number for number in expected]
    assert torch.allclose(replay.storage["action"] * 100, replay.storage["state"])
    assert torch.equal(replay.storage["achieved"], replay.storage["state"] + 1)
    # Trajectories 0 to 2; in env 1 the last step of each diverged.
    assert replay.storage["last_row"][:3].tolist() == [[4, 3], [9, 8], [14, 13]]


def test_a_collection_acts_with_the_weights_of_its_start() -> None:
    run = build_run(overlapped())
    collector, actor = run.collector, run.learner.actor
    assert isinstance(collector, OverlappingCollector)
    reference = build_run(overlapped())
    assert isinstance(reference.collector, OverlappingCollector)

    collector.start(5)
    with torch.no_grad():
        actor.output_bias += 1.0
    collector.collect(5)
    reference.collector.collect(5)
    stored, expected = (r.replay.storage["action"][:5] for r in (run, reference))
    assert torch.equal(stored, expected)
    # The next one begins after the change.
    collector.collect(5)
    reference.collector.collect(5)
    stored, expected = (r.replay.storage["action"][5:10] for r in (run, reference))
    assert not torch.equal(stored, expected)


def test_physics_runs_in_another_thread_while_the_main_one_goes_on() -> None:
    run = build_run(overlapped())
    collector, env = run.collector, run.collector.env
    assert isinstance(collector, OverlappingCollector)
    may_go_on, seen = threading.Event(), []
    step = env.step

    def waiting_step(action: torch.Tensor) -> Any:
        seen.append(threading.current_thread())
        assert may_go_on.wait(timeout=20)
        return step(action)

    env.step = waiting_step  # type: ignore[method-assign]
    collector.start(2)
    assert run.replay.next_row == 0
    may_go_on.set()
    collector.collect(2)
    assert run.replay.next_row == 2
    assert set(seen) != {threading.main_thread()} and len(set(seen)) == 1


def lagged_by_hand(recipe: Recipe) -> CrlRun:
    """The same order of acting and updating on one thread."""
    run = build_run(recipe)
    collector = run.collector
    assert isinstance(collector, OverlappingCollector)
    wanted = recipe.prefill_collections + recipe.collections
    staged = False
    for number in range(1, wanted + 1):
        if not staged:
            collector.start(recipe.budget.unroll_length)
        collector.collect(recipe.budget.unroll_length)
        run.collections_done += 1
        staged = number > recipe.prefill_collections and number < wanted
        if staged:
            collector.start(recipe.budget.unroll_length)
            collector.state_dict()  # Waits.
        while run.updates_done < run.updates_due:
            run.update()
    return run


def test_threads_do_not_change_the_result(any_device: None, tmp_path: Path) -> None:
    recipe = overlapped()
    with torch_threads(1):
        by_hand = lagged_by_hand(recipe).learner.state_dict()
    train(recipe, tmp_path / "run", show=False)
    run = build_run(recipe)
    _, tensors, _, _ = checkpoint.load_newest(RunDirectory(tmp_path / "run").saved_checkpoints)
    run.learner.load_state_dict(checkpoint.part_of(tensors, "learner"))
    for name, tensor in run.learner.state_dict().items():
        assert torch.equal(tensor, by_hand[name]), name


def test_resume_equals_the_uninterrupted_run(
    any_device: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = overlapped(budget={"checkpoints": 3})
    train(recipe, tmp_path / "whole", show=False)

    update, calls = CrlRun.update, 0

    def interrupted(self: CrlRun) -> Any:
        nonlocal calls
        calls += 1
        # In the middle of a round of updates, some time after the first checkpoint.
        if calls == recipe.updates_per_collection * (recipe.collections - 1) - 1:
            raise InterruptedError
        return update(self)

    monkeypatch.setattr(CrlRun, "update", interrupted)
    with pytest.raises(InterruptedError):
        train(recipe, tmp_path / "part", show=False)
    monkeypatch.setattr(CrlRun, "update", update)
    train(recipe, tmp_path / "part", resume=True, show=False)
    assert_same_run(tmp_path / "part", tmp_path / "whole")


def test_an_error_in_the_thread_reaches_the_caller() -> None:
    run = build_run(overlapped())

    def fail(action: torch.Tensor) -> Any:
        raise RuntimeError("the simulator broke")

    run.collector.env.step = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="the simulator broke"):
        run.collect()


@pytest.mark.parametrize("checkpoints", [1, 4])
def test_an_env_that_fails_beside_the_updates_loses_none_of_them(
    any_device: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checkpoints: int,
) -> None:
    # The sixth collection fails at its third step. The next collection waits for it, or, if a
    # checkpoint is due before, that does.
    recipe = overlapped(budget={"checkpoints": checkpoints, "env_steps": 160})
    step, calls = TaskVectorEnv.step, 0

    def dies(self: TaskVectorEnv, action: torch.Tensor) -> StepResult:
        nonlocal calls
        trains = self.num_envs == recipe.task.num_envs
        calls += trains
        if trains and calls == 28:
            raise ForeignEnvError("env 2 is gone")
        return step(self, action)

    monkeypatch.setattr(TaskVectorEnv, "step", dies)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(ForeignEnvError, match="env 2 is gone"):
        train(recipe, run.path)
    assert capsys.readouterr().err.count("goes on from here") == 1
    tensors, meta = checkpoint.load(run.saved_checkpoints[0])
    assert (meta["collections_done"], meta["updates_done"]) == (5, 6)
    assert int(tensors["replay/next_row"]) == 25
    assert not [name for name in tensors if name.startswith("collector/staged")]
    train(recipe, run.path, resume=True, show=False)


def test_it_is_refused_where_it_cannot_help() -> None:
    with pytest.raises(RecipeError, match=r"--overlap on hides physics .* on the CPU too"):
        check(tiny("reacher", system={"overlap": "on", "device": "cpu"}))
