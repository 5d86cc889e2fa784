"""Objectives of the user's own: found by module:name, tried out, trained, and used by commands."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor, nn

from tests.helpers.recipes import tiny
from torch_crl import load_policy, train
from torch_crl.agent.networks import build_networks
from torch_crl.agent.objectives import find
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.agent.objectives.objective import Aux, Batch, PolicyRows, Setup
from torch_crl.agent.objectives.trial import try_out
from torch_crl.agent.sizes import network_sizes
from torch_crl.envs.trust import allow_tasks
from torch_crl.errors import UsageError
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.recipe.method import method_name
from torch_crl.runs.directory import RunDirectory

HERE = "tests.agent.objectives.test_registry"


class Mine(ContrastiveObjective):
    """With a parameter of its own."""

    scale: nn.Linear

    @classmethod
    def build(cls, setup: Setup) -> "Mine":
        made = cls(
            setup.networks, energy="dot", contrastive_loss="binary_nce", logsumexp_penalty=0.0
        )
        made.scale = nn.Linear(1, 1)
        made.modules = made.modules | {"scale": made.scale}
        return made

    def loss(self, batch: Batch) -> tuple[Tensor, Aux]:
        loss, metrics = super().loss(batch)
        return loss * self.scale.weight.exp().sum(), metrics


def build(setup: Setup) -> Mine:
    return Mine.build(setup)


@pytest.mark.parametrize("name", ["Mine", "build"])
def test_an_own_objective_is_trained_by_its_name(name: str, tmp_path: Path) -> None:
    recipe = tiny(algorithm={"objective": f"{HERE}:{name}"})
    train(recipe, tmp_path / "run", show=False)
    directory = RunDirectory(tmp_path / "run")
    assert directory.read_recipe() == recipe
    assert directory.read_machine().task_files[f"{HERE}:{name}"] == __file__
    assert load_policy(tmp_path / "run").action_size == 2
    assert method_name(recipe) == f"{HERE}:{name} depth 4"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("mine", "objective 'mine' is unknown; choose one of crl, safe, .* as module:name"),
        ("no_such_module:Mine", "was read as module:name and could not be loaded: ModuleNotFound"),
        (f"{HERE}:Yours", "could not be loaded: AttributeError"),
        (f"{HERE}:HERE", "must be a class with a class method"),
        (f"{HERE}:Setup", "must be a class with a class method"),
    ],
)
def test_what_cannot_be_found_is_told(name: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        find(name)
    with pytest.raises(RecipeError, match=told):
        check(tiny(algorithm={"objective": name}))


def test_code_that_only_a_file_names_is_not_loaded() -> None:
    allow_tasks(["reacher", "crl", "mine:Mine"], typed=["mine:Mine"])
    with pytest.raises(UsageError, match=r"would import mine \(of mine:Mine\); give --trust"):
        allow_tasks(["reacher", "crl", "mine:Mine"], typed=["reacher"], source="recipe.json")


class Wrong(Mine):
    """An objective with one mistake."""

    mistake = ""

    def loss(self, batch: Batch) -> Any:
        loss, metrics = super().loss(batch)
        return {
            "a vector": (loss[None], metrics),
            "no metrics": loss,
            "nothing": None,
            "a number": (loss, {"mine": 3.0}),
            "a name": (loss, {"actor_loss": loss.detach()}),
            "env_steps": (loss, {"env_steps": loss.detach()}),
            "nan": (loss * torch.nan, metrics),
            "no parameter": (loss.detach(), metrics),
        }.get(self.mistake, (loss, metrics))

    def score(self, batch: Batch, policy: PolicyRows) -> Tensor:
        if self.mistake == "detached":
            policy = policy._replace(action_BA=policy.action_BA.detach())
        score_B = super().score(batch, policy)
        if self.mistake == "trains":
            score_B = score_B * self.scale.weight.sum()
        return score_B[:, None] if self.mistake == "a column" else score_B


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("a vector", r"loss must have shape \[\], got \[1\]"),
        ("no metrics", "loss must return the loss and a dict of metrics, and returned Tensor"),
        ("nothing", "loss returned None; does it lack a `return`?"),
        ("a number", "loss's metrics 'mine' must be a tensor"),
        ("a name", "the name 'actor_loss', which is logged already"),
        ("env_steps", "the name 'env_steps', which is logged already"),
        ("nan", "loss is not finite on random numbers"),
        ("no parameter", "loss depends on no parameter of its modules"),
        ("detached", "score does not depend on the policy's actions"),
        ("trains", "score's gradient reaches parameters of its modules"),
        ("a column", r"score must have shape \[8\], got \[8, 1\]"),
        ("raises", "loss raised ZeroDivisionError"),
        ("actor", "modules has the name 'actor'"),
        ("no modules", "modules must be a dict of its networks by name, got dict {}"),
        ("left out", "scale has parameters in none of its modules"),
    ],
)
def test_mistakes_are_found_before_training(mistake: str, told: str) -> None:
    sizes = network_sizes(
        state_size=5, goal_size=2, action_size=3, actor_depth=4, critic_depth=4, width=8,
        representation_size=4,
    )  # fmt: skip
    networks = build_networks(sizes, generator=Generator().manual_seed(0))
    objective = Wrong(networks, energy="dot", contrastive_loss="binary_nce", logsumexp_penalty=0.0)
    objective.scale = nn.Linear(1, 1)
    objective.modules = objective.modules | {"scale": objective.scale}
    try_out("right", objective, networks)
    objective.mistake = mistake
    if mistake == "raises":
        objective.loss = lambda batch: 1 / 0  # type: ignore[method-assign]
    if mistake == "actor":
        objective.modules = objective.modules | {"actor": objective.scale}
    if mistake in ("no modules", "left out"):
        kept = {} if mistake == "no modules" else networks.named()
        objective.modules = {name: kept[name] for name in kept if name != "actor"}
    with pytest.raises(UsageError, match=told):
        try_out("wrong", objective, networks)


def test_what_does_not_make_an_objective_is_told() -> None:
    with pytest.raises(UsageError, match="must return an Objective, and returned None"):
        try_out("wrong", None, None)  # type: ignore[arg-type]
