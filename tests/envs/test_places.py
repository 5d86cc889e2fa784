"""Places of tasks: names, points, and what is checked of those of one's own."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from torch_crl.envs.places import Places, named_places
from torch_crl.envs.registry import TASKS, make_task
from torch_crl.envs.tasks import place_names
from torch_crl.envs.tasks.layouts import LAYOUTS
from torch_crl.envs.trial import task_problems

GOOD = named_places({"left": (-1.0, 0.0), "right": (1.0, 0.0)}, radius=0.5)
NAMED = [name for name in TASKS if name in ("reacher", "arm_reach") or name.startswith("point_")]


@pytest.mark.parametrize("name", NAMED)
def test_every_goal_of_a_task_is_near_one_of_its_places(name: str) -> None:
    task = make_task(name)
    places = task.places
    assert places is not None
    assert len(set(places.names)) == len(places.names) == len(places.point_PG)
    sentences = [
        text
        for kind in (places.phrases, places.unseen, places.near)
        for some in kind
        for text in some
    ]
    assert len(set(sentences)) == len(sentences)
    assert not task_problems(task)
    if name.startswith("point_"):
        goal_NG = task.sample_start(50, torch.Generator().manual_seed(0)).goal_NG
        assert torch.cdist(goal_NG, places.point_PG).min(1).values.max() == 0.0


@pytest.mark.parametrize("maze", ["u_maze", "u4_maze", "big_maze"])
def test_a_maze_and_its_eval_layout_have_the_same_places(maze: str) -> None:
    plain, evaluated = (
        place_names.of_cells(LAYOUTS[name], scale=4.0) for name in (maze, f"{maze}_eval")
    )
    assert plain == evaluated


def test_names_are_where_pictures_show_them() -> None:
    # Rows run downwards in the picture, and columns to the right.
    names = place_names.of_cells(LAYOUTS["u_maze"], scale=4.0)
    assert names["upper left corner"] == (4.0, 4.0)
    assert names["upper right corner"] == (4.0, 12.0)
    assert names["middle of the right side"] == (8.0, 12.0)
    assert names["lower left corner"] == (12.0, 4.0)
    around = place_names.around({"far": 1.0}, height=0.0)
    assert around["far point in the north"] == pytest.approx((0.0, 1.0, 0.0))
    assert around["far point in the east"] == pytest.approx((1.0, 0.0, 0.0))


def wrong_index(goal_NG: Tensor, uniform_N: Tensor) -> tuple[Tensor, Tensor]:
    return torch.full((len(goal_NG),), 2), uniform_N < 0.5


def without_second_part(goal_NG: Tensor, uniform_N: Tensor) -> Any:
    return GOOD.place(goal_NG, uniform_N)[0]


@pytest.mark.parametrize(
    ("places", "problem"),
    [
        ({"left": (1.0, 0.0)}, "places must be what torch_crl.envs.places.named_places returns"),
        (
            named_places({"a": (0.0,), "b": (1.0,)}, radius=1.0),
            r"points of 2 numbers, as goals have, got \[2, 1\]",
        ),
        (dataclasses.replace(GOOD, phrases=(("go left",),)), "places.phrases must have equally"),
        (dataclasses.replace(GOOD, near=((), ())), "places.near must have equally"),
        (dataclasses.replace(GOOD, place=wrong_index), "places.place must return 0 to 1"),
        (dataclasses.replace(GOOD, place=without_second_part), "an index and whether it is there"),
    ],
)
def test_what_is_wrong_with_places_is_told(places: Any, problem: str) -> None:
    task = dataclasses.replace(make_task("own_task:make"), places=places)
    (told,) = task_problems(task)
    assert re.search(problem, told), told


def test_places_of_ones_own_are_fine() -> None:
    assert isinstance(GOOD, Places)
    assert not task_problems(dataclasses.replace(make_task("own_task:make"), places=GOOD))
