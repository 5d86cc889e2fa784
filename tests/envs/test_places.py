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
from torch_crl.envs.tasks.layouts import LAYOUTS, THREE_MAZES, side_by_side
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


def test_an_episode_of_three_mazes_is_in_one_of_them() -> None:
    task = make_task("point_three_mazes")
    start = task.sample_start(2000, torch.Generator().manual_seed(0))
    # A maze has three columns of free cells, 4 m each, and a wall before each of them.
    maze_N, goal_maze_N = start.qpos_NQ[:, 1] // 16, start.goal_NG[:, 1] // 16
    assert torch.equal(maze_N, goal_maze_N.double())
    assert maze_N.unique().tolist() == [0, 1, 2]
    assert (start.qpos_NQ.float() != start.goal_NG).any(1).all()
    assert task.places is not None and len(start.goal_NG.unique(dim=0)) == 21
    names = dict(zip(task.places.names, task.places.point_PG.tolist(), strict=True))
    assert names["upper left corner of the first maze"] == [4.0, 4.0]
    assert names["middle of the left side of the second maze"] == [8.0, 20.0]
    assert names["centre of the third maze"] == [8.0, 40.0]
    # No way leads from one to another: all cells between them are walls.
    grid = side_by_side(THREE_MAZES)
    assert {row[column] for row in grid for column in (0, 4, 8, 12)} == {"#"}


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
