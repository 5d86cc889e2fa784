"""The compiled update of contrastive RL against that of plain torch in fp64."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.batches import A, G, S, make_batch
from tests.helpers.learners import contrastive_learner
from tests.kernels.check import assert_as_exact
from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.compute import Compute, Tower
from torch_crl.agent.losses import CONTRASTIVE_LOSSES
from torch_crl.agent.networks import build_networks
from torch_crl.agent.sizes import BlockName, network_sizes

pytest.importorskip("numba", reason="numba is not installed")

BATCH = 12
TOWERS: tuple[Tower, Tower] = ("reference", "numba")


def made_learner(
    tower: Tower,
    dtype: torch.dtype,
    *,
    energy: str = "norm",
    contrastive_loss: str = "forward_info_nce",
    block: BlockName = "published",
    **options: Any,
) -> ActorCritic:
    """Networks as after some training, the actor deeper than the critic."""
    sizes = network_sizes(
        state_size=S,
        goal_size=G,
        action_size=A,
        actor_depth=8,
        critic_depth=4,
        width=16,
        representation_size=6,
        block=block,
    )
    compute = Compute(tower=tower)
    networks = build_networks(sizes, generator=Generator().manual_seed(0), compute=compute)
    draws = Generator().manual_seed(1)
    for network in networks.named().values():
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=draws)
        network.to(dtype)
    learner = contrastive_learner(
        networks,
        energy=energy,
        contrastive_loss=contrastive_loss,
        target_entropy=-0.5 * A,
        learning_rates=(3e-4, 6e-4, 9e-4),
        generator=Generator().manual_seed(2),
        **options,
    )
    learner.log_alpha.data = torch.tensor(-0.7, dtype=dtype)
    # Adam's first step is the sign of a gradient if that is above epsilon, so rounding could turn a
    # step around where the gradient is nearly zero.
    for options in (learner.optimizer.defaults, *learner.optimizer.param_groups):
        options["eps"] = 1e-3
    return learner


def updated(
    learner: ActorCritic, *, chunks: bool = False, places: bool = False
) -> dict[str, Tensor]:
    """Metrics, gradients, moments and parameters after each of two updates."""
    found = {}
    for seed in range(2):
        batch = make_batch(BATCH, seed=seed)
        if chunks:
            batch["whole"] = (torch.arange(BATCH) % 3 != 1).float()
        batch = batch.to(learner.actor.weight.dtype)
        if places:
            batch["place"] = torch.arange(BATCH) % 5
        metrics = learner.update(batch)
        state = {name: x for name, x in learner.state_dict().items() if name != "generator"}
        gradients = {f"d{name}": x.grad for name, x in learner.named_parameters().items()}
        for name, x in {**metrics, **gradients, **state}.items():
            assert x is not None
            found[f"{name} {seed}"] = x.detach().clone()
    return found


@pytest.mark.parametrize("goals", ["own", "mixed"])
@pytest.mark.parametrize(
    ("energy", "contrastive_loss", "chunks", "places"),
    [
        *product(["norm", "l2", "dot"], CONTRASTIVE_LOSSES, [False], [False]),
        *product(["norm"], CONTRASTIVE_LOSSES, [True], [False]),
        ("norm", "symmetric_info_nce", True, True),
    ],
)
def test_it_is_as_exact_as_plain_torch(
    energy: str, contrastive_loss: str, chunks: bool, places: bool, goals: str
) -> None:
    def run(tower: Tower, dtype: torch.dtype) -> dict[str, Tensor]:
        learner = made_learner(
            tower, dtype, energy=energy, contrastive_loss=contrastive_loss, actor_goals=goals
        )
        found = updated(learner, chunks=chunks, places=places)
        assert (learner._compiled is not None) == (tower == "numba")
        return found

    assert_exact(run)


def test_it_is_as_exact_with_pre_norm_blocks() -> None:
    def run(tower: Tower, dtype: torch.dtype) -> dict[str, Tensor]:
        learner = made_learner(tower, dtype, block="pre_norm")
        found = updated(learner)
        assert (learner._compiled is not None) == (tower == "numba")
        return found

    assert_exact(run)


def assert_exact(run: Callable[[Tower, torch.dtype], dict[str, Tensor]]) -> None:
    truth, plain = (run("reference", dtype) for dtype in (torch.float64, torch.float32))
    fp64, fp32 = (run("numba", dtype) for dtype in (torch.float64, torch.float32))
    assert fp32.keys() == fp64.keys() == truth.keys()
    assert_as_exact(fp64, truth, truth, floor=1e-11)
    # The second moments add up the gradients of two updates, whose errors may cancel by chance.
    for name in [*fp32]:
        if name.startswith("adam.exp_avg") and name.endswith(" 1"):
            del fp32[name]
    assert_as_exact(fp32, plain, truth, floor=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"energy": "cosine"}, {"update_order": "critic_first"}],
    ids=["cosine", "critic_first"],
)
def test_what_it_is_not_for_is_updated_as_ever(options: dict[str, Any]) -> None:
    plain, ours = (made_learner(tower, torch.float64, **options) for tower in TOWERS)
    assert_as_exact(updated(ours), found := updated(plain), found, floor=1e-11)
    assert ours._compiled is None


def test_batches_of_another_size_and_another_learning_rate_are_noticed() -> None:
    plain, ours = (made_learner(tower, torch.float64) for tower in TOWERS)
    for size, rate in ((5, 1e-3), (9, 1e-2), (9, 1e-1)):
        for learner in (plain, ours):
            for group in learner.optimizer.param_groups:
                group["lr"] = rate
            learner.update(make_batch(size).to(torch.float64))
        theirs = plain.named_parameters()
        for name, parameter in ours.named_parameters().items():
            torch.testing.assert_close(parameter, theirs[name], rtol=1e-9, atol=1e-9)


def test_a_batch_may_be_any_mapping() -> None:
    ours, theirs = (made_learner("numba", torch.float64) for _ in range(2))
    batch = make_batch(BATCH).to(torch.float64)
    for _ in range(2):
        found, expected = ours.update(dict(batch.items())), theirs.update(batch)
        assert found.keys() == expected.keys()
        for name, x in expected.items():
            assert torch.equal(found[name], x), name


def test_a_state_that_is_loaded_is_that_of_the_next_update() -> None:
    learner = made_learner("numba", torch.float64)
    batch = make_batch(BATCH).to(torch.float64)
    learner.update(batch)
    state = {name: x.clone() for name, x in learner.state_dict().items()}
    learner.update(batch)
    once = {name: x.clone() for name, x in learner.state_dict().items()}
    learner.load_state_dict(state)
    learner.update(batch)
    for name, x in learner.state_dict().items():
        assert torch.equal(x, once[name]), name


@pytest.mark.parametrize("part", ["state", "action", "goal"])
def test_nan_is_not_swallowed(part: str) -> None:
    learner = made_learner("numba", torch.float64)
    batch = make_batch(BATCH).to(torch.float64)
    batch[part][3, 0] = torch.nan
    metrics = learner.update(batch)
    assert metrics["critic_loss"].isnan()
    if part != "action":
        assert metrics["actor_loss"].isnan()


def test_parts_of_larger_tensors_are_read_as_such() -> None:
    plain, ours = (made_learner(tower, torch.float64) for tower in TOWERS)
    batch = make_batch(BATCH).to(torch.float64)
    for name in ("state", "action", "goal"):
        batch[name] = batch[name].repeat_interleave(2, -1)[:, ::2]
    theirs, found = plain.update(batch), ours.update(batch)
    for name, value in found.items():
        torch.testing.assert_close(value, theirs[name])
