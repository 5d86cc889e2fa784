"""Learners of contrastive RL from given networks."""

from typing import Any

from torch import Generator

from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.networks import Networks
from torch_crl.agent.objectives.crl import ContrastiveObjective


def contrastive_learner(
    networks: Networks,
    *,
    energy: str = "norm",
    contrastive_loss: str = "forward_info_nce",
    target_entropy: float,
    learning_rates: tuple[float, float, float],
    generator: Generator,
    **options: Any,
) -> ActorCritic:
    """`learning_rates` are those of actor, critic and temperature."""
    actor, critic, temperature = learning_rates
    return ActorCritic(
        networks.actor,
        ContrastiveObjective(
            networks, energy=energy, contrastive_loss=contrastive_loss, logsumexp_penalty=0.1
        ),
        target_entropy=target_entropy,
        actor_learning_rate=actor,
        critic_learning_rate=critic,
        temperature_learning_rate=temperature,
        generator=generator,
        **options,
    )


def networks_of(learner: ActorCritic) -> Networks:
    assert isinstance(learner.objective, ContrastiveObjective)
    return learner.objective.networks
