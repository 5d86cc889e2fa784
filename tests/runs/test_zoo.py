"""The zoo: every entry can be used everywhere, tells the truth, and is small."""

import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest

from torch_crl import evaluate, load_policy
from torch_crl.cli.main import main
from torch_crl.cli.train import Options
from torch_crl.envs.registry import task_spec
from torch_crl.errors import UsageError
from torch_crl.recipe.goal_checks import filled_from
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.finding import located, output_folder, run_directory_of, zoo_folder, zoo_names
from torch_crl.runs.zoo import command_of, entry
from torch_crl.system.checkpoint import CheckpointError

MOST_BYTES = 5 << 20


@pytest.mark.parametrize("name", zoo_names())
def test_an_entry_is_a_run_with_a_policy(name: str) -> None:
    each = entry(name)
    assert each.directory.is_finished and each.commit and each.about.episodes == 512
    assert each.about.evaluation["success_any"] >= 0.5
    assert each.directory.read_metrics("evaluation")
    spec = task_spec(each.recipe.task.name)
    policy = load_policy(f"zoo:{name}")
    assert (policy.state_size, policy.goal_size) == (spec.state_size, spec.goal_size)
    # Nothing of the machine that trained it.
    for path in each.directory.path.rglob("*.json"):
        assert "/tmp" not in path.read_text() and "/home" not in path.read_text()


def test_the_whole_zoo_is_small_enough_for_a_wheel() -> None:
    files = [path for path in zoo_folder().rglob("*") if path.is_file()]
    assert zoo_names() and sum(path.stat().st_size for path in files) <= MOST_BYTES
    # No replay and no critic: nothing but the actor's tensors.
    assert not any(path.name == "checkpoints" for path in zoo_folder().rglob("*"))


def test_a_policy_still_does_what_its_entry_says() -> None:
    told = entry("reacher").about.evaluation
    found = evaluate(
        load_policy("zoo:reacher"), "reacher", num_envs=64, episode_length=200, seed=1_000_000
    )
    # 64 of the 512 episodes; their success has a standard error of about 0.02.
    assert found["success_any"] > told["success_any"] - 0.08
    assert abs(found["time_at_goal_share"] - told["time_at_goal_share"]) < 0.1


def test_the_command_of_an_entry_makes_its_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Recipe] = []

    def run(options: Options) -> int:
        asked.append(options.recipe)
        return 0

    monkeypatch.setattr("torch_crl.cli.train._run", run)
    for name in zoo_names():
        program, *arguments = shlex.split(entry(name).command)
        assert program == "torch-crl" and main(arguments) == 0
        recipe = entry(name).recipe
        assert filled_from(asked[-1], recipe) == recipe
    changed = with_changes(
        preset("reacher"), networks={"actor_depth": 8}, system={"seed": 5, "torch_threads": 1}
    )
    assert command_of(changed) == (
        "torch-crl train reacher --actor-depth 8 --seed 5 --torch-threads 1"
    )
    assert command_of(preset("reacher", algo="ppo")) == "torch-crl train reacher --algo ppo"


def test_names_that_do_not_exist_list_those_that_do() -> None:
    for use in (load_policy, run_directory_of, located):
        with pytest.raises(UsageError, match=r"zoo:nothing does not exist; .*zoo:reacher"):
            use(Path("zoo:nothing"))
    assert located("runs/zoo:reacher") == Path("runs/zoo:reacher")


def test_a_policy_of_the_zoo_is_no_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "zoo:reacher"]) != 0
    told = capsys.readouterr().err
    assert "zoo:NAME is a trained policy" in told and "`torch-crl zoo reacher`" in told


def test_the_folder_of_policies_is_no_run(tmp_path: Path) -> None:
    policies = tmp_path / "run" / "policies"
    shutil.copytree(entry("reacher").directory.policies, policies)
    (name,) = (each.name for each in policies.iterdir())
    with pytest.raises(CheckpointError, match=f"such as {policies.parent} or {policies / name}"):
        load_policy(policies)


def test_nothing_is_written_into_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(zoo_folder().rglob("*"))
    assert output_folder(RunDirectory("runs/mine"), "plan") == Path("runs/mine/plan")
    assert main(["export", "zoo:reacher", "--to", "numpy"]) == 0
    exported = tmp_path / "zoo" / "reacher" / "export" / "numpy"
    assert (exported / "numpy_policy.py").exists()
    assert main(["distil", "zoo:reacher", "--width", "8", "--rows", "100", "--updates", "10"]) == 0
    assert (tmp_path / "zoo" / "reacher" / "students" / "report.md").exists()
    assert sorted(zoo_folder().rglob("*")) == before
    # What needs critic and replay says so.
    for command in ("plan", "heatmap"):
        assert main([command, "zoo:point_u_maze", "--num-envs", "2"]) == 1
        assert "come without critic and replay" in capsys.readouterr().err


def test_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    out = capsys.readouterr().out
    assert all(f"zoo:{name}" in out for name in zoo_names())
    assert main(["zoo", "zoo:reacher"]) == 0
    assert "torch-crl train reacher" in capsys.readouterr().out
    assert main(["zoo", "nothing"]) == 1
    assert main(["eval", "zoo:reacher", "--num-envs", "2", "--episode-length", "5"]) == 0


def test_one_state_of_a_robot() -> None:
    policy = load_policy("zoo:reacher")
    action = policy(np.zeros(10), np.array([0.1, 0.1, 0.01]))
    assert action.shape == (2,) and np.abs(action).max() <= 1.0
