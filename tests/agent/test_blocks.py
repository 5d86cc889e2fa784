"""The other blocks: against fp64 loops over single numbers, saved, loaded, trained, refused."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Generator

from tests.helpers.batches import make_batch
from tests.helpers.learners import contrastive_learner
from tests.helpers.recipes import tiny
from tests.kernels.check import DEVICE
from torch_crl.agent.blocks import BLOCKS
from torch_crl.agent.compute import Compute
from torch_crl.agent.networks import Networks, ResidualTower, build_networks
from torch_crl.agent.policy import Policy
from torch_crl.agent.sizes import BLOCK_LAYERS, SHARING_BLOCKS, BlockName, TowerSizes, network_sizes
from torch_crl.errors import UsageError
from torch_crl.kernels.tower import BLOCK
from torch_crl.recipe import checks
from torch_crl.recipe.compute_choice import choose_compute, compute_problems
from torch_crl.runs.policies import load_policy, save_policy

INPUTS, OUTPUTS, WIDTH, DEPTH = 3, 2, 5, 8
Vector = list[float]
Parameters = dict[str, np.ndarray]


def make_tower(
    block: str, *, activation: str = "swish", branch_scale: float = 1.0, recompute: int = 0
) -> ResidualTower:
    sizes = TowerSizes(
        input_size=INPUTS,
        output_size=OUTPUTS,
        width=WIDTH,
        depth=DEPTH,
        activation=activation,
        branch_scale=branch_scale,
        block=block,
    )
    tower = ResidualTower(
        sizes,
        generator=Generator().manual_seed(0),
        compute=Compute(recompute=recompute),
    ).double()
    with torch.no_grad():
        # Away from the initial ones and zeros, so that a forgotten parameter shows.
        noise = Generator().manual_seed(1)
        for parameter in tower.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=noise)
    return tower


def times(weight: np.ndarray, x: Vector) -> Vector:
    return [sum(float(w) * v for w, v in zip(row, x, strict=True)) for row in weight]


def plus(x: Vector, y: Vector) -> Vector:
    return [float(a) + float(b) for a, b in zip(x, y, strict=True)]


def affine(x: Vector, gain: Vector, shift: Vector) -> Vector:
    return [float(g) * v + float(s) for v, g, s in zip(x, gain, shift, strict=True)]


def layer_norm(x: Vector, gain: Vector, shift: Vector) -> Vector:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return affine([(v - mean) / math.sqrt(variance + 1e-6) for v in x], gain, shift)


def unit(x: Vector) -> Vector:
    length = math.sqrt(sum(float(v) ** 2 for v in x))
    return [float(v) / length for v in x]


def act(x: Vector, activation: str) -> Vector:
    if activation == "relu":
        return [max(v, 0.0) for v in x]
    return [v / (1 + math.exp(-v)) for v in x]


def gated_by_hand(p: Parameters, x: Vector) -> Vector:
    c, h = [0.0] * WIDTH, [0.0] * WIDTH
    for _ in range(DEPTH // 4):
        u = layer_norm([*x, *h], [1.0] * 2 * WIDTH, [0.0] * 2 * WIDTH)
        halves = [u[:WIDTH], u[WIDTH:]]
        products = [
            plus(
                times(p["weight"][k], affine(halves[k % 2], p["ln_weight"][k], p["ln_bias"][k])),
                p["bias"][k],
            )
            for k in range(4)
        ]
        keep = [1 / (1 + math.exp(-v - 1)) for v in plus(products[0], products[1])]
        new = [math.tanh(v) for v in plus(products[2], products[3])]
        c = [f * old + (1 - f) * i for f, old, i in zip(keep, c, new, strict=True)]
        h = plus(h, [math.tanh(v) for v in c])
    return h


def by_hand(block: str, p: Parameters, x: Vector, activation: str, scale: float) -> Vector:
    """One row through the whole tower, in Python's floats."""
    first = (p["input_ln_weight"], p["input_ln_bias"])
    if block == "hyperspherical":
        x = unit([*x, 3.0])
        rows = [unit([*row, b]) for row, b in zip(p["input_weight"], p["input_bias"], strict=True)]
        h = [math.sqrt(len(x)) * v for v in times(np.array(rows), x)]
        h = unit(act(affine(h, *first), activation))
    else:
        h = plus(times(p["input_weight"], x), p["input_bias"])
        if block in ("no_skip", "published", "shared"):
            h = act(layer_norm(h, *first), activation)
        if block == "gated":
            h = layer_norm(h, *first)
        if block == "no_norm":
            h = act(affine(h, *first), activation)
    if block == "gated":
        return plus(times(p["output_weight"], gated_by_hand(p, h)), p["output_bias"])
    for start in range(0, DEPTH, 4):
        u = h
        for layer in range(start, start + 4):
            layer %= len(p["weight"])
            weight, bias = p["weight"][layer], p["bias"][layer]
            gain, shift = p["ln_weight"][layer], p["ln_bias"][layer]
            if block in ("no_skip", "published", "shared"):
                u = act(layer_norm(plus(times(weight, u), bias), gain, shift), activation)
            elif block == "no_norm":
                u = act(affine(plus(times(weight, u), bias), gain, shift), activation)
            elif block == "pre_norm":
                u = layer_norm(act(u, activation) if layer > start else u, gain, shift)
                u = plus(times(weight, u), bias)
            else:
                u = times(np.array([unit(row) for row in weight]), u)
                u = unit(act(affine(u, math.sqrt(WIDTH) * gain, bias), activation))
        if block == "no_skip":
            h = u
        elif block == "hyperspherical":
            mean = [float(p["ln_bias"][start : start + 4, unit].mean()) for unit in range(WIDTH)]
            alpha = [(1 + math.sqrt(WIDTH) * m) / (DEPTH / 4 + 1) for m in mean]
            h = unit([v + a * (w - v) for v, w, a in zip(h, u, alpha, strict=True)])
        else:
            h = plus(h, [scale * v for v in u])
    if block == "pre_norm":
        h = layer_norm(h, *first)
    if block == "hyperspherical":
        h = [math.sqrt(WIDTH) * v for v in h]
    return plus(times(p["output_weight"], h), p["output_bias"])


