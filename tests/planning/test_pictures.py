"""What pictures of plans show: the same place in every panel, and no mere strip of it."""

import pytest
import torch

from tests.planning.grid import make_planner
from torch_crl.planning.episodes import Episodes
from torch_crl.planning.pictures import Ground, graph_picture, heatmap


def episodes(*, count: int = 40, height: float = 0.0) -> Episodes:
    """Ways along x to goals (x, z), all at one height."""
    goal_NG = torch.stack([torch.linspace(-1.0, 1.0, count), torch.full((count,), height)], -1)
    share_T11 = torch.linspace(0.0, 1.0, 5)[:, None, None]
    return Episodes(goal_NG, share_T11 * goal_NG, torch.ones(count, dtype=torch.bool))


@pytest.mark.parametrize("walls", [[], [(0.0, 0.0, 9.0, 1.0)]])
def test_all_panels_show_the_same_place(walls: list[tuple[float, float, float, float]]) -> None:
    ground = Ground(walls)
    figure = graph_picture(make_planner(), ground, {"no plan": episodes(), "plans": episodes()})
    views = {(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}
    assert len(views) == 1
    if not walls:
        # The nodes of the grid and the goals are all in it.
        ((left, right), (bottom, top)) = views.pop()
        assert left <= -1 and right >= 4 and bottom <= 0 and top >= 4


def test_goals_at_one_height_give_no_strip() -> None:
    figure = heatmap(None, "point_u_maze", Ground([]), episodes(height=-0.6))
    (low, high), (left, right) = figure.axes[0].get_ylim(), figure.axes[0].get_xlim()
    assert high - low >= (right - left) / 2 and low < -0.6 < high


def test_stars_are_at_the_goals_of_the_ways_that_are_drawn() -> None:
    figure = graph_picture(make_planner(), Ground([]), {"no plan": episodes(count=40)})
    ways, stars = figure.axes[1].lines[:-1], figure.axes[1].lines[-1]
    assert len(ways) == len(stars.get_xdata()) == 32
    caption = figure._supxlabel.get_text()  # type: ignore[attr-defined]
    assert "32 episodes of each, with stars at their goals" in caption
