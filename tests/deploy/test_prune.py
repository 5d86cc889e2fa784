"""Pruning: blocks that add nothing or a constant, the choice of blocks, folding, healing."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from tests.helpers.recipes import tiny
from torch_crl import load_policy, train
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.policy import Policy
from torch_crl.agent.sizes import TowerSizes
from torch_crl.cli.main import main
from torch_crl.deploy.actor import actor_of
from torch_crl.deploy.distil import DistilSettings, distil, met_rows
from torch_crl.deploy.export import export
from torch_crl.deploy.prune import Blocks
from torch_crl.deploy.students import Teacher, retention
from torch_crl.errors import UsageError
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import save_policy

ROWS = torch.randn(300, 13, generator=Generator().manual_seed(1))


each_block = pytest.mark.parametrize("block", ["published", "pre_norm"])


def make_policy(*, blocks: int = 4, width: int = 16, **sizes: Any) -> Policy:
    tower = TowerSizes(input_size=13, output_size=4, width=width, depth=4 * blocks, **sizes)
    actor = ResidualTower(tower, generator=Generator().manual_seed(7))
    return Policy(actor, state_size=10, goal_size=3)


def actor_in(policy: Policy) -> ResidualTower:
    assert isinstance(policy.actor, ResidualTower)
    return policy.actor


@torch.no_grad()
def with_constant_blocks(policy: Policy, *numbers: int, value: float) -> Policy:
    """The same policy, in which these blocks add the same to every input."""
    actor = actor_in(policy)
    is_linear = actor.sizes.block == "pre_norm"
    factor, constant = (actor.weight, actor.bias) if is_linear else (actor.ln_weight, actor.ln_bias)
    for number in numbers:
        factor[4 * number + 3] = 0.0
        constant[4 * number + 3] = value * torch.linspace(0.5, 1.0, 16) if is_linear else value
    return policy


@each_block
@pytest.mark.parametrize("removed", [(1,), (0, 3), (3, 0), (2, 0, 1)])
def test_blocks_that_add_nothing_are_removed_to_the_bit(
    removed: tuple[int, ...], block: str
) -> None:
    policy = with_constant_blocks(make_policy(block=block), *removed, value=0.0)
    blocks = Blocks(policy, ROWS)
    with torch.no_grad():
        expected = policy.actor(ROWS)
        for fold in (True, False):
            smaller = blocks.without(removed, fold=fold)
            assert smaller.sizes.depth == 4 * (4 - len(removed))
            assert smaller(ROWS).equal(expected)
    assert blocks.change(removed) == 0.0


@each_block
@pytest.mark.parametrize("branch_scale", [1.0, 0.25])
@pytest.mark.parametrize("activation", ["swish", "relu"])
def test_blocks_that_add_a_constant_are_folded_and_not_deleted(
    activation: str, branch_scale: float, block: str
) -> None:
    policy = make_policy(activation=activation, branch_scale=branch_scale, block=block)
    with_constant_blocks(policy, 0, 2, value=1.3)
    blocks = Blocks(policy, ROWS)
    with torch.no_grad():
        expected = policy.actor(ROWS)
        folded = blocks.without([0, 2])
        # A LayerNorm behind an activation divides by a small number where most of a row is 0.
        atol = 2e-6 if block == "published" else 5e-5
        torch.testing.assert_close(folded(ROWS), expected, atol=atol, rtol=1e-6)
        deleted = blocks.without([0, 2], fold=False)(ROWS)
    assert (deleted - expected).abs().max() > 1e-2
    assert folded.sizes.branch_scale == branch_scale


@each_block
@pytest.mark.parametrize("removed", [[0], [2], [1, 2], [0, 1, 3]])
def test_a_smaller_network_has_the_actions_that_were_measured(
    removed: list[int], block: str
) -> None:
    policy = make_policy(branch_scale=0.5, block=block)
    blocks = Blocks(policy, ROWS)
    with torch.no_grad():
        actions = blocks.head(blocks.without(removed)(ROWS))
    change = float((actions - blocks.action_KA).abs().mean())
    assert change == pytest.approx(blocks.change(removed), rel=1e-4) and change > 1e-4


@each_block
def test_removing_none_returns_the_same_network(block: str) -> None:
    policy = make_policy(block=block)
    smaller = Blocks(policy, ROWS).without([])
    assert smaller.sizes == actor_in(policy).sizes
    for name, tensor in policy.actor.state_dict().items():
        assert tensor.equal(smaller.state_dict()[name]), name


def block_by_hand(actor: ResidualTower, number: int, h: Tensor) -> Tensor:
    """What a block adds, in float64."""
    x = h
    for layer in range(4 * number, 4 * number + 4):
        weight, bias, gain, shift = (parameter[layer].double() for parameter in actor.stack)
        x = functional.silu(
            functional.layer_norm(x @ weight.T + bias, gain.shape, gain, shift, 1e-6)
        )
    return actor.sizes.branch_scale * x


@torch.no_grad()
def test_the_change_of_actions_by_hand() -> None:
    policy = make_policy(blocks=2, branch_scale=0.5)
    actor, blocks = actor_in(policy), Blocks(make_policy(blocks=2, branch_scale=0.5), ROWS)
    first = functional.layer_norm(
        functional.linear(ROWS.double(), actor.input_weight.double()), (16,), eps=1e-6
    )
    h = functional.silu(first)

    def action(h: Tensor) -> Tensor:
        output = h @ actor.output_weight.double().T + actor.output_bias.double()
        return output[:, :2].tanh()

    added = block_by_hand(actor, 0, h)
    whole = action(h + added + block_by_hand(actor, 1, h + added))
    mean = added.mean(0)
    without_first = action(h + mean + block_by_hand(actor, 1, h + mean))
    without_second = action(h + added + block_by_hand(actor, 1, h + added).mean(0))
    changes = [(each - whole).abs().mean() for each in (without_first, without_second)]
    assert [blocks.change([number]) for number in (0, 1)] == pytest.approx(
        [float(change) for change in changes], abs=1e-6
    )
    # Folded, the network has these very actions.
    folded = blocks.without([0])(ROWS)[:, :2].tanh().double()
    torch.testing.assert_close(folded, without_first, atol=2e-6, rtol=0.0)
    # The one with the smaller change goes first.
    assert blocks.order(1) == [min((0, 1), key=lambda number: changes[number])]


def test_greedy_takes_what_changes_least_at_every_step() -> None:
    policy = with_constant_blocks(make_policy(blocks=5), 3, value=0.7)
    blocks, told = Blocks(policy, ROWS), []
    order = blocks.order(3, told.append)
    assert order[0] == 3 and told == [1, 2, 3]
    for count in (1, 2, 3):
        chosen = blocks.change(order[:count])
        others = {*range(5)} - {*order[: count - 1]}
        assert chosen == min(blocks.change([*order[: count - 1], other]) for other in others)


def test_of_many_blocks_several_go_at_once() -> None:
    blocks, told = Blocks(make_policy(blocks=34, width=8), ROWS[:40]), []
    order = blocks.order(5, told.append)
    assert told == [2, 4, 5] and len(set(order)) == 5
    alone = sorted(range(34), key=lambda number: blocks.change([number]))
    assert order[:2] == alone[:2]


def test_other_networks_are_refused() -> None:
    for block in ("shared", "no_skip"):
        with pytest.raises(UsageError, match=f"--block {block}"):
            Blocks(make_policy(block=block), ROWS)
    clipped = Policy(torch.nn.Sequential(torch.nn.Linear(13, 2)), state_size=10, goal_size=3)
    with pytest.raises(UsageError, match="network of a library"):
        Blocks(clipped, ROWS)
    with pytest.raises(UsageError, match="at least one block"):
        Blocks(make_policy(blocks=2), ROWS).without([0, 1])


def test_a_pruned_policy_is_saved_loaded_and_exported(tmp_path: Path) -> None:
    policy = make_policy(branch_scale=0.25)
    smaller = Policy(Blocks(policy, ROWS).without([1, 2]), state_size=10, goal_size=3)
    save_policy(smaller, tmp_path / "step_1_update_1", {})
    loaded = load_policy(tmp_path / "step_1_update_1")
    state, goal = ROWS.split([10, 3], dim=1)
    assert loaded(state, goal).equal(smaller(state, goal))
    # The scale is that of the old depth.
    assert actor_of(loaded).branch_scale == 0.25 and actor_of(loaded).depth == 8
    export(loaded, "reacher", "numpy", tmp_path / "exported")


def test_healing_begins_with_what_is_given(tmp_path: Path) -> None:
    policy = make_policy(blocks=2)
    directory = RunDirectory(tmp_path / "healed")
    directory.begin(tiny("reacher"), machine={})
    errors = []
    settings = DistilSettings(
        depth=8, width=16, rows=60, updates=4, rounds=2, num_envs=5, learning_rate=1e-9
    )
    options: dict[str, Any] = {
        "episode_length": 9,
        "on_round": lambda _, metrics: errors.append(metrics["action_error"]),
    }
    # A copy of the teacher has nothing to learn.
    same = copy.deepcopy(actor_in(policy))
    distil(policy, "reacher", settings, directory, initial=same, **options)
    assert max(errors) < 1e-6
    other = Blocks(make_policy(blocks=3), ROWS).without([1])
    with pytest.raises(UsageError, match="of another policy"):
        distil(policy, "reacher", settings, directory, initial=other, **options)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    train(tiny("reacher", networks={"actor_depth": 12, "critic_depth": 4}), run, show=False)
    arguments = ["prune", str(run), "--blocks", "1", "2", "--rows", "128", "--updates", "20"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "has 3 blocks" in text and "\n| 2 |" in text and "\n| 1 |" in text
    folder = run / "pruned"
    told = json.loads((folder / "pruned.json").read_text())
    assert len(told["order"]) == 2 and [each["left"] for each in told["pruned"]] == [2, 1]
    assert told["pruned"][0]["removed"] == told["order"][:1]
    # Left out is not folded.
    row = told["pruned"][1]
    policy = load_policy(run)
    teacher = Teacher(policy=policy, recipe=RunDirectory(run).read_recipe())
    length = teacher.recipe.task.episode_length
    blocks = Blocks(policy, met_rows(policy, "reacher", episode_length=length))
    assert blocks.order(2) == told["order"]
    for name, fold in (("deleted", False), ("folded", True)):
        scores = teacher.scores(policy.with_actor(blocks.without(told["order"], fold=fold)))
        assert row[name] == retention(scores, told["teacher"])
    assert (folder / "curve.png").stat().st_size > 1000
    # A pruned policy is a run like any other.
    assert main(["eval", str(folder / "depth8_width8_seed0"), "--num-envs", "2"]) == 0
    assert actor_of(load_policy(folder / "depth4_width8_seed0")).depth == 4
    for wrong in ("3", "7"):
        assert main(["prune", str(run), "--blocks", wrong]) == 1
        assert f"give 1 to 2, got {wrong}" in capsys.readouterr().err