def loss_by_hand(
    tower: ResidualTower, scale: float
) -> tuple[Callable[[Parameters], float], Parameters, Parameters]:
    """A weighted sum of the outputs for two rows as a function, its arguments, and the gradients
    that autograd finds for the tower.
    """
    draw = np.random.default_rng(3)
    weights = draw.normal(size=(2, OUTPUTS))
    values = {name: value.detach().numpy().copy() for name, value in tower.named_parameters()}
    values["x"] = draw.normal(size=(2, INPUTS))

    def loss(p: Parameters) -> float:
        rows = [
            by_hand(tower.sizes.block, p, list(x), tower.sizes.activation, scale) for x in p["x"]
        ]
        return float((np.array(rows) * weights).sum())

    x = torch.tensor(values["x"], requires_grad=True)
    output = (tower(x) * torch.tensor(weights)).sum()
    output.backward()
    assert x.grad is not None
    assert float(output.detach()) == pytest.approx(loss(values), rel=1e-12)
    gradients = {"x": x.grad.numpy()}
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None, name
        gradients[name] = parameter.grad.numpy()
    return loss, values, gradients


@pytest.mark.parametrize("activation", ["swish", "relu"])
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_equals_fp64_loops_forward_and_backward(block: str, activation: str) -> None:
    scale = 0.7 if BLOCKS[block].has_sum else 1.0
    tower = make_tower(block, activation=activation, branch_scale=scale)
    loss, values, gradients = loss_by_hand(tower, scale)
    draw = np.random.default_rng(4)
    for name, value in values.items():
        for _ in range(2):
            direction = draw.normal(size=value.shape)
            up, down = (loss(values | {name: value + step * direction}) for step in (1e-5, -1e-5))
            expected = (up - down) / 2e-5
            slope = float((gradients[name] * direction).sum())
            assert slope == pytest.approx(expected, rel=1e-5, abs=1e-7), name


