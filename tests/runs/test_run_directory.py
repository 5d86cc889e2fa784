"""One writer a run directory, runs that become longer, and what a run keeps and tells."""

import errno
import json
import os
import platform
import shutil
from pathlib import Path

import filelock
import pytest
import torch

from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_same_run
from torch_crl import load_policy
from torch_crl.cli.main import main
from torch_crl.envs.gymnasium.errors import ForeignEnvError
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import StepResult
from torch_crl.errors import UsageError
from torch_crl.recipe.checks import RecipeError
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import Moment, RunDirectory, RunDirectoryError
from torch_crl.runs.finding import find_run_directories
from torch_crl.runs.lock import DirectoryInUseError
from torch_crl.system.checkpoint import CheckpointError, load
from torch_crl.system.files import DamagedFileError, read_bytes, read_lines
from torch_crl.training import session
from torch_crl.training.run import Run
from torch_crl.training.session import Evaluated
from torch_crl.training.trainer import train


def ready(env_steps: int = 120, **parts: dict) -> Recipe:
    return tiny(
        "reacher", budget={"env_steps": env_steps, "evaluations": 2, "checkpoints": 2}, **parts
    )


def test_a_directory_with_a_living_run_is_refused_by_name(tmp_path: Path) -> None:
    recipe, run_dir = ready(), tmp_path / "run"
    train(recipe, run_dir, show=False)
    before = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*")}
    owner = f"is in use by process {os.getpid()} on {platform.node()}"
    # As another process would: the lock belongs to what opened the file.
    with RunDirectory(run_dir).owned():
        for how in ("resume", "overwrite"):
            with pytest.raises(RecipeError, match=owner):
                train(recipe, run_dir, show=False, **{how: True})
        with pytest.raises(DirectoryInUseError, match=owner), RunDirectory(run_dir).owned():
            pass
        # A run that begins in the moment after the check finds the lock held.
        shutil.rmtree(run_dir)
        with pytest.raises(RecipeError, match=owner):
            train(recipe, run_dir, show=False)
        assert not run_dir.exists()
    assert before
    train(recipe, run_dir, show=False)


