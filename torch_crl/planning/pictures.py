"""Pictures from above: a critic's distances over a task, ways, and where goals are reached.

G goal (its first two numbers are drawn), P positions, N episodes, T control steps.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import mujoco
import numpy as np
import torch
from torch import Tensor

from torch_crl.envs.make import make_vector_env
from torch_crl.envs.registry import make_task, task_spec
from torch_crl.envs.task_name import parse_task_name
from torch_crl.planning.episodes import Episodes
from torch_crl.planning.goal_value import GoalValue, TrainedRun
from torch_crl.planning.graph import spread
from torch_crl.planning.planner import GraphPlanner
from torch_crl.runs.plots import load_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

_SPACING = 0.125
"""Of the positions of a field, in wall widths."""
_SHOWN_GOALS, _SHOWN_STATES = 3, 4000
_SHOWN_PATHS = 8
_ON_LINE = 33
_DRAWN = 32
_WALL = "#30343b"


class Ground(NamedTuple):
    """A task as seen from above."""

    walls: list[tuple[float, float, float, float]]
    """Centre and half widths of each wall, in metres; empty for tasks without a maze."""
    labels: tuple[str, ...] = ("x, m", "y, m")
    """What the first two numbers of a goal are."""

    @property
    def is_maze(self) -> bool:
        """Whether there are walls."""
        return bool(self.walls)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Smallest and largest x and y of all walls."""
        x, y, dx, dy = map(np.array, zip(*self.walls, strict=True))
        return (x - dx).min(), (x + dx).max(), (y - dy).min(), (y + dy).max()

    def free(self, position_P2: Tensor) -> Tensor:
        """bool [P]: which positions are in no wall."""
        inside = torch.zeros(len(position_P2), dtype=torch.bool)
        for x, y, dx, dy in self.walls:
            offset = (position_P2 - torch.tensor([x, y])).abs()
            inside |= (offset <= torch.tensor([dx, dy])).all(-1)
        return ~inside

    def crossed(self, place_MG: Tensor, edge_MM: Tensor) -> int:
        """Number of finite edges along which the straight line is in a wall somewhere."""
        begin, end = edge_MM.isfinite().nonzero().T
        share_L11 = torch.linspace(0.0, 1.0, _ON_LINE)[:, None, None]
        line_LE2 = torch.lerp(_seen(place_MG)[begin], _seen(place_MG)[end], share_L11)
        free_LE = self.free(line_LE2.flatten(0, 1)).view(_ON_LINE, -1)
        return int((~free_LE).any(0).sum())


def ground_of(task: str) -> Ground:
    """The walls of a task's model, and what its goals are; Gymnasium's envs have no known walls."""
    kind, spec = parse_task_name(task).kind, task_spec(task)
    if kind == "registered":
        return Ground(_walls(task))
    labels = spec.state_names[slice(*spec.goal_slice)][:2]
    if len(labels) < 2:
        labels = ("goal 1", "goal 2")
    return Ground([] if kind == "gymnasium" else _walls(task), labels)


def _walls(task: str) -> list[tuple[float, float, float, float]]:
    model = make_task(task).model
    walls = []
    for number in range(model.ngeom):
        name = mujoco.mj_id2name(model, mujoco.mjtObj.mjOBJ_GEOM, number) or ""
        if name.startswith("wall_"):
            (x, y, _), (dx, dy, _) = model.geom_pos[number], model.geom_size[number]
            walls.append((float(x), float(y), float(dx), float(dy)))
    return walls


class Field(NamedTuple):
    """Learned distances from many positions to one goal."""

    position_P2: Tensor
    steps_P: Tensor
    """NaN inside of walls."""


class Viewpoints(NamedTuple):
    """States from which distances are drawn."""

    state_PS: Tensor
    is_grid: bool
    """Whether they are all over a maze, x by x; otherwise they are visited states."""


def viewpoints(task: str, ground: Ground, visited_PS: Tensor) -> Viewpoints:
    """All over a maze the state of a start, moved there; where there is no maze, visited states."""
    spec = task_spec(task)
    if not ground.is_maze or spec.goal_size != 2:
        return Viewpoints(visited_PS, is_grid=False)
    low_x, high_x, low_y, high_y = ground.extent
    spacing = 2.0 * _SPACING * min(dx for _, _, dx, _ in ground.walls)
    sides = (low_x, high_x), (low_y, high_y)
    position_P2 = torch.cartesian_prod(*(torch.arange(*side, spacing) for side in sides)).float()
    with closing(make_vector_env(task, num_envs=1, episode_length=1, seed=0)) as env:
        state_PS = env.state_NS.repeat(len(position_P2), 1)
    state_PS[:, slice(*spec.goal_slice)] = position_P2
    return Viewpoints(state_PS, is_grid=True)


