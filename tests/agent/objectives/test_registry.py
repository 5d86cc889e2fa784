"""Objectives of a program's own: registered, trained by name, and told from misspelt ones."""

from pathlib import Path

import pytest

from tests.helpers.recipes import tiny
from torch_crl import load_policy, train
from torch_crl.agent.objectives import OBJECTIVES, register
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.agent.objectives.objective import Setup
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.runs.directory import RunDirectory
from torch_crl.study.compare import method_name


class Mine(ContrastiveObjective):
    pass


def build(setup: Setup) -> Mine:
    return Mine(setup.networks, energy="dot", contrastive_loss="binary_nce", logsumexp_penalty=0.0)


def test_a_registered_objective_is_trained_by_its_name(tmp_path: Path) -> None:
    recipe = tiny(algorithm={"objective": "mine"})
    with pytest.raises(RecipeError, match="--objective mine is unknown; choose one of crl, safe"):
        check(recipe)
    register("mine", build)
    try:
        # Registering the same again is no mistake: a module may be loaded twice.
        register("mine", build)
        train(recipe, tmp_path / "run", show=False)
        with pytest.raises(ValueError, match="'mine' is registered already"):
            register("mine", ContrastiveObjective.build)
    finally:
        del OBJECTIVES["mine"]
    # What has been trained is read anywhere.
    assert RunDirectory(tmp_path / "run").read_recipe() == recipe
    assert load_policy(tmp_path / "run").action_size == 2
    assert method_name(recipe) == "mine depth 4"


def test_no_name_is_taken_from_ours() -> None:
    with pytest.raises(ValueError, match="'crl' is registered already"):
        register("crl", build)
