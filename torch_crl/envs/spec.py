"""Sizes and thresholds of a task: all that is known without building its model."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

LARGEST = 1e10
"""Largest magnitude allowed for any number of an env: MuJoCo reports its own numbers as bad beyond
it, and the square of a much larger number is infinite in float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec:
    """Name, sizes and thresholds of one goal-reaching task."""

    name: str
    """Name on the command line: `ant`, `module:function` of your own, or `gymnasium:ID`."""
    state_size: int
    """Number of entries of the state vector, without the commanded goal."""
    goal_slice: tuple[int, int]
    """(first, stop): the slice of the state vector that is the achieved goal."""
    action_size: int
    """Number of entries of the action; each lies in [-1, 1]."""
    success_radius: Mapping[str, float]
    """Success level (`success`, `success_easy`, `success_hard`) to distance in metres;
    empty for Gymnasium envs, which define success themselves."""
    episode_length: int = 1000
    """Control steps until the time limit, unless the recipe says otherwise."""
    state_names: tuple[str, ...] = ()
    """A name for each entry of the state, with its unit; empty where nobody has written them."""
    build: str = ""
    """`module:function` that turns this spec into a Task."""
    options: Mapping[str, object] = field(default_factory=dict)
    """Arguments of `build`, for instance the maze layout."""

    @property
    def goal_size(self) -> int:
        """Number of entries of the goal."""
        return self.goal_slice[1] - self.goal_slice[0]

    @property
    def success_text(self) -> str:
        """The success radii in metres, as text for people: `0.5, easy 2`."""
        return ", ".join(
            f"{level.removeprefix('success').removeprefix('_')} {radius:g}".strip()
            for level, radius in self.success_radius.items()
        )


def other_sizes(
    wanted: Any, given: Any, names: Iterable[str] = ("state_size", "goal_size", "action_size")
) -> str:
    """What sizes of one task or policy are and of the other are not: `goal_size 2 and not 3`."""
    return ", ".join(
        f"{name} {getattr(wanted, name)} and not {getattr(given, name)}"
        for name in names
        if getattr(wanted, name) != getattr(given, name)
    )