@pytest.mark.parametrize("block", BLOCKS)
def test_no_parameter_is_dead_and_all_are_counted(block: str) -> None:
    tower = make_tower(block)
    tower(torch.randn(4, INPUTS, dtype=torch.float64)).square().sum().backward()
    for name, parameter in tower.named_parameters():
        assert parameter.grad is not None and (parameter.grad != 0).all(), name
    assert sum(p.numel() for p in tower.parameters()) == tower.sizes.parameters
    shared = replace(tower.sizes, block="published", depth=4).parameters
    published = replace(tower.sizes, block="published").parameters
    assert tower.sizes.parameters == (shared if block in SHARING_BLOCKS else published)


@pytest.mark.parametrize("block", BLOCKS)
def test_recomputing_gives_the_same_gradients(block: str) -> None:
    x = torch.randn(4, INPUTS, dtype=torch.float64, generator=Generator().manual_seed(2))
    gradients = []
    for recompute in (0, 4):
        tower = make_tower(block, recompute=recompute)
        tower(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in tower.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("block", SHARING_BLOCKS)
def test_a_shared_block_runs_at_any_depth(block: str, tmp_path: Path) -> None:
    tower = make_tower(block)
    x = torch.randn(3, INPUTS, dtype=torch.float64, generator=Generator().manual_seed(5))
    deeper = tower.at_depth(16)
    assert deeper.weight is tower.weight and tower.sizes.depth == DEPTH
    again = ResidualTower(deeper.sizes, generator=Generator()).double()
    again.load_state_dict(tower.state_dict())
    torch.testing.assert_close(deeper(x), again(x))
    assert not torch.allclose(deeper(x), tower(x))
    torch.testing.assert_close(tower.at_depth(DEPTH)(x), tower(x))
    torch.testing.assert_close(tower.at_depth(4).at_depth(16)(x), deeper(x))
    with pytest.raises(ValueError, match="depth must be a positive multiple of 4, got 6"):
        tower.at_depth(6)


def test_other_blocks_have_the_depth_that_they_were_trained_with() -> None:
    tower = make_tower("published")
    assert tower.at_depth(DEPTH).sizes == tower.sizes
    policy = Policy(tower.float(), state_size=2, goal_size=1)
    with pytest.raises(UsageError, match="with --block published is fixed at 8; those of shared"):
        policy.at_depth(12)


@pytest.mark.parametrize("block", [name for name, each in BLOCKS.items() if each.has_kernels])
def test_towers_of_these_blocks_run_on_the_kernels(block: str) -> None:
    x = torch.randn(6, INPUTS, generator=Generator().manual_seed(6))
    results = []
    for tower in ("reference", "norm_act"):
        sizes = replace(make_tower(block).sizes, width=16)
        network = ResidualTower(
            sizes, generator=Generator().manual_seed(0), compute=Compute(tower=tower)
        ).to(DEVICE)
        output = network(x.to(DEVICE))
        output.square().sum().backward()
        results.append([output.detach(), *(p.grad for p in network.parameters())])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_a_block_has_as_many_layers_wherever_they_are_counted() -> None:
    assert BLOCK_LAYERS == BLOCK


def test_the_names_of_the_recipe_are_those_of_the_table() -> None:
    assert get_args(BlockName) == tuple(BLOCKS)


def make_networks(block: str) -> Networks:
    sizes = network_sizes(
        state_size=6,
        goal_size=2,
        action_size=3,
        actor_depth=4,
        critic_depth=8,
        width=16,
        representation_size=8,
        block=block,
    )
    return build_networks(sizes, generator=Generator().manual_seed(0))


@pytest.mark.parametrize("block", BLOCKS)
def test_the_policys_rows_reach_the_action_and_no_parameter(block: str) -> None:
    networks = make_networks(block)
    batch = make_batch(5)
    stored = torch.cat([batch["state"], batch["action"]], dim=-1)
    policy = stored.clone().requires_grad_()
    phi, psi, phi_policy = networks.encode(stored, batch["goal"], policy)
    torch.testing.assert_close(phi, phi_policy)
    torch.testing.assert_close(psi, networks.goal_encoder(batch["goal"]))
    phi_policy.square().sum().backward()
    assert policy.grad is not None and policy.grad.any()
    critic = (networks.state_action_encoder, networks.goal_encoder)
    assert all(p.grad is None for network in critic for p in network.parameters())


@pytest.mark.parametrize("block", BLOCKS)
def test_updates_with_every_block_lower_the_loss(block: str) -> None:
    learner = contrastive_learner(
        make_networks(block),
        target_entropy=-1.5,
        learning_rates=(3e-3, 3e-3, 3e-3),
        generator=Generator().manual_seed(1),
    )
    batch = make_batch(16)
    losses = [float(learner.update(batch)["critic_loss"]) for _ in range(40)]
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.isfinite(p).all() for p in learner.named_parameters().values())


