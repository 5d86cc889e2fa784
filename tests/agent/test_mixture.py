"""Mixtures of experts: against fp64 loops over single rows, in closed form, saved, refused."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.batches import make_batch
from tests.helpers.graph_stand_in import StandIn
from tests.helpers.learners import contrastive_learner
from tests.helpers.recipes import tiny, tiny_baseline
from tests.helpers.same_run import assert_resumes
from torch_crl.agent.compute import Compute
from torch_crl.agent.losses import load_balance_loss
from torch_crl.agent.mixture import slots_of
from torch_crl.agent.networks import ResidualTower, build_networks
from torch_crl.agent.policy import Policy
from torch_crl.agent.sizes import TowerSizes, network_sizes
from torch_crl.deploy.actor import actor_of
from torch_crl.deploy.prune import Blocks
from torch_crl.distributed.ranks import Ranks
from torch_crl.errors import UsageError
from torch_crl.kernels import dense
from torch_crl.recipe import checks
from torch_crl.recipe.marks import unread
from torch_crl.recipe.record import Recipe, with_defaults
from torch_crl.recipe.share import share_problems
from torch_crl.runs.policies import load_policy, save_policy
from torch_crl.training.building import build_run
from torch_crl.training.evaluation import evaluate
from torch_crl.training.expert_use import ExpertUse

INPUTS, OUTPUTS, WIDTH, DEPTH, EXPERTS, ROWS = 3, 2, 5, 8, 3, 29
MOE: dict[str, Any] = {"actor_block": "moe", "experts": 3}
Parameters = dict[str, np.ndarray]


def make_tower(*, recompute: int = 0, precision: str = "fp32") -> ResidualTower:
    sizes = TowerSizes(
        input_size=INPUTS,
        output_size=OUTPUTS,
        width=WIDTH,
        depth=DEPTH,
        branch_scale=0.7,
        block="moe",
        experts=EXPERTS,
    )
    compute = Compute(recompute=recompute, precision=precision)
    tower = ResidualTower(sizes, generator=Generator().manual_seed(0), compute=compute).double()
    with torch.no_grad():
        # Away from the initial ones and zeros, so that a forgotten parameter shows.
        noise = Generator().manual_seed(1)
        for parameter in tower.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=noise)
        tower.gate_weight += 2.0 * torch.randn(tower.gate_weight.shape, generator=noise)
    return tower


def some_rows(count: int = ROWS) -> Tensor:
    return torch.randn(count, INPUTS, dtype=torch.float64, generator=Generator().manual_seed(2))


def layer(x: np.ndarray, weight: np.ndarray, bias: Any, gain: Any, shift: Any) -> np.ndarray:
    y = weight @ x + bias
    y = (y - y.mean()) / math.sqrt(((y - y.mean()) ** 2).mean() + 1e-6) * gain + shift
    made: np.ndarray = y / (1 + np.exp(-y))
    return made


def row_by_hand(p: Parameters, x: np.ndarray) -> tuple[np.ndarray, list[int], np.ndarray]:
    """The output of one row, its experts and the probabilities [blocks, E]."""
    h = layer(x, *(p[f"input_{name}"] for name in ("weight", "bias", "ln_weight", "ln_bias")))
    chosen, probabilities = [], []
    for block in range(DEPTH // 4):
        logits = p["gate_weight"][block] @ h
        probability = np.exp(logits) / np.exp(logits).sum()
        expert, inner = int(np.argmax(logits)), h
        for number in range(4 * block, 4 * block + 4):
            names = ("weight", "bias", "ln_weight", "ln_bias")
            inner = layer(inner, *(p[name][number, expert] for name in names))
        h = h + 0.7 * probability[expert] * inner
        chosen.append(expert)
        probabilities.append(probability)
    return p["output_weight"] @ h + p["output_bias"], chosen, np.array(probabilities)


def balance_by_hand(chosen: list[list[int]], probabilities: np.ndarray) -> float:
    """From the experts and probabilities of all rows."""
    losses = []
    for block in range(DEPTH // 4):
        loss = 0.0
        for expert in range(EXPERTS):
            share = sum(ways[block] == expert for ways in chosen) / len(chosen)
            loss += share * sum(row[block][expert] for row in probabilities) / len(chosen)
        losses.append(EXPERTS * loss)
    return sum(losses) / len(losses)


def test_output_balance_and_gradients_are_those_of_loops_over_rows() -> None:
    tower, x = make_tower(), some_rows().requires_grad_()
    values = {name: value.detach().numpy() for name, value in tower.named_parameters()}
    weights = np.random.default_rng(3).normal(size=(ROWS, OUTPUTS))

    def loss(p: Parameters) -> float:
        outputs, chosen, probabilities = zip(*(row_by_hand(p, row) for row in p["x"]), strict=True)
        balance = balance_by_hand(list(chosen), np.array(probabilities))
        return float((np.array(outputs) * weights).sum()) + 0.3 * balance

    output, routes = tower.with_routes(x)
    assert routes is not None
    _, chosen, _ = zip(*(row_by_hand(values, row) for row in x.detach().numpy()), strict=True)
    assert routes.expert_NB.T.tolist() == list(chosen)
    assert len(set(routes.expert_NB[0].tolist())) == EXPERTS
    found = (output * torch.tensor(weights)).sum() + 0.3 * load_balance_loss(*routes)
    values |= {"x": x.detach().numpy()}
    assert float(found.detach()) == pytest.approx(loss(values), rel=1e-12)
    found.backward()
    leaves = dict(tower.named_parameters()) | {"x": x}
    draw = np.random.default_rng(4)
    for name, value in values.items():
        direction = draw.normal(size=value.shape)
        up, down = (loss(values | {name: value + step * direction}) for step in (1e-6, -1e-6))
        gradient = leaves[name].grad
        assert gradient is not None, name
        slope = float((gradient.numpy() * direction).sum())
        assert slope == pytest.approx((up - down) / 2e-6, rel=1e-5, abs=1e-6), name


@pytest.mark.parametrize(
    ("expert", "probability", "expected"),
    [
        ([[0, 1, 2, 3]], [[[0.25] * 4] * 4], 1.0),
        # Everything goes to one, and the gate is sure of it.
        ([[2, 2]], [[[0.0, 0.0, 1.0, 0.0]] * 2], 4.0),
        # One of two blocks is even: (1 + 4) / 2.
        ([[0, 1, 2, 3], [1] * 4], [[[0.25] * 4] * 4, [[0.0, 1.0, 0.0, 0.0]] * 4], 2.5),
        # f = (3/4, 1/4), P = (0.65, 0.35): 2 (0.4875 + 0.0875).
        ([[0, 0, 0, 1]], [[[0.8, 0.2], [0.7, 0.3], [0.7, 0.3], [0.4, 0.6]]], 1.15),
    ],
)
def test_the_balance_has_its_closed_values(
    expert: list[Any], probability: list[Any], expected: float
) -> None:
    loss = load_balance_loss(torch.tensor(expert), torch.tensor(probability))
    assert float(loss) == pytest.approx(expected)


def test_a_row_does_not_depend_on_the_others() -> None:
    tower, x = make_tower(), some_rows()
    whole = tower(x)
    torch.testing.assert_close(torch.cat([tower(row[None]) for row in x]), whole)
    torch.testing.assert_close(tower(x.flip(0)).flip(0), whole)
    other = x.clone()
    other[1:] = float("inf")
    torch.testing.assert_close(tower(other)[0], whole[0])


@pytest.mark.parametrize("expert", [0, EXPERTS - 1])
def test_no_row_is_dropped_if_all_choose_one_expert(expert: int) -> None:
    tower = make_tower()
    sizes = replace(tower.sizes, block="published", experts=1)
    dense_tower = ResidualTower(sizes, generator=Generator()).double()
    with torch.no_grad():
        # h is positive enough in sum that the gate is sure, and p is 1.
        tower.input_ln_bias.fill_(5.0)
        tower.gate_weight.zero_()[:, expert] = 100.0
    own = {name: value for name, value in tower.state_dict().items() if name != "gate_weight"}
    for name in ("weight", "bias", "ln_weight", "ln_bias"):
        own[name] = own[name][:, expert]
    dense_tower.load_state_dict(own)
    torch.testing.assert_close(tower(some_rows()), dense_tower(some_rows()))


@pytest.mark.parametrize(
    ("count", "experts"), [(1, 4), (3, 4), (5, 4), (100, 7), (128, 4), (512, 4), (512, 16)]
)
def test_every_row_has_a_slot_of_its_own_expert(count: int, experts: int) -> None:
    draws = torch.randint(experts, (count,), generator=Generator().manual_seed(0))
    for expert_B in (draws, draws * 0, draws * 0 + experts - 1, draws.clamp(max=1)):
        slots = slots_of(expert_B, experts)
        assert len(set(slots.slot_B.tolist())) == count
        assert torch.equal(slots.expert_K[slots.slot_B // slots.rows], expert_B)
        assert len(slots.expert_K) * slots.rows <= 1.25 * count
        assert (slots.expert_K.diff() >= 0).all()


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_one_product_for_all_blocks_equals_one_for_each_expert(
    precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for by_expert in (True, False):
        monkeypatch.setattr(dense, "_is_by_expert", lambda _, answer=by_expert: answer)
        tower, x = make_tower(precision=precision).float(), some_rows().float().requires_grad_()
        output = tower(x)
        output.square().mean().backward()
        found.append([output.detach(), x.grad, *(p.grad for p in tower.parameters())])
    torch.testing.assert_close(*found)


def test_shapes_never_depend_on_values() -> None:
    # A tensor without values has none to ask for: what a CUDA graph forbids is an error here.
    tower = make_tower().to("meta")
    output, routes = tower.with_routes(some_rows().to("meta"))
    assert routes is not None
    (output.sum() + load_balance_loss(*routes)).backward()
    assert tower.gate_weight.grad is not None and tower.weight.grad is not None


def test_recomputing_gives_the_same_gradients() -> None:
    gradients = []
    for recompute in (0, 4, 8):
        tower = make_tower(recompute=recompute)
        output, routes = tower.with_routes(some_rows())
        assert routes is not None and routes.expert_NB.shape == (DEPTH // 4, ROWS)
        (output.square().sum() + load_balance_loss(*routes)).backward()
        gradients.append([parameter.grad for parameter in tower.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(gradients[0], gradients[2])


def test_parameters_and_operations_are_counted() -> None:
    tower = make_tower()
    sizes, blocks = tower.sizes, DEPTH // 4
    assert sum(p.numel() for p in tower.parameters()) == sizes.parameters
    published = replace(sizes, block="published", experts=1)
    assert sizes.dense_flop == published.dense_flop + 2 * WIDTH * EXPERTS * blocks


def learner_of(block: str, load_balance: float = 0.01, compute: Compute | None = None) -> Any:
    sizes = network_sizes(
        state_size=6,
        goal_size=2,
        action_size=3,
        actor_depth=4,
        critic_depth=4,
        width=16,
        representation_size=8,
        actor_block=block,  # type: ignore[arg-type]
        experts=4,
    )
    generator = Generator().manual_seed(0)
    return contrastive_learner(
        build_networks(sizes, generator=generator, compute=compute or Compute()),
        target_entropy=-1.5,
        learning_rates=(3e-3, 3e-3, 3e-3),
        generator=Generator().manual_seed(1),
        load_balance=load_balance,
    )


def test_the_balance_is_a_loss_of_the_actor_and_a_metric() -> None:
    batch = make_batch(32)
    ends = []
    for load_balance in (0.0, 100.0):
        learner = learner_of("moe", load_balance)
        metrics = [learner.update(batch) for _ in range(40)]
        ends.append(float(metrics[-1]["load_balance_loss"]))
        assert float(metrics[-1]["critic_loss"]) < 0.9 * float(metrics[0]["critic_loss"])
    assert ends[1] < 1.05 and ends[1] < ends[0]
    assert "load_balance_loss" not in learner_of("same").update(batch)


def test_the_critic_keeps_its_kernels() -> None:
    pytest.importorskip("numba")
    found = []
    for tower in ("reference", "numba"):
        learner = learner_of("moe", compute=Compute(tower=tower))
        for seed in range(3):
            learner.update(make_batch(32, seed))
        found.append(learner.named_parameters())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


def test_a_captured_update_is_the_same() -> None:
    eager = build_run(tiny(networks=MOE))
    captured = build_run(tiny(networks=MOE, system={"cuda_graph": "on"}), make_recorder=StandIn)
    for run in (eager, captured):
        for _ in range(4):
            run.collect()
        for _ in range(8):
            run.update()
    assert captured.update_graph is not None and captured.update_graph.captures == 1
    for name, value in eager.named_parameters().items():
        assert torch.equal(value, captured.named_parameters()[name]), name


@pytest.mark.parametrize("algo", ["crl", "gcbc"])
def test_a_run_resumes_to_the_bit(algo: str, tmp_path: Path) -> None:
    recipe = tiny(networks=MOE, algorithm={"chunk": 2, "average_weights": 0.9, "algo": algo})
    assert_resumes(with_defaults(recipe, unread(Recipe, algo)), tmp_path)
    policy = load_policy(tmp_path / "whole")
    assert policy.actor.sizes.experts == 3
    use = ExpertUse(policy)
    evaluate(policy, "reacher", num_envs=2, episode_length=5, observe=use)
    (shares,) = use.shares()["all goals"]
    assert sum(shares) == pytest.approx(1.0)
    # A plan may have two steps; no expert is asked in the second one. There all rows are the same,
    # so that their shares, if they are counted, differ for certain.
    once, twice = ExpertUse(policy), ExpertUse(policy)
    generator = Generator().manual_seed(0)
    state, goal = torch.randn(64, 10, generator=generator), torch.randn(64, 3, generator=generator)
    alive = torch.ones(64, dtype=torch.bool)
    for row in (slice(None), 0, slice(None), 0):
        twice(state[row].expand(64, -1), goal[row].expand(64, -1), alive)
    once(state, goal, alive)
    assert max(once.shares()["all goals"][0]) < 1.0
    assert (twice.shares() == once.shares()) == (policy.chunk == 2)


def test_a_policy_is_loaded_as_it_was_saved(tmp_path: Path) -> None:
    policy = Policy(make_tower().float(), state_size=2, goal_size=1)
    save_policy(policy, tmp_path / "policy", {})
    loaded = load_policy(tmp_path / "policy")
    state, goal = some_rows()[:, :2], some_rows()[:, 2:]
    assert torch.equal(loaded.plan(state, goal), policy.plan(state, goal))
    assert loaded.experts(state, goal).shape == (DEPTH // 4, ROWS)


def test_experts_need_a_mixture() -> None:
    sizes = replace(make_tower().sizes, block="published")
    with pytest.raises(ValueError, match="3 experts need the block moe, got published"):
        ResidualTower(sizes, generator=None)
    dense_tower = ResidualTower(replace(sizes, experts=1), generator=Generator())
    with pytest.raises(UsageError, match="--actor-block moe has experts"):
        Policy(dense_tower, state_size=2, goal_size=1).experts(torch.zeros(2), torch.zeros(1))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (actor_of, "trained with --actor-block moe; the exported runtimes know published"),
        (lambda policy: Blocks(policy, some_rows().float()), "network of --actor-block moe"),
        (lambda policy: policy.at_depth(16), "with --actor-block moe is fixed at 8"),
    ],
)
def test_what_takes_no_mixture_says_so(use: Callable[[Policy], Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        use(Policy(make_tower().float(), state_size=2, goal_size=1))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"networks": {"actor_block": "moe", "experts": 1}}, "--experts must be at least 2, got 1"),
        ({"networks": {"actor_block": "mixture"}}, "--actor-block must be one of 'same', 'moe'"),
        ({"networks": {"experts": 8}}, "--experts is read with --actor-block moe only; leave it"),
        ({"algorithm": {"load_balance": 0.1}}, "--load-balance is read with --actor-block moe"),
        (
            {"networks": {"actor_block": "moe"}, "algorithm": {"load_balance": -1.0}},
            "--load-balance must be at least 0",
        ),
    ],
)
def test_wrong_settings_are_told(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(checks.RecipeError, match=re.escape(message)):
        checks.check(tiny(**parts))


def test_baselines_have_no_mixture() -> None:
    recipe = tiny_baseline("sac", depth=4, networks=MOE)
    with pytest.raises(checks.RecipeError, match="--actor-block is not read by --algo sac"):
        checks.check(recipe)


def test_several_ranks_are_refused() -> None:
    recipe = tiny(networks=MOE)
    (problem,) = share_problems(recipe, Ranks(rank=0, size=2))
    assert problem.startswith("--actor-block moe balances its experts over the rows of one process")


def test_recipes_of_before_have_no_mixture() -> None:
    text = tiny().to_json()
    for name in ("actor_block", "experts", "load_balance"):
        text = re.sub(rf'\n *"{name}": [^\n]*', "", text)
    assert Recipe.from_json(text) == tiny()
