"""Checks of what the networks of a run are to see of its goals."""

from dataclasses import replace

from torch_crl.envs.places import Places, has_points, without_places
from torch_crl.envs.registry import UnknownTaskError, make_task
from torch_crl.envs.task_name import parse_task_name
from torch_crl.goals.encoders import (
    DEFAULTS,
    EncoderError,
    load_encoder,
    module_of_encoder,
    trust_encoder,
)
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.settings import GoalsRecipe

_OBJECTIVES = ("crl", "safe")


def goal_problems(recipe: Recipe) -> list[str]:
    """Problems of a recipe's goals with its task, its objective, or what is installed."""
    chosen = recipe.goal_space
    if chosen.goals == "state":
        usual = GoalsRecipe()
        named = [
            name
            for name in ("encoder", "encoder_sha256", "same_place", "goal_features")
            if getattr(chosen, name) != getattr(usual, name)
        ]
        return [
            f"--{name.replace('_', '-')} takes effect with --goals words only" for name in named
        ]
    given = f"--goals {chosen.goals}"
    problems, forms = [], 1
    known: Places | None = None
    for name in dict.fromkeys((recipe.task.name, recipe.task.eval_name)):
        try:
            foreign = parse_task_name(name).kind == "gymnasium"
            places = None if foreign else make_task(name).places
            if places is None:
                problems.append(f"{given}: {without_places(name)}")
            elif name == recipe.task.name:
                forms, known = len(places.phrases[0]), places
            elif known is not None and not has_points(places, known.point_PG):
                problems.append(
                    f"{given}: --eval-name {name} has other places than {recipe.task.name}"
                )
        except UnknownTaskError:
            continue  # Reported by the checks of the task.
    if recipe.algorithm.objective not in _OBJECTIVES:
        problems.append(
            f"--objective {recipe.algorithm.objective} measures distances to goals, which {given} "
            f"does not have; choose one of {', '.join(_OBJECTIVES)}"
        )
    if recipe.algorithm.parity == "reference":
        problems.append(f"--parity reference has goals of the state only; leave it or {given} out")
    return problems + _encoder_problems(recipe, given, forms)


def _encoder_problems(recipe: Recipe, given: str, forms: int) -> list[str]:
    chosen = recipe.goal_space
    # Commands have asked for --trust where only a file names it.
    trust_encoder(chosen.encoder)
    try:
        encoder = load_encoder(chosen.encoder or DEFAULTS[chosen.goals], chosen.encoder_sha256)
    except EncoderError as error:
        return [f"{given}: {error}"]
    if chosen.goal_features > (most := encoder.size - forms + 1):
        return [
            f"--goal-features must be at most {most}: embeddings of {encoder.name} have "
            f"{encoder.size} numbers, and {forms} forms of sentences take out {forms - 1}; got "
            f"{chosen.goal_features}"
        ]
    return []


def filled_from(recipe: Recipe, saved: Recipe) -> Recipe:
    """The recipe with the encoder of the saved one where it names none itself.

    An encoder that is Python code has to be named, since the saved recipe may be a stranger's.
    """
    ours, theirs = recipe.goal_space, saved.goal_space
    if module_of_encoder(theirs.encoder) or ours.encoder not in ("", theirs.encoder):
        return recipe
    sha256 = ours.encoder_sha256 or theirs.encoder_sha256
    filled = replace(ours, encoder=theirs.encoder, encoder_sha256=sha256)
    return replace(recipe, goal_space=filled) if ours.goals == theirs.goals else recipe


def with_encoder(recipe: Recipe) -> Recipe:
    """The recipe with name and checksum of its encoder, where it has one. It must be checked."""
    chosen = recipe.goal_space
    if chosen.goals == "state":
        return recipe
    name = chosen.encoder or DEFAULTS[chosen.goals]
    known = replace(chosen, encoder=name, encoder_sha256=load_encoder(name).sha256)
    return replace(recipe, goal_space=known)
