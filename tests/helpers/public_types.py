"""What a type checker must know of the public names. mypy reads this file; nobody runs it."""

from pathlib import Path
from typing import assert_type

from torch import Tensor

import torch_crl
from torch_crl.agent.policy import Policy
from torch_crl.envs.task import Task
from torch_crl.kernels.infonce import PairScores, pair_scores
from torch_crl.kernels.tower import tower
from torch_crl.recipe.record import Recipe
from torch_crl.training.trainer import Result


def public_names(phi: Tensor, run: Path) -> None:
    """None of them is Any."""
    recipe = torch_crl.with_changes(torch_crl.preset("reacher"), system={"seed": 1})
    assert_type(recipe, Recipe)
    assert_type(torch_crl.train(recipe, run), Result)
    policy = torch_crl.load_policy(run)
    assert_type(policy, Policy)
    assert_type(policy(phi, phi), Tensor)
    assert_type(torch_crl.evaluate(policy, "reacher"), dict[str, float])
    assert_type(torch_crl.make_task("ant"), Task)
    assert_type(tower([phi], []), list[Tensor])
    assert_type(pair_scores(phi, phi, energy="norm", implementation="triton"), PairScores)
