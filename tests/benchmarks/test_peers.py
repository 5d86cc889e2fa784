"""The benchmarks' peers compute our update: equal weights, batch and noise give equal results."""

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.batches import A, G, S, make_batch
from tests.helpers.learners import contrastive_learner, networks_of
from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.networks import ResidualTower, build_networks
from torch_crl.agent.sizes import network_sizes
from torch_crl.benchmarks.peers.eager_torch import EagerCrl

SIZES = {"state_size": S, "goal_size": G, "action_size": A, "width": 16, "representation_size": 8}
ROWS = 32
# Adam's first step tells little more than the gradient's sign; the next ones tell its size.
BATCHES = [make_batch(ROWS, seed) for seed in range(3)]
NOISE_SEED = 1
LOSSES = ("actor_loss", "temperature_loss", "critic_loss")
NETWORKS = ("actor", "state_action_encoder", "goal_encoder")


def make_learner(depth: int) -> ActorCritic:
    sizes = network_sizes(**SIZES, actor_depth=depth, critic_depth=depth)
    networks = build_networks(sizes, generator=Generator().manual_seed(0))
    with torch.no_grad():
        # Near the ends of the tanh, the density turns rounding errors into percents.
        networks.actor.output_weight.mul_(0.1)
    return contrastive_learner(
        networks,
        target_entropy=-0.5 * A,
        learning_rates=(3e-4, 3e-4, 3e-4),
        generator=Generator().manual_seed(NOISE_SEED),
    )


def by_layer(network: ResidualTower) -> list[Tensor]:
    """Weight, bias, LayerNorm weight and bias of each layer from the input on, then the head."""
    inner = (network.weight, network.bias, network.ln_weight, network.ln_bias)
    first = [network.input_weight, network.input_bias, network.input_ln_weight]
    first += [network.input_ln_bias]
    layers = [stack[i] for i in range(network.sizes.depth) for stack in inner]
    flat = [*first, *layers, network.output_weight, network.output_bias]
    return [parameter.detach().clone() for parameter in flat]


def assert_losses(ours: dict[str, Tensor], theirs: dict[str, Any]) -> None:
    for name in LOSSES:
        assert float(theirs[name]) == pytest.approx(float(ours[name]), rel=1e-5), name


def assert_close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(other, mine, rtol=0, atol=1e-5)


@pytest.mark.parametrize("depth", [4, 8])
def test_updates_of_the_torch_peer_equal_ours(depth: int) -> None:
    learner = make_learner(depth)
    peer = EagerCrl(**SIZES, depth=depth)
    towers = (peer.actor, peer.phi, peer.psi)
    networks = networks_of(learner).named()
    with torch.no_grad():
        for name, tower in zip(NETWORKS, towers, strict=True):
            for own, theirs in zip(by_layer(networks[name]), tower.parameters(), strict=True):
                theirs.copy_(own)

    with torch.random.fork_rng():
        torch.manual_seed(NOISE_SEED)
        for batch in BATCHES:
            ours = learner.update(batch)
            losses = peer.update(batch["state"], batch["action"], batch["goal"])
            assert_losses(ours, dict(zip(LOSSES, losses, strict=True)))

    for name, tower in zip(NETWORKS, towers, strict=True):
        assert_close(by_layer(networks[name]), [p.detach() for p in tower.parameters()])
    assert_close([learner.log_alpha.detach()], [peer.log_alpha.detach()])


@pytest.fixture
def jax_crl() -> Iterator[ModuleType]:
    jax = pytest.importorskip("jax")
    pytest.importorskip("optax")
    # Before JAX starts its backends: the module limits what they take of a GPU.
    module = importlib.import_module("torch_crl.benchmarks.peers.jax_crl")
    with jax.default_device(jax.devices("cpu")[0]):
        yield module


def to_jax(network: ResidualTower, module: ModuleType, *, layers: str) -> Any:
    """A tower of the JAX peer with the weights of ours, whose Dense is [out, in]."""
    arrays = [p.T.numpy() if p.dim() == 2 else p.numpy() for p in by_layer(network)]
    every = [module.Layer(*arrays[i : i + 4]) for i in range(0, len(arrays) - 2, 4)]
    first, *inner = every
    blocks: Any = tuple(tuple(inner[i : i + 4]) for i in range(0, len(inner), 4))
    if layers == "scan":
        stack = [
            [np.stack(leaves) for leaves in zip(*column, strict=True)]
            for column in zip(*blocks, strict=True)
        ]
        blocks = tuple(module.Layer(*leaves) for leaves in stack)
    return module.Tower(first, blocks, *arrays[-2:])


def from_jax(tower: Any, module: ModuleType) -> list[Tensor]:
    """In the order and orientation of `by_layer`."""
    blocks = tower.blocks
    if isinstance(blocks[0], module.Layer):
        count = len(blocks[0].bias)
        blocks = [[[leaf[n] for leaf in layer] for layer in blocks] for n in range(count)]
    arrays = [*tower.input, *(leaf for block in blocks for layer in block for leaf in layer)]
    arrays += [tower.output_weight, tower.output_bias]
    return [torch.tensor(np.asarray(array).T) for array in arrays]


@pytest.mark.parametrize(("depth", "layers"), [(4, "scan"), (8, "unrolled"), (8, "scan")])
def test_updates_of_the_jax_peer_equal_ours(depth: int, layers: str, jax_crl: ModuleType) -> None:
    learner = make_learner(depth)
    peer = jax_crl.JaxCrl(**SIZES, depth=depth, layers=layers, data_rows=64)
    networks = networks_of(learner).named()
    actor, phi, psi = (to_jax(networks[name], jax_crl, layers=layers) for name in NETWORKS)
    peer.state = peer.state._replace(actor=actor, critic=(phi, psi))
    generator = Generator().manual_seed(NOISE_SEED)

    for batch in BATCHES:
        ours = learner.update(batch)
        noise = torch.randn(ROWS, A, generator=generator)
        parts = (batch["state"], batch["action"], batch["goal"], noise)
        assert_losses(ours, peer.update_with_noise(*(part.numpy() for part in parts)))

    towers = (peer.state.actor, *peer.state.critic)
    for name, tower in zip(NETWORKS, towers, strict=True):
        assert_close(by_layer(networks[name]), from_jax(tower, jax_crl))
    assert float(peer.state.log_alpha) == pytest.approx(float(learner.log_alpha.detach()), abs=1e-5)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_the_jax_peer_runs_many_updates_in_one_program(precision: str, jax_crl: ModuleType) -> None:
    peer = jax_crl.JaxCrl(
        **SIZES, depth=4, layers="scan", precision=precision, batch_size=16, data_rows=64
    )
    before = float(peer.run(4)["critic_loss"][0])
    for _ in range(20):
        losses = peer.run(4)
    assert set(losses) == set(LOSSES) and losses["critic_loss"].shape == (4,)
    assert np.isfinite([np.asarray(loss) for loss in losses.values()]).all()
    assert float(losses["critic_loss"].mean()) < before
