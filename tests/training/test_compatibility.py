"""A run directory that an earlier version wrote: every later one evaluates and compares it."""

import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.paths import OLD_RUN
from torch_crl import evaluate, load_policy, train
from torch_crl.recipe.presets import with_changes
from torch_crl.runs.curves import read_curves
from torch_crl.runs.directory import RunDirectory
from torch_crl.system.checkpoint import CheckpointError
from torch_crl.training.run import stream_seed


def test_its_recipe_is_read_with_what_was_added_since() -> None:
    recipe = RunDirectory(OLD_RUN).read_recipe()
    assert recipe.task.name == "reacher" and recipe.budget.env_steps == 800
    assert recipe.system.env_timeout == 300.0
    assert recipe.algorithm.initial_temperature == 1.0
    assert recipe.algorithm.average_weights == 0.0
    assert (recipe.algorithm.chunk, recipe.algorithm.actor_goals) == (1, "own")
    assert recipe.algorithm.goal_redraw == 0.0


def test_its_policy_does_what_it_did() -> None:
    recorded = RunDirectory(OLD_RUN).read_result().evaluation
    # The last evaluation was that after 20 collections of 4 envs and 10 steps.
    metrics = evaluate(
        load_policy(OLD_RUN),
        "reacher",
        num_envs=4,
        episode_length=20,
        seed=stream_seed(0, "evaluation/20"),
        num_threads=1,
    )
    for name in ("final_distance", "mean_distance", "time_at_goal", "success_any"):
        assert metrics[name] == pytest.approx(recorded[name], rel=1e-5), name


def test_it_is_compared() -> None:
    (curve,) = read_curves(OLD_RUN)
    assert curve.finished and curve.env_steps_E.tolist() == [320, 560, 800]


def test_its_resume_is_refused_with_the_reason(tmp_path: Path) -> None:
    shutil.copytree(OLD_RUN, tmp_path / "run")
    recipe = RunDirectory(OLD_RUN).read_recipe()
    with pytest.raises(CheckpointError, match="an earlier version of torch_crl and cannot be"):
        train(recipe, tmp_path / "run", resume=True, show=False)
    longer = with_changes(recipe, budget={"env_steps": 2000})
    with pytest.raises(CheckpointError):
        train(longer, tmp_path / "run", resume=True, show=False)
    # It is what it was.
    run = RunDirectory(tmp_path / "run")
    assert run.is_finished and run.read_recipe() == recipe
    assert load_policy(run.path)(torch.zeros(10), torch.zeros(3)).shape == (2,)
