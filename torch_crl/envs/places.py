"""Places that a task names, so that goals can be commanded by sentences. N goals, P places, G goal.

A place is a point of the goal space and what counts as being there. What a robot has achieved in
hindsight is described by a phrase of the place where it is, or near which it is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from torch_crl.envs.task import Start, Task
from torch_crl.envs.tasks.sampling import Constant
from torch_crl.errors import UsageError

FORMS = (
    "go to the {}",
    "move to the {}",
    "drive to the {}",
    "reach the {}",
    "head for the {}",
    "the {}",
    "get to the {}",
    "make your way towards the {}",
    "could you drive over to the {}",
    "position yourself at the {}",
    "the destination is the {}",
    "i would like you to be at the {}",
    "now the {}",
    "robot, go and stop at the {}",
)
"""Forms of sentences that policies learn from; the name of a place stands for the braces."""
UNSEEN_FORMS = (
    "please bring yourself to the {}",
    "i want you in the {}",
    "your target is the {}",
    "travel over to the {}",
)
"""Forms of sentences that no policy learns from, to evaluate with."""
NEAR_FORMS = (
    "stay near the {}",
    "be around the {}",
    "keep close to the {}",
    "remain beside the {}",
)
"""What is said of a robot that is near a place and not at it. It is never commanded."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Named places of a task; `named_places` makes them from names and points."""

    names: tuple[str, ...]
    """P names, each once."""
    point_PG: Tensor
    """float32: the goal that is commanded with a place, by which the task judges success."""
    place: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    """(achieved goal [N, G], draws [N] from U[0, 1)) to the int64 index [N] of a place, and whether
    it is there (bool [N]) or only near. The draws are for places with soft borders."""
    phrases: tuple[tuple[str, ...], ...]
    """For each place its phrases, equally many, from which policies learn."""
    unseen: tuple[tuple[str, ...], ...]
    """For each place phrases to evaluate with, equally many, of which policies never learn."""
    near: tuple[tuple[str, ...], ...]
    """For each place what is said of goals that are near it and not there, equally many phrases."""


class GoalPoints(NamedTuple):
    """The goals that may be commanded, where these are not all goals of a task."""

    point_PG: Tensor
    named: bool = True
    """Whether each of them must be the point of a place that the task names."""


def nearest(point_PG: Tensor, goal_NG: Tensor) -> Tensor:
    """int64 [N]: the number of the nearest of P points, in Euclidean distance."""
    return distances(goal_NG, point_PG).argmin(1)


def distances(goal_NG: Tensor, point_PG: Tensor) -> Tensor:
    """Euclidean distances [N, P] of goals from points."""
    # By way of products the distance from the point itself would not be 0.
    return torch.cdist(goal_NG, point_PG, compute_mode="donot_use_mm_for_euclid_dist")


def named_places(
    points: Mapping[str, Sequence[float]],
    *,
    radius: float,
    forms: Sequence[str] = FORMS,
    unseen_forms: Sequence[str] = UNSEEN_FORMS,
    near_forms: Sequence[str] = NEAR_FORMS,
) -> Places:
    """Places by name, such as {"upper left corner": (4.0, 4.0)}, each with all forms of sentences.

    The borders of a place are soft: an achieved goal at a distance d from the nearest point is said
    to be at that place with probability exp(-(d / radius)^2), else near it. The most likely way to
    be there is then to be at the point. Borders at a fixed distance do not do: within a large one
    policies do not go on to the point, and within a small one there is hardly anything to learn
    from in the beginning. The names follow "the" in a sentence.

    Raises UsageError if there are no points, if they differ in length, or if a form has no braces.
    """
    rows = [tuple(map(float, point)) for point in points.values()]
    if len(rows) < 2 or len({len(row) for row in rows}) != 1 or not rows[0]:
        raise UsageError(
            f"named_places needs two points or more, all of the length of a goal, got {points}"
        )
    for form in (*forms, *unseen_forms, *near_forms):
        if form.count("{}") != 1:
            raise UsageError(f"a form of a sentence has {{}} once, for the place; got {form!r}")
    points_there = Constant(torch.tensor(rows))

    def place(goal_NG: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
        least_N, index_N = distances(goal_NG, points_there.like(goal_NG)).min(1)
        return index_N, uniform_N < torch.exp((least_N / radius).square().neg())

    def said(forms: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(form.format(name) for form in forms) for name in points)

    return Places(
        names=tuple(points),
        point_PG=torch.tensor(rows),
        place=place,
        phrases=said(forms),
        unseen=said(unseen_forms),
        near=said(near_forms),
    )


def place_problems(places: Any, goal_size: int) -> list[str]:
    """Problems of the places of a task with goals of that size; 0 if the size is not known."""
    if not isinstance(places, Places):
        return [
            "places must be what torch_crl.envs.places.named_places returns, got "
            f"{type(places).__name__}"
        ]
    count, problems = len(places.names), []
    if goal_size and list(places.point_PG.shape) != [count, goal_size]:
        problems.append(
            f"places must have points of {goal_size} numbers, as goals have, got "
            f"{list(places.point_PG.shape)} for {count} places"
        )
    for kind in ("phrases", "unseen", "near"):
        each = {len(phrases) for phrases in getattr(places, kind)}
        if len(getattr(places, kind)) != count or len(each) != 1 or 0 in each:
            problems.append(f"places.{kind} must have equally many phrases for each of {count}")
    return problems


def at_places(task: Task, given: GoalPoints) -> Task:
    """The task with its commanded goals moved to the nearest of these points.

    Raises UsageError if they have to be places of the task and are not.
    """
    places = task.places
    if given.named:
        if places is None:
            raise UsageError(without_places(task.spec.name))
        if not has_points(places, given.point_PG):
            raise UsageError(
                f"the policy knows other places than those of {task.spec.name}, which are "
                f"{', '.join(places.names[:4])} and so on"
            )
    points = Constant(given.point_PG)

    def sample_start(num_envs: int, generator: Generator) -> Start:
        start = task.sample_start(num_envs, generator)
        point_PG = points.like(start.goal_NG)
        return start._replace(goal_NG=point_PG[nearest(point_PG, start.goal_NG)])

    return replace(task, sample_start=sample_start)


def has_points(places: Places, point_PG: Tensor) -> bool:
    """Whether each of these points is that of a place."""
    known = {tuple(point) for point in places.point_PG.tolist()}
    return {tuple(point) for point in point_PG.tolist()} <= known


def without_places(name: str) -> str:
    """What to tell whoever wants to command a task by words that has none."""
    return (
        f"{name} names no places that sentences could be about; point mazes, reacher and arm_reach "
        "do, and a task of your own does with places=named_places(...), see docs/words.md"
    )