def field(value: GoalValue, task: str, ground: Ground, goal_G: Tensor, state_PS: Tensor) -> Field:
    """Distances to a goal from these states."""
    slice_ = slice(*task_spec(task).goal_slice)
    there_S = state_PS[(state_PS[:, slice_] - goal_G).square().sum(-1).argmin()].clone()
    there_S[slice_] = goal_G
    states = torch.cat([state_PS, there_S[None]])
    values = value(states, goal_G.expand(len(states), -1))
    position_P2 = _seen(state_PS[:, slice_])
    steps_P = value.steps(values[:-1], values[-1])
    return Field(position_P2, torch.where(ground.free(position_P2), steps_P, torch.nan))


def heatmap(
    run: TrainedRun | None,
    task: str,
    ground: Ground,
    episodes: Episodes,
    *,
    planner: GraphPlanner | None = None,
) -> "Figure":
    """Distances to some of the episodes' goals with the ways taken, and success by goal.

    Without a run that has a critic, success only. With a planner, also the way that it would send
    the robot.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    goal_MG = episodes.goal_NG.unique(dim=0)
    shown_MG = goal_MG[spread(goal_MG, _SHOWN_GOALS).index_M] if run else goal_MG[:0]
    seen_from = viewpoints(task, ground, run.visited_PS[:_SHOWN_STATES]) if run else None
    figure = Figure(figsize=(4.2 * (len(shown_MG) + 1), 3.8), layout="constrained")
    *of_goals, of_success = figure.subplots(1, len(shown_MG) + 1, squeeze=False)[0]
    for axes, goal_G in zip(of_goals, shown_MG, strict=True):
        assert run is not None and seen_from is not None
        found = field(run.value, task, ground, goal_G, seen_from.state_PS)
        drawn = _draw_field(axes, found, is_grid=seen_from.is_grid)
        mine_N = (episodes.goal_NG == goal_G).all(-1).nonzero()[:_SHOWN_PATHS, 0]
        for number in mine_N.tolist():
            way_T2 = _seen(episodes.achieved_TNG[:, number])
            color = "white" if ground.is_maze else "black"
            axes.plot(*way_T2.T.numpy(), color=color, lw=0.8, alpha=0.8)
        if planner is not None and len(mine_N):
            _draw_plan(axes, planner, episodes.achieved_TNG[0, mine_N[0]], goal_G)
        axes.plot(
            *_seen(goal_G).tolist(), marker="*", ms=14, color="crimson", mec="white", zorder=5
        )
        place = ", ".join(f"{number:.3g}" for number in goal_G.tolist())
        _frame(axes, ground, f"learned distance to ({place})")
        figure.colorbar(drawn, ax=axes, shrink=0.8, label="steps, as the critic tells them")
    _draw_success(figure, of_success, episodes, goal_MG, ground)
    _see_alike([*of_goals, of_success], ground)
    if run:
        lines = "thin lines: ways that were taken"
        lines += "; orange: a plan, of which nodes within reach are skipped" if planner else ""
        figure.supxlabel(lines, fontsize=9)
    return figure


def _seen(point: Tensor) -> Tensor:
    """The first two numbers of points [..., G]; the second is 0 where there is one only."""
    return torch.nn.functional.pad(point, (0, max(0, 2 - point.shape[-1])))[..., :2]


def _draw_field(axes: "Axes", found: Field, *, is_grid: bool) -> "ScalarMappable":
    steps, cmap = found.steps_P.numpy(), "viridis_r"
    if is_grid:
        x, y = (column.unique().numpy() for column in found.position_P2.T)
        return axes.pcolormesh(x, y, steps.reshape(len(x), len(y)).T, cmap=cmap, zorder=1)
    x, y = found.position_P2.T.numpy()
    return axes.scatter(x, y, c=steps, cmap=cmap, s=9, linewidths=0, zorder=1)


def _draw_plan(axes: "Axes", planner: GraphPlanner, begin_G: Tensor, goal_G: Tensor) -> None:
    nearest = (planner.places - begin_G).square().sum(-1).argmin()
    state_S = planner.node_MS[nearest].clone()
    state_S[planner.goal_slice] = begin_G
    (plan,) = planner.plan(state_S[None], goal_G[None])
    way = _seen(torch.cat([begin_G[None], plan.subgoals_KG])).T.numpy()
    axes.plot(*way, "o-", color="orange", ms=3.5, lw=1.5, zorder=4)


def _draw_success(
    figure: "Figure", axes: "Axes", episodes: Episodes, goal_MG: Tensor, ground: Ground
) -> None:
    same_MN = (goal_MG[:, None] == episodes.goal_NG).all(-1)
    share_M = (same_MN & episodes.reached_N).sum(1) / same_MN.sum(1)
    few = len(goal_MG) <= 64 and len(goal_MG) < len(episodes.goal_NG)
    x, y = _seen(goal_MG).T.numpy()
    drawn = axes.scatter(
        x,
        y,
        c=share_M.numpy(),
        cmap="RdYlGn",
        vmin=0.0,
        vmax=1.0,
        s=420 if few and len(goal_MG) <= 16 else 130 if few else 30,
        marker="s" if few else "o",
        edgecolors="black",
        linewidths=0.4,
    )
    if few:
        for (x, y), share in zip(_seen(goal_MG).tolist(), share_M.tolist(), strict=True):
            color = "black" if 0.2 < share < 0.8 else "white"
            text = f"{100 * share:.0f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color)
    reached = float(episodes.reached_N.float().mean())
    _frame(axes, ground, f"goals reached: {reached:.0%} of {len(episodes.goal_NG)} episodes")
    from matplotlib.ticker import PercentFormatter

    label = "episodes that reach the goal"
    figure.colorbar(drawn, ax=axes, shrink=0.8, label=label, format=PercentFormatter(1.0))


def graph_picture(
    planner: GraphPlanner, ground: Ground, episodes: Mapping[str, Episodes]
) -> "Figure":
    """The planner's nodes and edges, and beside them episodes with each way of acting."""
    load_matplotlib()
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * (1 + len(episodes)), 4.8), layout="constrained")
    of_graph, *others = figure.subplots(1, 1 + len(episodes), squeeze=False)[0]
    place_M2 = _seen(planner.places).numpy()
    pairs = planner.graph.edge_MM.isfinite().nonzero().numpy()
    of_graph.add_collection(LineCollection(place_M2[pairs], colors="tab:blue", lw=0.4, alpha=0.35))
    of_graph.plot(*place_M2.T, "o", ms=3, color="tab:blue")
    _frame(of_graph, ground, f"{len(place_M2)} nodes, {len(pairs):,} edges")
    for axes, (name, each) in zip(others, episodes.items(), strict=True):
        for number, reached in enumerate(each.reached_N[:_DRAWN].tolist()):
            color = "tab:green" if reached else "tab:red"
            axes.plot(
                *_seen(each.achieved_TNG[:, number]).T.numpy(), color=color, lw=0.8, alpha=0.6
            )
        goals = _seen(each.goal_NG[:_DRAWN].unique(dim=0)).T.numpy()
        axes.plot(*goals, "*", ms=10, color="black", ls="none")
        reached, count = float(each.reached_N.float().mean()), len(each.goal_NG)
        _frame(axes, ground, f"{name}: {reached:.0%} of {count} episodes reach the goal")
    _see_alike([of_graph, *others], ground)
    drawn = f"{_DRAWN} episodes of each" if count > _DRAWN else "episodes"
    figure.supxlabel(
        f"blue: nodes and edges; {drawn}, with stars at their goals: green if they reach it, else "
        "red",
        fontsize=9,
    )
    return figure


