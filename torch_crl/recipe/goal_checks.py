"""Checks of what the networks of a run are to see of its goals."""

from dataclasses import replace

import numpy as np
from torch import Generator

from torch_crl.encoders import (
    DEFAULTS,
    EncoderError,
    load_encoder,
    module_of_encoder,
    trust_encoder,
)
from torch_crl.encoders.camera import look_alike, snapshots_of, trust_task
from torch_crl.envs.goal_states import GoalStateError, goal_states
from torch_crl.envs.places import Places, has_points, without_places
from torch_crl.envs.registry import UnknownTaskError, make_task
from torch_crl.envs.task_name import parse_task_name
from torch_crl.goals.pictures import MOST_FEATURES
from torch_crl.recipe.record import Recipe, flag_of
from torch_crl.recipe.settings import GoalsRecipe
from torch_crl.rendering.gl import RenderError

_OBJECTIVES = ("crl", "safe")
_OF_BOTH = ("encoder", "encoder_sha256", "goal_features")
_OF_WORDS, _OF_PICTURES = ("same_place",), ("picture_every", "picture_size")


def goal_problems(recipe: Recipe) -> list[str]:
    """Problems of a recipe's goals with its task, its objective, or what is installed."""
    chosen = recipe.goal_space
    ours = {"state": (), "words": (*_OF_BOTH, *_OF_WORDS), "pictures": (*_OF_BOTH, *_OF_PICTURES)}
    problems = [
        f"{flag_of(name)} takes effect with {_takers(name)} only"
        for name in (*_OF_BOTH, *_OF_WORDS, *_OF_PICTURES)
        if name not in ours[chosen.goals] and getattr(chosen, name) != getattr(GoalsRecipe(), name)
    ]
    if chosen.goals == "state":
        return problems
    given = f"--goals {chosen.goals}"
    if recipe.algorithm.objective not in _OBJECTIVES:
        problems.append(
            f"--objective {recipe.algorithm.objective} measures distances to goals, which {given} "
            f"does not have; choose one of {', '.join(_OBJECTIVES)}"
        )
    if recipe.algorithm.parity == "reference":
        problems.append(f"--parity reference has goals of the state only; leave it or {given} out")
    if chosen.goals == "pictures":
        return problems + _picture_problems(recipe) + _encoder_problems(recipe, given, forms=1)
    told, forms = _place_problems(recipe, given)
    return problems + told + _encoder_problems(recipe, given, forms)


def _takers(name: str) -> str:
    """The goals for which a setting is."""
    if name in _OF_PICTURES:
        return "--goals pictures"
    return "--goals words" if name in _OF_WORDS else "--goals words or pictures"


def _picture_problems(recipe: Recipe) -> list[str]:
    problems = []
    every = recipe.goal_space.picture_every
    if recipe.budget.replay_rows % every:
        problems.append(
            f"--replay-rows must be a multiple of --picture-every {every}, got "
            f"{recipe.budget.replay_rows}"
        )
    if recipe.algorithm.algo != "crl":
        problems.append(f"--goals pictures is for --algo crl, got {recipe.algorithm.algo}")
    if recipe.system.overlap == "on" or recipe.system.collectors:
        problems.append(
            "--goals pictures films while it collects; leave out --overlap, --collectors"
        )
    name = recipe.task.name
    try:
        if parse_task_name(name).kind == "gymnasium":
            return [*problems, f"--goals pictures films MuJoCo tasks of ours or yours, got {name}"]
        task = make_task(name)
        if task.moved_goal is not None:
            problems.append(f"--goals pictures: the goals of {name} move, and cannot be filmed")
        trust_task(name)
        films = snapshots_of(name, recipe.goal_space.picture_size)
        if not look_alike(name, recipe.task.eval_name):
            problems.append(
                f"--goals pictures: --eval-name {recipe.task.eval_name} looks otherwise than {name}"
            )
        for each in dict.fromkeys((name, recipe.task.eval_name)):
            goal_NG = make_task(each).sample_start(32, Generator().manual_seed(0)).goal_NG
            films(goal_states(task, goal_NG)[:1])
    except UnknownTaskError:
        pass  # Reported by the checks of the task.
    except (RenderError, GoalStateError) as error:
        problems.append(f"--goals pictures: {error}")
    return problems


def _place_problems(recipe: Recipe, given: str) -> tuple[list[str], int]:
    """Problems of a task's places, and the number of forms of their sentences."""
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
    return problems, forms


def _encoder_problems(recipe: Recipe, given: str, forms: int) -> list[str]:
    chosen = recipe.goal_space
    # Commands have asked for --trust where only a file names it.
    trust_encoder(chosen.encoder)
    try:
        encoder = load_encoder(chosen.encoder or DEFAULTS[chosen.goals], chosen.encoder_sha256)
        if chosen.goals == "pictures":
            encoder.encode_image(
                np.zeros((1, chosen.picture_size, chosen.picture_size, 3), np.uint8)
            )
        else:
            encoder.encode_text(["go"])
    except EncoderError as error:
        return [f"{given}: {error}"]
    most = encoder.size - forms + 1
    if chosen.goals == "pictures":
        most = min(encoder.size, MOST_FEATURES)
        if chosen.goal_features > most:
            return [f"--goal-features must be at most {most}, got {chosen.goal_features}"]
    if chosen.goal_features > most:
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
