"""Towers and the actor's distribution against independent fp64 arithmetic in NumPy."""

import math

import numpy as np
import pytest
import torch
from torch import Generator

from torch_crl.agent.branch_scale import branch_scale
from torch_crl.agent.networks import (
    ResidualTower,
    action_distribution,
    build_networks,
    run_towers,
    squashed_sample,
)
from torch_crl.agent.sizes import TowerSizes, network_sizes
from torch_crl.recipe.presets import preset


def make_tower(depth: int = 8, width: int = 32, activation: str = "swish") -> ResidualTower:
    sizes = TowerSizes(input_size=5, output_size=3, width=width, depth=depth, activation=activation)
    return ResidualTower(sizes, generator=Generator().manual_seed(0))


def numpy_tower(tower: ResidualTower, x: np.ndarray) -> np.ndarray:
    """The published trunk, written from its description, in fp64."""
    p = {name: value.detach().double().numpy() for name, value in tower.named_parameters()}

    def norm_act(h: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        mean = h.mean(-1, keepdims=True)
        variance = ((h - mean) ** 2).mean(-1, keepdims=True)
        h = (h - mean) / np.sqrt(variance + 1e-6) * weight + bias
        return np.maximum(h, 0) if tower.sizes.activation == "relu" else h / (1 + np.exp(-h))

    h = norm_act(
        x @ p["input_weight"].T + p["input_bias"], p["input_ln_weight"], p["input_ln_bias"]
    )
    for block in range(tower.sizes.depth // 4):
        u = h
        for layer in range(4 * block, 4 * block + 4):
            u = norm_act(
                u @ p["weight"][layer].T + p["bias"][layer],
                p["ln_weight"][layer],
                p["ln_bias"][layer],
            )
        h = h + u
    return h @ p["output_weight"].T + p["output_bias"]


@pytest.mark.parametrize("activation", ["swish", "relu"])
@pytest.mark.parametrize("depth", [4, 16, 64])
def test_tower_equals_fp64(depth: int, activation: str) -> None:
    tower = make_tower(depth, activation=activation)
    with torch.no_grad():
        # Away from the initial ones and zeros, so that a forgotten parameter shows.
        for parameter in tower.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=Generator().manual_seed(1))
    x = torch.randn(7, 5, generator=Generator().manual_seed(2))
    expected = numpy_tower(tower, x.double().numpy())
    np.testing.assert_allclose(tower(x).detach().numpy(), expected, rtol=1e-3, atol=1e-3)


def test_initial_values() -> None:
    tower = make_tower(depth=8, width=64)
    for weight, fan_in in (
        (tower.input_weight, 5),
        (tower.weight, 64),
        (tower.output_weight, 64),
    ):
        bound = math.sqrt(1 / fan_in)
        assert weight.abs().max() <= bound
        # Uniform on +-bound has standard deviation bound / sqrt(3).
        assert float(weight.detach().std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
    for bias in (tower.input_bias, tower.bias, tower.output_bias, tower.ln_bias):
        assert not bias.any()
    assert (tower.ln_weight == 1).all() and (tower.input_ln_weight == 1).all()


def test_encoding_together_equals_each_network_alone() -> None:
    """The third output's gradient reaches its input and no parameter."""
    sizes = network_sizes(
        state_size=4,
        goal_size=2,
        action_size=1,
        actor_depth=4,
        critic_depth=8,
        width=16,
        representation_size=3,
    )
    networks = build_networks(sizes, generator=Generator().manual_seed(0))
    generator = Generator().manual_seed(1)
    inputs = [torch.randn(6, size, generator=generator).requires_grad_() for size in (5, 2, 5)]
    alone = [x.detach().clone().requires_grad_() for x in inputs]
    phi, psi = networks.state_action_encoder, networks.goal_encoder
    parameters = [*phi.parameters(), *psi.parameters()]

    together = networks.encode(*inputs)
    sum(output.square().sum() for output in together).backward()
    gradients = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    apart = [phi(alone[0]), psi(alone[1]), phi(alone[2])]
    for output, same in zip(together, apart, strict=True):
        torch.testing.assert_close(output, same)
    (apart[0].square().sum() + apart[1].square().sum()).backward()
    for parameter, gradient in zip(parameters, gradients, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
    apart[2].square().sum().backward()
    for x, same in zip(inputs, alone, strict=True):
        torch.testing.assert_close(x.grad, same.grad)


def change_by_one_update(depth: int, branch: str) -> float:
    """Mean change of a tower's output by one step of Adam on the sum of its outputs."""
    scale = branch_scale(branch, depth)
    sizes = TowerSizes(input_size=5, output_size=3, width=64, depth=depth, branch_scale=scale)
    tower = ResidualTower(sizes, generator=Generator().manual_seed(0))
    x = torch.randn(32, 5, generator=Generator().manual_seed(1))
    adam = torch.optim.Adam(tower.parameters(), lr=3e-4)
    before = tower(x)
    before.sum().backward()
    adam.step()
    return float((tower(x) - before).detach().abs().mean())


def test_with_scaled_branches_what_an_update_does_stops_growing_with_depth() -> None:
    shallow, deep = (change_by_one_update(depth, "scaled") for depth in (64, 512))
    assert 0.5 < deep / shallow < 2.0
    shallow, deep = (change_by_one_update(depth, "published") for depth in (64, 512))
    assert deep / shallow > 5.0


def test_branches_are_scaled_only_where_published_actors_fail() -> None:
    assert [branch_scale("auto", depth) for depth in (4, 64, 512)] == [1.0, 1.0, 1.0]
    assert branch_scale("auto", 1024) == branch_scale("scaled", 1024) == 1 / 64
    assert branch_scale("published", 1024) == 1.0
    assert [branch_scale("scaled", depth) for depth in (4, 16, 32)] == [1.0, 1.0, 0.5]


@pytest.mark.parametrize("depth", [-4, 0, 3, 6, 63])
def test_depth_that_is_no_multiple_of_four_is_refused(depth: int) -> None:
    with pytest.raises(ValueError, match=f"multiple of 4, got {depth}"):
        make_tower(depth)


# Millions of parameters of all three networks at width 256, as published for the reference.
PUBLISHED_MILLIONS = {
    "ant": {4: 0.853, 8: 1.65, 16: 3.24, 32: 6.42, 64: 12.79, 256: 50.98, 512: 101.9, 1024: 203.7},
}


@pytest.mark.parametrize("task", PUBLISHED_MILLIONS)
def test_parameter_counts(task: str) -> None:
    for depth, millions in PUBLISHED_MILLIONS[task].items():
        count = preset(task, depth=depth).update_cost.parameters
        digits = len(str(millions).partition(".")[2])
        assert round(count / 1e6, digits) == millions


@pytest.mark.parametrize("depth", [4, 8])
@pytest.mark.parametrize("task", ["ant", "humanoid", "point_u_maze"])
def test_counted_parameters_are_the_real_ones(task: str, depth: int) -> None:
    recipe = preset(task, depth=depth)
    cost = recipe.update_cost
    networks = build_networks(recipe.network_sizes, generator=Generator())
    real = sum(p.numel() for network in networks.named().values() for p in network.parameters())
    assert cost.parameters == real


@pytest.mark.parametrize("trained", [True, False])
def test_counted_activations_are_what_autograd_saves(trained: bool) -> None:
    tower = make_tower(depth=8, width=32)
    parameters = {parameter.untyped_storage().data_ptr() for parameter in tower.parameters()}
    x = torch.randn(6, 5, requires_grad=True)
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters and storage.data_ptr() != x.data_ptr():
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rows, frozen = (x, None) if trained else (x.new_empty(0, 5), x)
        output = run_towers([rows], [tower], frozen=frozen)[-1]
    assert output.requires_grad
    expected = tower.sizes.saved_bytes(trained=trained, fused=False, recompute=0)
    assert sum(saved.values()) == 6 * expected


def test_action_distribution_limits() -> None:
    mean, log_std = action_distribution(torch.tensor([[0.3, -100.0], [0.1, 0.0], [0.2, 100.0]]))
    torch.testing.assert_close(mean.flatten(), torch.tensor([0.3, 0.1, 0.2]))
    torch.testing.assert_close(log_std.flatten(), torch.tensor([-5.0, -1.5, 2.0]))


def test_squashed_sample_density_integrates_to_one() -> None:
    # One action entry: sum the density over a fine grid of noise, mapped to action space.
    noise = torch.linspace(-6, 6, 20_001, dtype=torch.float64)[:, None]
    mean, log_std = torch.full_like(noise, 0.3), torch.full_like(noise, -0.7)
    action, log_prob = squashed_sample(mean, log_std, noise)
    mass = torch.trapezoid(log_prob.exp(), action.flatten())
    # The published 1e-6 in the density leaves a little out where |action| is near 1.
    assert float(mass) == pytest.approx(1.0, abs=1e-3)


def test_squashed_sample_by_hand() -> None:
    action, log_prob = squashed_sample(
        torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([[0.0, 1.0]])
    )
    squashed = math.tanh(1.0)
    assert action.flatten().tolist() == pytest.approx([0.0, squashed])
    gaussian = -0.5 - math.log(2 * math.pi)
    correction = math.log(1 + 1e-6) + math.log(1 - squashed**2 + 1e-6)
    assert float(log_prob) == pytest.approx(gaussian - correction, abs=1e-6)