def lateness_picture(rows: Sequence[Mapping[str, float]], flat: Mapping[str, float]) -> "Figure":
    """Success and time at the goal by how late plans come; dotted without any plan."""
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(5.2, 3.8), layout="constrained")
    axes = figure.subplots()
    late = [row["late"] for row in rows]
    names = {"success_any": "reach the goal", "time_at_goal_share": "time at the goal"}
    for number, (name, label) in enumerate(names.items()):
        axes.plot(late, [row[name] for row in rows], "o-", color=f"C{number}", label=label)
        axes.axhline(flat[name], color=f"C{number}", ls=":", label=f"{label}, no plan")
    axes.set(xlabel="control steps by which a plan is late", ylim=(-0.02, 1.02))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
    return figure


def _frame(axes: "Axes", ground: Ground, title: str) -> None:
    from matplotlib.patches import Rectangle

    for x, y, dx, dy in ground.walls:
        axes.add_patch(Rectangle((x - dx, y - dy), 2 * dx, 2 * dy, color=_WALL, zorder=2))
    if ground.is_maze:
        axes.set_facecolor("0.75")
        low_x, high_x, low_y, high_y = ground.extent
        # Most of the outer walls is left out.
        cut = 1.5 * min(dx for _, _, dx, _ in ground.walls)
        axes.set(xlim=(low_x + cut, high_x - cut), ylim=(low_y + cut, high_y - cut))
    axes.set_title(title, fontsize=9)
    axes.set(aspect="equal", xlabel=ground.labels[0], ylabel=ground.labels[1])
    axes.locator_params(nbins=5)


def _see_alike(panels: Sequence["Axes"], ground: Ground) -> None:
    """Show the same place in all panels of a task without a maze, and no mere strip of it."""
    if ground.is_maze:
        return
    sides = [zip(axes.get_xlim(), axes.get_ylim(), strict=True) for axes in panels]
    lows, highs = zip(*sides, strict=True)
    low, high = np.min(lows, axis=0), np.max(highs, axis=0)
    centre, half = (low + high) / 2, (high - low) / 2
    half = np.maximum(half, half.max() / 2)
    (left, bottom), (right, top) = centre - half, centre + half
    for axes in panels:
        axes.set(xlim=(left, right), ylim=(bottom, top))


def save(figure: "Figure", path: Path) -> None:
    """Write a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
