"""The goal space of a run, from its recipe."""

import torch

from torch_crl.distributed.ranks import Ranks
from torch_crl.encoders import DEFAULTS, load_encoder, trust_encoder
from torch_crl.envs.registry import make_task
from torch_crl.goals.pictures import PictureGoals
from torch_crl.goals.readers import AnyReader
from torch_crl.goals.space import GoalSpace, StateGoals
from torch_crl.goals.words import WordGoals
from torch_crl.recipe.record import Recipe
from torch_crl.training.reshard import is_of_rank


def build_goal_space(recipe: Recipe, device: torch.device) -> GoalSpace:
    """What the networks of a run see of its goals. The recipe must have passed `checks.check`.

    Raises EncoderError if the encoder has other weights than the recipe says.
    """
    chosen = recipe.goal_space
    if chosen.goals == "state":
        return StateGoals(recipe.goal_size)
    # A collecting process of Ray has checked nothing.
    encoder = chosen.encoder or DEFAULTS[chosen.goals]
    trust_encoder(encoder)
    load_encoder(encoder, chosen.encoder_sha256)
    if chosen.goals == "pictures":
        return PictureGoals(
            recipe.task.name,
            encoder,
            chosen.goal_features,
            side=chosen.picture_size,
            every=chosen.picture_every,
            rows=recipe.budget.replay_rows,
            num_envs=recipe.task.num_envs,
            discount=recipe.algorithm.discount,
            device=device,
        )
    places = make_task(recipe.task.name).places
    assert places is not None
    return WordGoals(
        places,
        encoder,
        chosen.goal_features,
        device=device,
        tells_places=chosen.same_place == "masked",
    )


def reader_of(space: GoalSpace) -> AnyReader | None:
    """What reads the goals of a policy; None where these are numbers of the state."""
    return space.reader if isinstance(space, WordGoals | PictureGoals) else None


def agree_on(goals: GoalSpace, ranks: Ranks) -> None:
    """All ranks take the features of the first: another machine may find other components."""
    own = goals.state_dict()
    if own and not ranks.is_alone:
        ours = {name: part.cpu() for name, part in own.items() if not is_of_rank(f"goals/{name}")}
        goals.load_state_dict(own | ranks.of_first(lambda: ours))
