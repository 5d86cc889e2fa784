"""The goal space of a run, from its recipe."""

import torch

from torch_crl.envs.registry import make_task
from torch_crl.goals.encoders import DEFAULTS, load_encoder, trust_encoder
from torch_crl.goals.space import GoalSpace, StateGoals
from torch_crl.goals.words import Reader, WordGoals
from torch_crl.recipe.record import Recipe


def build_goal_space(recipe: Recipe, device: torch.device) -> GoalSpace:
    """What the networks of a run see of its goals. The recipe must have passed `checks.check`.

    Raises EncoderError if the encoder has other weights than the recipe says.
    """
    chosen = recipe.goal_space
    if chosen.goals == "state":
        return StateGoals(recipe.goal_size)
    places = make_task(recipe.task.name).places
    assert places is not None
    # A collecting process of Ray has checked nothing.
    encoder = chosen.encoder or DEFAULTS[chosen.goals]
    trust_encoder(encoder)
    load_encoder(encoder, chosen.encoder_sha256)
    return WordGoals(
        places,
        encoder,
        chosen.goal_features,
        device=device,
        tells_places=chosen.same_place == "masked",
    )


def reader_of(space: GoalSpace) -> Reader | None:
    """What reads the goals of a policy; None where these are numbers of the state."""
    return space.reader if isinstance(space, WordGoals) else None
