"""One update: against the reference's order written out, and what must hold for any update."""

import copy
import math
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator, Tensor

from tests.helpers.batches import A, G, S, make_batch
from tests.helpers.largest_tensor import LargestTensor
from tests.helpers.learners import contrastive_learner, networks_of
from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.losses import CONTRASTIVE_LOSSES, ENERGIES, critic_loss
from torch_crl.agent.networks import build_networks
from torch_crl.agent.sizes import network_sizes
from torch_crl.kernels.infonce import reduce_energies


def make_learner(
    *,
    energy: str = "norm",
    contrastive_loss: str = "forward_info_nce",
    depth: int = 4,
    width: int = 16,
    learning_rate: float = 3e-4,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> ActorCritic:
    sizes = network_sizes(
        state_size=S,
        goal_size=G,
        action_size=A,
        actor_depth=depth,
        critic_depth=depth,
        width=width,
        representation_size=8,
    )
    networks = build_networks(sizes, generator=Generator().manual_seed(0))
    for network in networks.named().values():
        network.to(dtype)
    return contrastive_learner(
        networks,
        energy=energy,
        contrastive_loss=contrastive_loss,
        target_entropy=-0.5 * A,
        learning_rates=(learning_rate, 2 * learning_rate, 3 * learning_rate),
        generator=Generator().manual_seed(1),
        **options,
    )


class ReferenceOrder:
    """The update as published: actor and temperature step first, then the critic's, three Adams.

    Losses are written out from their definition. With `critic_first` the critic steps before the
    actor's loss is computed.
    """

    def __init__(self, learner: ActorCritic) -> None:
        self.critic_first = learner.update_order == "critic_first"
        self.networks = copy.deepcopy(networks_of(learner))
        self.log_alpha = learner.log_alpha.detach().double().clone().requires_grad_()
        critic = [
            *self.networks.state_action_encoder.parameters(),
            *self.networks.goal_encoder.parameters(),
        ]
        self.critic = torch.optim.Adam(critic, lr=6e-4)
        self.actor = torch.optim.Adam(self.networks.actor.parameters(), lr=3e-4)
        self.alpha = torch.optim.Adam([self.log_alpha], lr=9e-4)

    def update(self, batch: TensorDict, noise: Tensor) -> dict[str, float]:
        state, action, goal, noise = (
            part.double() for part in (batch["state"], batch["action"], batch["goal"], noise)
        )
        if self.critic_first:
            critic_loss = self.critic_step(state, action, goal)
        critic_before = copy.deepcopy(self.networks)
        mean, raw = self.networks.actor(torch.cat([state, goal], 1)).split(A, dim=1)
        log_std = -5 + 3.5 * (raw.tanh() + 1)
        sample = mean + log_std.exp() * noise
        policy_action = sample.tanh()
        gaussian = torch.distributions.Normal(mean, log_std.exp()).log_prob(sample)
        log_prob = (gaussian - (1 - policy_action**2 + 1e-6).log()).sum(1)
        phi = critic_before.state_action_encoder(torch.cat([state, policy_action], 1))
        distance = ((phi - critic_before.goal_encoder(goal)) ** 2).sum(1).add(1e-6).sqrt()
        actor_loss = (self.log_alpha.exp().detach() * log_prob + distance).mean()
        alpha_loss = self.log_alpha.exp() * (-log_prob.detach() + 0.5 * A).mean()
        for optimizer, loss in ((self.actor, actor_loss), (self.alpha, alpha_loss)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if not self.critic_first:
            critic_loss = self.critic_step(state, action, goal)
        losses = {"actor_loss": actor_loss, "critic_loss": critic_loss}
        losses["temperature_loss"] = alpha_loss
        return {name: float(loss.detach()) for name, loss in losses.items()}

    def critic_step(self, state: Tensor, action: Tensor, goal: Tensor) -> Tensor:
        phi = self.networks.state_action_encoder(torch.cat([state, action], 1))
        psi = self.networks.goal_encoder(goal)
        rows = [torch.stack([-((x - y) ** 2).sum().add(1e-6).sqrt() for y in psi]) for x in phi]
        critic_loss = torch.zeros((), dtype=torch.float64)
        for i, row in enumerate(rows):
            normaliser = row.exp().sum().log()
            critic_loss = critic_loss + (normaliser - row[i] + 0.1 * normaliser**2) / len(rows)
        self.critic.zero_grad()
        critic_loss.backward()
        self.critic.step()
        return critic_loss


@pytest.mark.parametrize("update_order", ["together", "critic_first"])
def test_ten_updates_equal_the_reference_order_in_fp64(update_order: str) -> None:
    # Both in fp64: in fp32, Adam's first steps turn the rounding of a tiny gradient into a full
    # step. The learner's temperature and noise stay fp32.
    learner = make_learner(dtype=torch.float64, update_order=update_order)
    reference = ReferenceOrder(learner)
    noises = Generator().manual_seed(1)
    for step in range(10):
        batch = make_batch(12, seed=step).double()
        metrics = learner.update(batch)
        expected = reference.update(batch, torch.randn(12, A, generator=noises))
        for name, value in expected.items():
            assert float(metrics[name]) == pytest.approx(value, rel=1e-6), (step, name)
    for ours, theirs in zip(
        networks_of(learner).named().values(), reference.networks.named().values(), strict=True
    ):
        for name, parameter in ours.named_parameters():
            other = theirs.get_parameter(name)
            # Ten Adam steps move a weight by up to 6e-3; agree to a thousandth of that.
            torch.testing.assert_close(parameter, other, atol=6e-6, rtol=0.0)
    alphas = [float(alpha.detach()) for alpha in (learner.log_alpha, reference.log_alpha)]
    assert alphas[0] == pytest.approx(alphas[1], abs=1e-6)


def test_updates_are_repeatable_bit_for_bit() -> None:
    ours, theirs = make_learner(), make_learner()
    for step in range(5):
        for learner in (ours, theirs):
            learner.update(make_batch(32, seed=step))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


@pytest.mark.parametrize("depth", [4, 64])
@pytest.mark.parametrize("batch_size", [64, 512])
def test_initial_info_nce_is_about_log_batch(batch_size: int, depth: int) -> None:
    learner = make_learner(depth=depth, width=64)
    metrics = learner.update(make_batch(batch_size))
    assert float(metrics["contrastive_loss"]) == pytest.approx(math.log(batch_size), abs=0.15)
    # The penalty is 0.1 (logsumexp)^2, and logsumexp about log B minus the mean distance.
    penalty = float(metrics["critic_loss"] - metrics["contrastive_loss"])
    mean_distance = -float(metrics["logits_negative"])
    expected = 0.1 * (math.log(batch_size) - mean_distance) ** 2
    assert penalty == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("contrastive_loss", CONTRASTIVE_LOSSES)
@pytest.mark.parametrize("energy", ENERGIES)
def test_every_energy_and_loss_learns_to_tell_pairs_apart(
    energy: str, contrastive_loss: str
) -> None:
    learner = make_learner(
        energy=energy, contrastive_loss=contrastive_loss, width=32, learning_rate=3e-3
    )
    log = []
    # A pair of binary NCE is one of 32 that are told apart on their own.
    for step in range(250 if contrastive_loss == "binary_nce" else 150):
        batch = make_batch(32, seed=step)
        # Goals that follow from state and action: there is something to learn.
        batch["goal"] = batch["state"][:, :G] + batch["action"][:, :G]
        log.append(learner.update(batch))
    accuracy = sum(float(metrics["categorical_accuracy"]) for metrics in log[-20:]) / 20
    if (energy, contrastive_loss) == ("cosine", "binary_nce"):
        # Logits in [-1, 1] cannot express odds of 1 to 31: all pairs end at -1, the best constant.
        constant = (31 * math.log1p(math.exp(-1)) + math.log1p(math.exp(1))) / 32
        loss = float(log[-1]["contrastive_loss"])
        assert loss == pytest.approx(constant, abs=0.01)
    else:
        # Chance is 1 / 32.
        assert accuracy > 8 / 32


def test_actor_climbs_the_critic() -> None:
    # A critic that is left alone: the actor's energy must rise by the actor's own steps.
    learner = make_learner(learning_rate=3e-3)
    for group in learner.optimizer.param_groups[1:]:
        group["lr"] = 0.0
    batch = make_batch(256)
    losses = [float(learner.update(batch)["actor_loss"]) for _ in range(60)]
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.5


def test_state_dict_goes_on_bit_for_bit() -> None:
    ours, theirs = make_learner(), make_learner()
    for step in range(3):
        ours.update(make_batch(16, seed=step))
    theirs.update(make_batch(16, seed=77))
    theirs.load_state_dict({name: value.clone() for name, value in ours.state_dict().items()})
    for learner in (ours, theirs):
        learner.update(make_batch(16, seed=4))
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_state_of_a_learner_that_never_updated_can_be_loaded() -> None:
    fresh, used = make_learner(), make_learner()
    saved = {name: value.clone() for name, value in fresh.state_dict().items()}
    used.update(make_batch(16))
    used.load_state_dict(saved)
    for learner in (fresh, used):
        learner.update(make_batch(16, seed=4))
    for name, value in fresh.state_dict().items():
        assert torch.equal(value, used.state_dict()[name]), name


def test_no_tensor_of_batch_by_batch_by_representation_is_made() -> None:
    learner = make_learner(width=16)
    batch_size, representation = 300, 8
    with LargestTensor() as watch:
        learner.update(make_batch(batch_size))
    assert batch_size * batch_size <= watch.numel < batch_size * batch_size * representation


def test_the_temperature_starts_where_it_is_told_to() -> None:
    learner = make_learner(initial_temperature=0.1)
    metrics = learner.update(make_batch(16))
    assert float(metrics["alpha"]) == pytest.approx(0.1)
    assert make_learner().log_alpha.item() == 0.0


def test_with_mixed_goals_half_of_the_actor_s_rows_take_another_row_s_goal() -> None:
    # The loss is a mean over rows, so it is that of a batch whose rows have these goals.
    learner = make_learner(dtype=torch.float64, actor_goals="mixed")
    plain = make_learner(dtype=torch.float64)
    batch = make_batch(9).double()
    mixed = batch.clone()
    mixed["goal"] = batch["goal"][[0, 1, 2, 3, 8, 4, 5, 6, 7]]
    ours, others, same = (
        learner.update(batch),
        plain.update(mixed),
        make_learner(dtype=torch.float64).update(batch),
    )
    for name in ("actor_loss", "temperature_loss", "entropy"):
        torch.testing.assert_close(ours[name], others[name])
    # The critic's loss is on the batch as it is.
    torch.testing.assert_close(ours["critic_loss"], same["critic_loss"])
    assert ours["actor_loss"] != same["actor_loss"]


@pytest.mark.parametrize("contrastive_loss", list(CONTRASTIVE_LOSSES))
def test_chunks_cut_short_have_no_loss_and_their_goals_stay_negatives(
    contrastive_loss: str,
) -> None:
    generator = Generator().manual_seed(0)
    energies = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    whole = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.float64)
    kind = CONTRASTIVE_LOSSES[contrastive_loss]

    def loss(energies: Tensor, whole: Tensor | None) -> Tensor:
        scores = reduce_energies(
            energies, columns=kind.columns, softplus=kind.softplus, row_mask_B=whole
        )
        value, _ = critic_loss(
            scores, contrastive_loss=contrastive_loss, logsumexp_penalty=0.1, whole_B=whole
        )
        return value

    rows = whole.nonzero()[:, 0]
    kept, own = energies[rows], energies[rows, rows]
    forward = (kept.logsumexp(1) - own).mean()
    backward = (kept.logsumexp(0)[rows] - own).mean()
    binary = ((1 + kept.exp()).log().sum(1) - own).mean() / 6
    expected = {
        "forward_info_nce": forward,
        "backward_info_nce": backward,
        "symmetric_info_nce": forward + backward,
        "binary_nce": binary,
    }[contrastive_loss] + 0.1 * energies.logsumexp(1).square().mean()
    torch.testing.assert_close(loss(energies, whole), expected)
    torch.testing.assert_close(loss(energies, torch.ones_like(whole)), loss(energies, None))
    # Without any whole chunk only the penalty is left, and its gradient is finite.
    energies.requires_grad_()
    nothing = loss(energies, torch.zeros_like(whole))
    torch.testing.assert_close(nothing, 0.1 * energies.logsumexp(1).square().mean())
    (gradient,) = torch.autograd.grad(nothing, energies)
    assert gradient.isfinite().all()