@pytest.mark.parametrize("block", BLOCKS)
def test_a_policy_is_loaded_as_it_was_saved(block: str, tmp_path: Path) -> None:
    actor = make_networks(block).actor
    save_policy(Policy(actor, state_size=6, goal_size=2), tmp_path / "policy", {})
    policy = load_policy(tmp_path / "policy")
    assert policy.actor.sizes.block == block
    batch = make_batch(4)
    expected = torch.tanh(actor(torch.cat([batch["state"], batch["goal"]], dim=-1))[:, :3])
    torch.testing.assert_close(policy(batch["state"], batch["goal"]), expected)


@pytest.mark.parametrize(
    ("networks", "system", "message"),
    [
        ({"block": "no_norm"}, {"tower": "norm_act"}, "--tower norm_act is for --block published"),
        ({"block": "no_skip", "branch": "scaled"}, {}, "--branch scaled multiplies what a block"),
        ({"block": "gated", "activation": "relu"}, {}, "--activation relu is not read by --block"),
        ({"block": "post_norm"}, {}, "--block must be one of 'published', 'no_skip'"),
    ],
)
def test_what_does_not_go_together_is_told(
    networks: dict[str, str], system: dict[str, str], message: str
) -> None:
    with pytest.raises(checks.RecipeError, match=re.escape(message)):
        checks.check(tiny(networks=networks, system=system))


def test_auto_takes_plain_torch_for_other_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "torch_crl.recipe.compute_choice.resolve_device", lambda _: torch.device("cuda")
    )
    chosen = choose_compute(tiny(networks={"block": "no_norm"}))
    assert (chosen.tower, chosen.precision) == ("reference", "tf32")


def test_auto_takes_plain_torch_where_rows_are_too_wide_for_a_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = "torch_crl.recipe.compute_choice.resolve_device"
    monkeypatch.setattr(device, lambda _: torch.device("cuda"))
    towers = [choose_compute(tiny(networks={"width": width})).tower for width in (4096, 4100)]
    assert towers == ["norm_act", "reference"]
    problems = compute_problems(tiny(networks={"width": 4100}, system={"tower": "norm_act"}))
    assert problems == [
        "--tower norm_act is for widths up to 4096, got 4100; 'reference' takes any"
    ]


@pytest.mark.parametrize("block", ["no_skip", "gated"])
def test_what_only_a_mixture_of_experts_reads_is_allowed_with_one(block: str) -> None:
    changed = {"no_skip": {"branch": "scaled"}, "gated": {"activation": "relu"}}[block]
    checks.check(tiny(networks={"block": block, "actor_block": "moe", **changed}))
