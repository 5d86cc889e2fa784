"""A whole update on the kernels against the same update in plain torch."""

import copy
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator

from tests.helpers.learners import contrastive_learner
from tests.helpers.recipes import tiny
from tests.kernels.check import DEVICE
from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.behaviour_cloning import BehaviourCloning
from torch_crl.agent.compute import Compute
from torch_crl.agent.networks import build_networks, run_towers
from torch_crl.agent.sizes import BlockName, network_sizes
from torch_crl.kernels.dense import PRECISIONS
from torch_crl.training import building

STATE, GOAL, ACTION, BATCH = 11, 3, 2, 20


def learner(
    compute: Compute,
    contrastive_loss: str,
    block: BlockName,
    critic_depth: int = 8,
    **options: Any,
) -> ActorCritic:
    sizes = network_sizes(
        state_size=STATE,
        goal_size=GOAL,
        action_size=ACTION,
        actor_depth=4,
        critic_depth=critic_depth,
        width=128,
        representation_size=16,
        block=block,
    )
    weights = Generator().manual_seed(0)
    networks = build_networks(sizes, generator=weights, compute=compute).to(DEVICE)
    return contrastive_learner(
        networks,
        contrastive_loss=contrastive_loss,
        target_entropy=-1.0,
        learning_rates=(1e-3, 1e-3, 1e-3),
        generator=Generator(DEVICE).manual_seed(1),
        **options,
    )


@pytest.mark.parametrize(
    ("contrastive_loss", "block"),
    [
        ("forward_info_nce", "shared"),
        ("symmetric_info_nce", "published"),
        ("symmetric_info_nce", "pre_norm"),
    ],
)
def test_updates_on_the_kernels_equal_those_in_plain_torch(
    contrastive_loss: str, block: BlockName
) -> None:
    plain = learner(Compute(precision="fp16"), contrastive_loss, block)
    fused = learner(Compute(precision="fp16", tower="persistent"), contrastive_loss, block)
    generator = Generator().manual_seed(2)
    for _ in range(3):
        batch = drawn_batch(generator)
        expected, metrics = plain.update(batch), fused.update(batch)
        for name, value in expected.items():
            assert float(metrics[name]) == pytest.approx(float(value), rel=5e-3, abs=5e-3), name
    theirs = plain.named_parameters()
    for name, parameter in fused.named_parameters().items():
        # Three steps of 1e-3; Adam turns a tiny gradient's rounding into a whole step.
        difference = (parameter - theirs[name]).detach().abs()
        assert difference.mean() < 1e-4 and difference.max() < 6e-3, name


def drawn_batch(generator: Generator) -> TensorDict:
    return TensorDict(
        {
            "state": torch.randn(BATCH, STATE, generator=generator),
            "action": torch.rand(BATCH, ACTION, generator=generator) * 2 - 1,
            "goal": torch.randn(BATCH, GOAL, generator=generator),
        },
        batch_size=[BATCH],
    ).to(DEVICE)


@pytest.mark.parametrize(
    ("kind", "precision"), [("together", "fp16"), ("critic_first", "fp16"), ("gcbc", "bf16")]
)
def test_towers_read_rounded_weights_that_updates_and_loading_keep_new(
    kind: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = Compute(precision=precision, tower="persistent")
    order = "critic_first" if kind == "critic_first" else "together"
    ours: ActorCritic | BehaviourCloning
    ours = learner(compute, "symmetric_info_nce", "published", critic_depth=4, update_order=order)
    towers = [ours.actor, *ours.objective.towers()]
    assert len(towers) == 3
    # The two encoders pass together, the actor alone.
    assert towers[0].rounded is not towers[1].rounded and towers[1].rounded is towers[2].rounded
    if kind == "gcbc":
        # A second learner of the same network keeps the same copies.
        kept, towers = ours.actor.rounded, towers[:1]
        ours = BehaviourCloning(ours.actor, learning_rate=1e-3)
        assert ours.actor.rounded is kept
    generator = Generator().manual_seed(2)

    def assert_followed() -> None:
        for tower in towers:
            assert tower.rounded is not None
            rounded = tower.rounded.copy_of(tower.weight)
            exact = tower.weight.detach()
            if DEVICE == "cpu" and precision == "bf16":
                # Triton's interpreter cuts off digits where a GPU, and a load, rounds.
                assert rounded is not None and rounded.dtype == torch.bfloat16
                torch.testing.assert_close(rounded.float(), exact, rtol=2**-7, atol=0)
            else:
                assert rounded is not None and rounded.equal(exact.to(PRECISIONS[precision]))

    ours.update(drawn_batch(generator))
    assert_followed()
    saved = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with monkeypatch.context() as patch:
        # Nothing is rounded but by the optimiser.
        patch.setattr(torch, "_foreach_copy_", None)
        ours.update(drawn_batch(generator))
    assert_followed()
    ours.load_state_dict(saved)
    assert_followed()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_copy_", None)
        ours.update(drawn_batch(generator))
    assert_followed()
    # Copies of networks have weights of their own, which nobody rounds.
    for tower in towers:
        other = copy.deepcopy(tower)
        with torch.no_grad():
            other.weight.zero_()
        x = torch.ones(8, tower.sizes.input_size, device=DEVICE)
        plain = copy.deepcopy(other)
        plain.rounded = None
        assert other(x).equal(plain(x))


def test_towers_of_other_depths_pass_alone() -> None:
    compute = Compute(precision="fp16", tower="persistent")
    ours = learner(compute, "symmetric_info_nce", "shared")
    pair = [ours.actor, ours.objective.towers()[0]]
    inputs = [torch.ones(4, tower.sizes.input_size, device=DEVICE) for tower in pair]
    with pytest.raises(ValueError, match="must be equally deep, got 4 and 8"):
        run_towers(inputs, pair)


def test_a_run_uses_what_was_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = []
    for tower, others in (("reference", "reference"), ("norm_act", "triton")):
        monkeypatch.setattr(building, "choose_compute", lambda _, t=tower: Compute(tower=t))
        run = building.build_run(tiny("ant", system={"device": DEVICE}))
        assert run.replay.implementation == others
        for _ in range(4):
            run.collect()
        metrics.append({name: float(value) for name, value in run.update().items()})
    # Actions differ in their last digits, and so do the states that they lead to.
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-2, abs=1e-2)
