"""Whole runs on several ranks: they agree, stop together, and go on from what they saved."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from tests.helpers.ranks import Stage, environment, stages_on_ranks
from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_same_run, final_tensors
from torch_crl import train
from torch_crl.cli.main import main
from torch_crl.cli.output import tell
from torch_crl.distributed import ranks
from torch_crl.distributed.ranks import ALONE, LostRankError, RankError, Ranks, join
from torch_crl.envs.simulators import SimulatorError
from torch_crl.errors import TorchCrlError, UsageError
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.share import share_problems
from torch_crl.runs.directory import RunDirectory
from torch_crl.system import checkpoint
from torch_crl.system.checkpoint import CheckpointError
from torch_crl.system.stopping import StopSignals
from torch_crl.training import saving
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun
from torch_crl.training.evaluation import evaluate

THIS = "tests.distributed.test_run"


def recipe_of_ranks(**parts: dict[str, Any]) -> Recipe:
    """Resets often, in a replay that wraps; divisible by four."""
    budget = {"env_steps": 600, "checkpoints": 10, "evaluations": 2, "replay_rows": 16}
    sizes = {"num_envs": 8, "num_eval_envs": 4, "episode_length": 12}
    merged = {"budget": budget, "task": sizes, **parts}
    return tiny(**merged)


def test_one_rank_is_the_plain_run_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(recipe_of_ranks(), tmp_path / "plain", show=False)
    for name, value in environment(0, 1, 0).items():
        monkeypatch.setenv(name, value)
    assert join() is ALONE
    train(recipe_of_ranks(), tmp_path / "rank", show=False)
    assert_same_run(tmp_path / "plain", tmp_path / "rank")


def raised(act: Callable[[], object]) -> str:
    """What `act` raises, as `Type: message`."""
    try:
        act()
    except (TorchCrlError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


@contextmanager
def failing(on: object, name: str, *, when: Callable[..., bool], error: Any) -> Iterator[None]:
    """Inside, a method raises `error` where `when` says so, or calls it."""
    real = getattr(on, name)

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if when(*arguments, **options):
            if isinstance(error, Exception):
                raise error
            error(*arguments)
        return real(*arguments, **options)

    with mock.patch.object(on, name, wrapped):
        yield


def _evaluates_together(ranks: Ranks) -> None:
    """The metrics of two ranks are those of the episodes of both."""
    policy = build_run(recipe_of_ranks()).policy
    options: dict[str, Any] = {"num_envs": 3, "episode_length": 20, "seed": ranks.rank}
    alone = ranks.all_of(evaluate(policy, "reacher", **options))
    together = evaluate(policy, "reacher", ranks=ranks, **options)
    for name in ("final_distance", "mean_distance", "time_at_goal_share"):
        assert together[name] == pytest.approx(sum(each[name] for each in alone) / 2), name


def incidents(folder: str) -> dict[str, Any]:
    """What happens to runs of two ranks, as this rank sees it."""
    ranks, recipe, at = join(), recipe_of_ranks(), Path(folder)
    on_second = ranks.rank == 1
    found: dict[str, Any] = {}
    whole = train(recipe, at / "whole", show=False)
    found["evaluation"] = whole.evaluation

    # Something happens on the second rank alone, after some updates.
    def late(run: CrlRun, *_: Any) -> bool:
        return on_second and run.updates_done == 13

    def poison(run: CrlRun) -> None:
        with torch.no_grad():
            run.learner.actor.weight[0, 0, 0] = torch.nan

    def signalled(_run: CrlRun) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def meets(run: CrlRun) -> bool:
        return on_second and run.collections_done == 7

    broken = SimulatorError("the floor is lava")
    for name, method, when, error in (
        ("nan", "update", late, poison),
        ("term", "update", late, signalled),
        ("physics", "collect", meets, broken),
    ):
        with failing(CrlRun, method, when=when, error=error):
            found[name] = raised(lambda: train(recipe, at / name, show=False))  # noqa: B023
        saved = RunDirectory(at / name).saved_checkpoints
        found[f"{name} saved"] = saved[0].name
    ranks.wait()
    train(recipe, at / "term", resume=True, show=False)

    # A signal to the first rank alone, while it evaluates, and one while they agree.
    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    found["evaluating"] = raised(
        lambda: train(recipe, at / "evaluating", callback=interrupt, show=False)
    )
    ranks.wait()
    train(recipe, at / "evaluating", resume=True, show=False)

    # A full disk for one rank's part: told, and the run goes on without that checkpoint.
    def full(part: Path, *_: Any) -> bool:
        return (on_second and "update_000000013" in str(part)) or (
            on_second and "000008" in str(part)
        )

    no_room = CheckpointError("No space left on device")
    with failing(saving.checkpoint, "write_part", when=full, error=no_room):
        found["full"] = raised(lambda: train(recipe, at / "full", show=False))

    # The newest checkpoint lacks the second rank's part.
    ranks.wait()
    newest = RunDirectory(at / "whole").saved_checkpoints[0]
    if on_second:
        (newest / checkpoint.part_of_rank(1)).unlink()
    ranks.wait()
    train(recipe, at / "whole", resume=True, show=False)

    _evaluates_together(ranks)
    # Two places for one run.
    elsewhere = at / f"only_rank_{ranks.rank}"
    elsewhere.mkdir()
    found["places"] = raised(lambda: train(recipe, elsewhere / "run", show=False))
    odd = with_changes(recipe, task={"num_envs": 7})
    found["odd"] = raised(lambda: train(odd, at / "odd", show=False))
    return found


def dies(folder: str) -> str:
    """The second rank is gone from one moment to the next."""
    ranks = join()
    gone = failing(
        CrlRun,
        "update",
        when=lambda run: ranks.rank == 1 and run.updates_done == 5,
        error=lambda run: os._exit(9),
    )
    with gone:
        thirds = {"num_envs": 9, "num_eval_envs": 3, "episode_length": 12}
        recipe = recipe_of_ranks(task=thirds, algorithm={"batch_size": 9})
        return raised(lambda: train(recipe, Path(folder) / "dies", show=False))


def test_what_happens_on_one_rank_happens_to_all(tmp_path: Path) -> None:
    at = {"folder": str(tmp_path)}
    incident, death = stages_on_ranks(
        Stage(2, f"{THIS}:incidents", at), Stage(3, f"{THIS}:dies", at)
    )
    assert [rank.status for rank in incident] == [0, 0]
    first, second = (rank.returned for rank in incident)
    assert first["evaluation"] == second["evaluation"]
    # One message, by the first rank, whose networks have become NaN by then as well.
    assert first["nan"].startswith("DivergenceError: actor_loss became nan at update 14")
    assert second["nan"].startswith("RankError: ")
    # All stop at the same update.
    assert first["term"] == second["term"] == f"SystemExit: {128 + signal.SIGTERM}"
    assert first["evaluating"] == second["evaluating"] == first["term"]
    assert first["physics"] == "RankError: rank 1: the floor is lava" == second["physics"]
    for name in ("nan saved", "term saved", "physics saved"):
        assert first[name] == second[name]
    assert first["full"] == second["full"] == "nothing"
    # The run that a signal stopped, and then went on, is the undisturbed one.
    assert_same_run(tmp_path / "whole", tmp_path / "term")
    assert_same_run(tmp_path / "whole", tmp_path / "full")
    assert_same_run(tmp_path / "whole", tmp_path / "evaluating")
    assert "rank 1 does not see" in first["places"] and "RankError" in second["places"]
    for found in (first, second):
        assert "--num-envs is the total of all ranks and must be a multiple of" in found["odd"]
    # The one that died is named to the others.
    assert [rank.status for rank in death] == [0, 9, 0]
    for rank in (death[0], death[2]):
        assert rank.returned.startswith("LostRankError: rank 1 is gone or does not answer")


def columns(folder: Path, ranks: int) -> dict[str, torch.Tensor]:
    """What the newest checkpoint holds of all envs, whichever rank has them."""
    newest = RunDirectory(folder).saved_checkpoints[0]
    parts = [checkpoint.load(newest, rank=rank)[0] for rank in range(ranks)]
    return {
        name: torch.cat([part[name] for part in parts], dim=1 if name.startswith("replay") else 0)
        for name in parts[0]
        if name.startswith(("replay/", "collector/")) and parts[0][name].ndim
        if not name.endswith("generator")
    }


def of_other_ranks() -> Recipe:
    """With everything that a state can hold."""
    return recipe_of_ranks(algorithm={"batch_size": 8, "chunk": 2, "average_weights": 0.9})


def resharded(source: str, to: str) -> dict[str, Any]:
    """Divide the run in `source` among the ranks of now, save it, and train it to its end."""
    ranks, recipe = join(), of_other_ranks()
    longer = with_changes(recipe, budget={"env_steps": recipe.total_env_steps + 160})
    run, folder = build_run(longer, ranks=ranks), RunDirectory(to)
    refused = raised(lambda: saving.restore(run, RunDirectory(source), ranks))
    notes = saving.restore(run, RunDirectory(source), ranks, reshard=True)
    ranks.of_first(lambda: folder.begin(longer, machine={}))
    saving.commit(run, folder, ranks)
    ranks.of_first(lambda: shutil.copytree(folder.checkpoints, Path(f"{to}_moved/checkpoints")))
    states = {
        name: tensor.tolist()
        for name, tensor in run.state_dict()[0].items()
        if name.endswith("generator")
    }
    run.close()
    continued = raised(lambda: train(longer, folder, resume=True, show=False))
    return {"refused": refused, "notes": notes, "states": states, "continued": continued}


def test_columns_move_to_other_numbers_of_ranks(tmp_path: Path) -> None:
    one, four, two = (tmp_path / name for name in ("one", "four", "two"))
    train(of_other_ranks(), one, show=False)
    before, learner = columns(one, 1), final_tensors(one)[0]
    stages = stages_on_ranks(
        Stage(4, f"{THIS}:resharded", {"source": str(one), "to": str(four)}),
        Stage(2, f"{THIS}:resharded", {"source": str(four), "to": str(two)}),
    )
    on_four, on_two = ([rank.returned for rank in ranks] for ranks in stages)
    assert all(found["continued"] == "nothing" for found in on_four)
    assert "was written by one process, and this is 4 ranks" in on_four[0]["refused"]
    assert "its envs, of 1 ranks, are now those of 4" in on_four[0]["notes"][0]
    # Every stream is another one, on every rank.
    old = {str(learner[name].tolist()) for name in learner if name.endswith("generator")}
    new = {str(state) for found in on_four for state in found["states"].values()}
    assert len(new) == 4 * len(old) and not new & old
    _same_columns(before, tmp_path / "four_moved", 4)
    newest = RunDirectory(tmp_path / "four_moved").saved_checkpoints[0]
    for name, tensor in checkpoint.load(newest)[0].items():
        assert torch.equal(tensor, learner[name]), name
    # And on to half as many, of a run that four have trained further.
    at_four = columns(four, 4)
    assert "was written by 4 ranks, and this is 2 ranks" in on_two[0]["refused"]
    _same_columns(at_four, tmp_path / "two_moved", 2)
    # A part that is missing, of a rank that there is no more: the older checkpoint is taken.
    newest, older = RunDirectory(four).saved_checkpoints[:2]
    (newest / checkpoint.part_of_rank(3)).unlink()
    steps = of_other_ranks().total_env_steps + 160
    run = build_run(with_changes(of_other_ranks(), budget={"env_steps": steps}))
    passed, resumed = saving.restore(run, RunDirectory(four), reshard=True)
    assert str(newest) in passed and f"resumed from {older}" in resumed
    run.close()


def _same_columns(before: dict[str, torch.Tensor], folder: Path, ranks: int) -> None:
    moved = columns(folder, ranks)
    assert moved.keys() == before.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, moved[name]), name


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ({"task": {"num_envs": 6}}, "--num-envs is the total of all ranks"),
        ({"task": {"num_eval_envs": 3}}, "--num-eval-envs is the total of all ranks"),
        ({"algorithm": {"batch_size": 10}}, "--batch-size is the total of all ranks"),
        ({"system": {"device": "cuda:1"}}, "--device cuda:1 names one device"),
        ({"algorithm": {"objective": "chrono"}}, "--objective chrono has no loss over the rows"),
        ({"task": {"name": "gymnasium:X-v0"}}, "gymnasium:X-v0: the state of a Gymnasium env"),
        ({"algorithm": {"algo": "ppo"}}, "--algo ppo trains in one process, and torchrun started"),
    ],
)
def test_what_several_ranks_cannot_train(parts: dict[str, dict[str, Any]], told: str) -> None:
    recipe = recipe_of_ranks()
    of_four = Ranks(rank=2, size=4)
    assert share_problems(recipe, of_four) == []
    (problem,) = share_problems(with_changes(recipe, **parts), of_four)
    assert told in problem
    assert share_problems(with_changes(recipe, **parts), ALONE) == []


def test_local_negatives_allow_every_objective() -> None:
    local = {"objective": "chrono", "negatives": "local"}
    assert share_problems(recipe_of_ranks(algorithm=local), Ranks(size=4)) == []


def test_an_error_on_one_rank_alone_is_a_rank_error() -> None:
    with pytest.raises(ValueError, match="mine"), ALONE.together():
        raise ValueError("mine")
    assert issubclass(RankError, TorchCrlError)


def test_the_command_that_torchrun_starts_again_resumes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(recipe_of_ranks().to_json())
    run_dir = str(tmp_path / "run")
    command = ["train", "--recipe", str(recipe), "--run-dir", run_dir, "--resume-if-any"]
    assert main(command) == 0
    assert "resumed from" not in capsys.readouterr().err
    assert main(command) == 0
    assert "resumed from" in capsys.readouterr().err
    assert main(["train", "reacher", "--resume-if-any"]) == 1
    assert "--resume-if-any needs --run-dir" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 1
    assert "exclude each other" in capsys.readouterr().err
    assert main(["train", "reacher", "--reshard"]) == 1
    assert "needs --resume" in capsys.readouterr().err


def test_only_the_first_rank_tells_what_all_have(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, told in (("0", "torch-crl: wrong"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        for error in (UsageError("wrong"), RankError("wrong")):
            assert tell(error) == 1
            assert capsys.readouterr().err.strip() == told
    # Of those that are left, the first one tells who is lost.
    monkeypatch.setattr(ranks, "have_met", lambda: True)
    assert tell(LostRankError("rank 0 is gone", told_by=1)) == 1
    assert "rank 0 is gone" in capsys.readouterr().err
    # Before they have met, each machine tells of its own.
    monkeypatch.setattr(ranks, "have_met", lambda: False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert tell(UsageError("no such module on this machine")) == 1
    assert "on this machine" in capsys.readouterr().err


def test_a_signal_that_comes_while_processes_agree_counts_the_next_time() -> None:
    with StopSignals(lambda line: None) as stop:

        def meanwhile(number: int) -> int:
            os.kill(os.getpid(), signal.SIGTERM)
            return number

        assert not stop.agree(meanwhile)
        assert stop.requested
        assert stop.agree(lambda number: number)
    with StopSignals(lambda line: None) as stop:
        assert stop.agree(lambda number: max(number, signal.SIGUSR1))
        with pytest.raises(SystemExit, match=str(128 + signal.SIGUSR1)):
            stop.leave()