def test_the_lock_outlives_overwriting(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.owned():
        for seed in (1, 2):
            run.begin(ready(system={"seed": seed}), machine={})
            with pytest.raises(DirectoryInUseError), RunDirectory(run.path).owned():
                pass
    assert run.read_recipe().system.seed == 2
    assert {path.name for path in tmp_path.iterdir()} == {"run", ".run.lock"}


def test_a_file_system_without_locks_is_told_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    run = RunDirectory(tmp_path / "run")
    with run.owned() as notes:
        (note,) = notes
        assert "cannot be locked" in note and "No locks available" in note
        with run.owned() as again:
            assert again == []


def test_waiting_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, told = RunDirectory(tmp_path / "run"), []
    with RunDirectory(run.path).owned():
        real = filelock.FileLock.acquire

        def impatient(self: filelock.FileLock, **options: bool) -> object:
            if not options:
                raise KeyboardInterrupt
            return real(self, **options)

        monkeypatch.setattr(filelock.FileLock, "acquire", impatient)
        with pytest.raises(KeyboardInterrupt), run.owned(wait=told.append):
            pass
    (line,) = told
    assert line.startswith(f"waiting for process {os.getpid()} on") and str(run) in line


def test_a_longer_run_equals_one_that_was_as_long_from_the_start(tmp_path: Path) -> None:
    train(ready(120), tmp_path / "run", show=False)
    longer = with_changes(ready(120), budget={"env_steps": 280})
    result = train(longer, tmp_path / "run", resume=True, show=False)
    run = RunDirectory(tmp_path / "run")
    recipe = run.read_recipe()
    # Evaluations and checkpoints stay as far apart: 4 collections of 20 steps had 2 of each.
    assert recipe.collections == 12 and recipe.budget.evaluations == recipe.budget.checkpoints == 6
    assert [record["env_steps"] for record in run.read_metrics("evaluation")] == [
        80, 120, 160, 200, 240, 280,
    ]  # fmt: skip
    train(recipe, tmp_path / "whole", show=False)
    whole = RunDirectory(tmp_path / "whole")
    ours, theirs = (load(each.saved_checkpoints[0])[0] for each in (run, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert result.evaluation["env_steps"] == 280 and run.is_finished
    with pytest.raises(RecipeError, match="longer and not shorter: --env-steps is 280, got 200"):
        train(with_changes(recipe, budget={"env_steps": 200}), run.path, resume=True, show=False)


def test_the_best_policy_by_evaluation_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ready(280)
    recipe = with_changes(recipe, budget={"evaluations": 6, "checkpoints": 2})
    shares = iter([0.1, 0.5, 0.2, 0.5, 0.4, 0.3])
    real = session.evaluate

    def scored(*arguments: object, **options: object) -> dict[str, float]:
        return real(*arguments, **options) | {"time_at_goal_share": next(shares)}

    def callback(evaluated: Evaluated) -> dict[str, float]:
        assert evaluated.policy.state_size == 10 and evaluated.metrics["env_steps"] > 0
        return {"extra": 7.0}

    monkeypatch.setattr(session, "evaluate", scored)
    train(recipe, tmp_path / "run", show=False, callback=callback)
    run = RunDirectory(tmp_path / "run")
    (best,) = run.best_policies
    evaluations = run.read_metrics("evaluation")
    assert Moment.of(best) == (evaluations[1]["env_steps"], evaluations[1]["updates"])
    assert load(best)[1]["evaluation"]["time_at_goal_share"] == 0.5
    assert {record["extra"] for record in evaluations} == {7.0}
    newest, chosen = load_policy(run.path), load_policy(run.path, which="best")
    state, goal = torch.ones(10), torch.ones(3)
    assert not torch.equal(newest(state, goal), chosen(state, goal))
    with pytest.raises(CheckpointError, match="the best one is chosen from a run directory"):
        load_policy(best, which="best")


def test_eval_says_which_policy_it_takes_and_what_it_passes_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(ready(), tmp_path / "run", show=False)
    run = RunDirectory(tmp_path / "run")
    newest, older = run.saved_policies
    (newest / "meta.json").write_text("{}")
    capsys.readouterr()
    assert main(["eval", str(run), "--num-envs", "2", "--json"]) == 0
    told = capsys.readouterr()
    assert f"policy: {older}" in told.err and f"passed over: {newest} is damaged" in told.err
    assert main(["eval", str(run), "--policy", "best", "--num-envs", "2"]) == 0
    assert f"policy: {run.best_policies[0]}" in capsys.readouterr().err


def test_a_recipe_file_is_where_train_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(ready().to_json())
    run = str(tmp_path / "run")
    arguments = ["train", "--recipe", str(file), "--run-dir", run, "--seed", "5"]
    assert main(arguments) == 0
    saved = RunDirectory(run).read_recipe()
    assert saved == with_changes(ready(), system={"seed": 5})
    assert main([*arguments, "--resume"]) == 1
    assert "leave out --recipe" in capsys.readouterr().err
    file.write_text(json.dumps(json.loads(file.read_text()) | {"task": {"name": "reacher"}}))
    assert main([*arguments, "--overwrite"]) == 1
    told = capsys.readouterr().err
    assert "mine.json cannot be read" in told and "task.num_envs is missing" in told


def test_a_damaged_record_is_told_and_does_not_block_a_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ready()
    train(recipe, tmp_path / "run", show=False)
    run = RunDirectory(tmp_path / "run")
    lines = run.metrics.read_text().splitlines(keepends=True)
    run.metrics.write_text("".join([lines[0].replace("train", "trajn"), *lines[1:-1], "{\n"]))
    with pytest.raises(DamagedFileError, match=r"metrics\.jsonl cannot be read: line 1: kind must"):
        run.read_metrics("train")
    run.result.unlink()
    result = train(recipe, tmp_path / "run", resume=True)
    told = capsys.readouterr().err
    assert "line 1: kind must be one of 'train', 'evaluation', got 'trajn'; left out" in told
    # The last evaluation was among the damaged ones, and is made again.
    assert result.evaluation["env_steps"] == recipe.total_env_steps


def test_only_regular_files_of_sane_size_are_read(tmp_path: Path) -> None:
    pipe, folder, large, link = (tmp_path / name for name in ("pipe", "folder", "large", "link"))
    os.mkfifo(pipe)
    folder.mkdir()
    large.write_bytes(b"x" * 11)
    link.symlink_to(link)
    for path, reason in (
        (pipe, "no regular file"),
        (folder, "directory"),
        (large, "has 11 bytes, and at most 10 are read"),
        (link, "symbolic links"),
        (tmp_path / "missing", "No such file"),
    ):
        with pytest.raises(DamagedFileError, match=reason):
            read_bytes(path, most=10)


def test_records_are_read_line_by_line_from_a_file_of_any_size(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\n\nfour\nthirteen\nsixteen\nend")
    assert list(read_lines(path, most=4)) == [b"one", b"", b"four", b"thir", b"sixt"]
    run = RunDirectory(tmp_path)
    line = '{"kind": "train", "env_steps": %d, "updates": 0, "seconds": 0}\n'
    with run.metrics.open("w") as file:
        file.write(line % 1)
        # A hole, which a file system may leave when the power fails.
        file.truncate(300_000_000)
        file.seek(300_000_000)
        file.write("\n" + line % 2 + line % 3)
    (told,) = run.drop_metrics_after(Moment(2, 0))
    assert "line 2: " in told and len(told) < 1000
    assert [record["env_steps"] for record in run.read_metrics("train")] == [1, 2]


def test_links_that_lead_back_up_are_not_followed_for_ever(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "recipe.json").touch()
    (tmp_path / "runs" / "up").symlink_to(tmp_path)
    (tmp_path / "runs" / "b").symlink_to(run)
    assert sorted(find_run_directories(tmp_path)) == [run, tmp_path / "runs" / "b"]


def test_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunDirectoryError, match="holds no run"):
        RunDirectory(tmp_path).read_recipe()
    assert Moment.of(tmp_path / "step_1_update_x") is None
    assert Moment.of(tmp_path / "best_step_000000000005_update_000000007") == (5, 7)


@pytest.mark.parametrize(
    ("returned", "told"),
    [
        ({"mine": float("nan")}, "'mine' as nan; what is logged must be finite numbers"),
        ({"mine": "good"}, "'mine' as 'good'; what is logged must be finite numbers"),
        ({"kind": 1.0}, "'kind', which is logged already"),
        ({"env_steps": 1.0}, "'env_steps', which is logged already"),
    ],
)
def test_what_a_callback_returns_is_checked(tmp_path: Path, returned: dict, told: str) -> None:
    with pytest.raises(UsageError, match=f"the callback returned {told}"):
        train(ready(), tmp_path / "run", show=False, callback=lambda _: returned)


def test_a_link_is_the_directory_that_it_leads_to(tmp_path: Path) -> None:
    recipe, link = ready(), tmp_path / "latest"
    link.symlink_to(tmp_path / "run")
    train(recipe, tmp_path / "run", show=False)
    with RunDirectory(link).owned(), pytest.raises(DirectoryInUseError):
        RunDirectory(tmp_path / "run").owned().__enter__()
    train(recipe, link, show=False, overwrite=True)
    assert link.is_symlink() and RunDirectory(tmp_path / "run").is_finished


def test_an_empty_folder_is_filled_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be a mount point, or the folder that one is in."""
    recipe, here = ready(), tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    identity = here.stat().st_ino
    train(recipe, ".", show=False)
    assert RunDirectory(".").is_finished
    train(recipe, ".", show=False, overwrite=True)
    assert RunDirectory(here).is_finished and here.stat().st_ino == identity
    # What a process that was killed while it began has left is no run, and nobody's.
    for left in ("recipe.json", "result.json", "learning_curve.png"):
        (here / left).unlink()
    shutil.rmtree(here / "tensorboard")
    assert RunDirectory(here).is_occupied
    for folder in ("checkpoints", "policies"):
        shutil.rmtree(here / folder)
        (here / folder).mkdir()
    assert not RunDirectory(here).is_occupied
    train(recipe, here, show=False)


def test_a_folder_that_cannot_be_renamed_is_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(ready(), tmp_path / "run", show=False)

    def busy(self: Path, target: Path) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    RunDirectory(tmp_path / "run").remove()
    assert list((tmp_path / "run").iterdir()) == []


def test_an_env_that_fails_ends_the_run_and_loses_no_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = ready(280)
    recipe = with_changes(recipe, budget={"checkpoints": 1, "replay_rows": 16})
    step, calls = TaskVectorEnv.step, 0

    def dies(self: TaskVectorEnv, action: torch.Tensor) -> StepResult:
        nonlocal calls
        calls += self.num_envs == recipe.task.num_envs
        if calls == 33:
            raise ForeignEnvError("env 2 is gone")
        return step(self, action)

    monkeypatch.setattr(TaskVectorEnv, "step", dies)
    with pytest.raises(ForeignEnvError, match="env 2 is gone"):
        train(recipe, tmp_path / "run", show=False)
    run = RunDirectory(tmp_path / "run")
    (saved,) = run.saved_checkpoints
    # Six collections of five steps were done, four of them with updates; the seventh is forgotten.
    tensors, meta = load(saved)
    assert (meta["collections_done"], meta["updates_done"]) == (6, 8)
    assert int(tensors["replay/next_row"]) == 30 and int(tensors["replay/last_row"].max()) == 29
    calls = 1000
    result = train(recipe, run.path, resume=True, show=False)
    assert result.evaluation["env_steps"] == 280


@pytest.mark.parametrize("fails", ["an env", "the callback"])
def test_an_evaluation_that_fails_loses_no_updates_and_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    recipe = with_changes(ready(), budget={"checkpoints": 1, "evaluations": 4})
    train(recipe, tmp_path / "whole", show=False)
    real, evaluated = session.evaluate, []

    def dies(*arguments: object, **options: object) -> dict[str, float]:
        if len(evaluated) == 1 and fails == "an env":
            raise ForeignEnvError("env 2 is gone")
        return real(*arguments, **options)

    def called_back(now: Evaluated) -> None:
        if len(evaluated) == 1 and fails == "the callback":
            raise ZeroDivisionError
        evaluated.append(now.metrics["updates"])

    run = RunDirectory(tmp_path / "parts")
    monkeypatch.setattr(session, "evaluate", dies)
    with pytest.raises((ForeignEnvError, ZeroDivisionError)):
        train(recipe, run.path, show=False, callback=called_back)
    monkeypatch.undo()
    (saved,) = run.saved_checkpoints
    assert (evaluated, load(saved)[1]["updates_done"]) == ([2], 4)
    train(recipe, run.path, resume=True, show=False)
    assert_same_run(tmp_path / "whole", run.path)


def test_a_best_policy_that_found_no_room_is_not_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = iter([0.5, 0.4])
    real_evaluate, real_save = session.evaluate, session.save_best

    def scored(*arguments: object, **options: object) -> dict[str, float]:
        return real_evaluate(*arguments, **options) | {"time_at_goal_share": next(shares)}

    def full(run: Run, directory: RunDirectory, evaluation: dict[str, float]) -> None:
        if evaluation["time_at_goal_share"] == 0.5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real_save(run, directory, evaluation)

    monkeypatch.setattr(session, "evaluate", scored)
    monkeypatch.setattr(session, "save_best", full)
    train(ready(), tmp_path / "run", show=False)
    run = RunDirectory(tmp_path / "run")
    (best,) = run.best_policies
    assert load(best)[1]["evaluation"]["time_at_goal_share"] == 0.4


def test_a_received_run_that_is_resumed_writes_nowhere_else(tmp_path: Path) -> None:
    recipe, run = ready(), RunDirectory(tmp_path / "run")
    train(recipe, run.path, show=False)
    victim, elsewhere = tmp_path / "precious.txt", tmp_path / "elsewhere"
    victim.write_text("precious")
    elsewhere.mkdir()
    aside = run.path / ".writing-recipe.json"
    aside.symlink_to(victim)
    longer = with_changes(recipe, budget={"env_steps": 200})
    train(longer, run.path, resume=True, show=False)
    assert victim.read_text() == "precious" and not run.recipe.is_symlink()
    for entry in (run.learning_curve, run.metrics, run.checkpoints, run.policies, run.tensorboard):
        aside = entry.with_name("aside")
        entry.rename(aside)
        entry.symlink_to(elsewhere if aside.is_dir() else victim)
        with pytest.raises(RecipeError, match=f"{entry.name} is a link"):
            train(longer, run.path, resume=True, show=False)
        entry.unlink()
        aside.rename(entry)
    assert victim.read_text() == "precious" and list(elsewhere.iterdir()) == []


def test_a_run_whose_directory_is_gone_ends_and_says_so(tmp_path: Path) -> None:
    def move(evaluated: Evaluated) -> None:
        evaluated.run_dir.rename(tmp_path / "moved")

    with pytest.raises(RunDirectoryError, match="was removed or moved while the run went on"):
        train(ready(), tmp_path / "run", show=False, callback=move)


def test_a_run_without_its_checkpoints_is_not_begun_again_unasked(tmp_path: Path) -> None:
    train(ready(), tmp_path / "run", show=False)
    run = RunDirectory(tmp_path / "run")
    shutil.rmtree(run.checkpoints)
    with pytest.raises(CheckpointError, match="holds no checkpoint to go on from; the policies"):
        train(ready(), run.path, resume=True, show=False)
    assert len(run.saved_policies) == 2 and run.is_finished


def test_a_checkpoint_is_of_the_moment_that_its_name_says(tmp_path: Path) -> None:
    train(ready(), tmp_path / "run", show=False)
    run = RunDirectory(tmp_path / "run")
    newest = run.saved_checkpoints[0]
    newest.rename(newest.with_name(Moment(10**11, 1).name))
    with pytest.raises(CheckpointError, match="its name says otherwise"):
        train(ready(), run.path, resume=True, show=False)


@pytest.mark.parametrize("value", ["-7", "1e308", "9" * 400, '"x"', "true"])
def test_impossible_scores_are_no_records(tmp_path: Path, value: str) -> None:
    run = RunDirectory(tmp_path)
    line = '{"kind": "evaluation", "env_steps": 1, "updates": 1, "seconds": 1, "success_any": 0.5'
    run.metrics.write_text(f'{line}, "time_at_goal_share": {value}}}\n')
    with pytest.raises(DamagedFileError, match="time_at_goal_share must"):
        run.read_metrics("evaluation")
