"""A maze of cells whose distances are known, for planners: no networks, no physics.

. . . . .      Cells are 1 apart; x counts columns and y counts lines. A state is the position,
. # # # .      a goal too. The critic knows distances of up to 3 steps; to it all others are 4
. . # . .      steps, or the straight distance if that is more.
# . # . #
. . # . .
"""

import itertools
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torch_crl.planning.planner import GraphPlanner
from torch_crl.recipe.presets import preset

LINES = (".....", ".###.", "..#..", "#.#.#", "..#..")
CELLS = [(x, y) for y, line in enumerate(LINES) for x, letter in enumerate(line) if letter == "."]
KNOWN = 3


def true_steps() -> dict[tuple[int, int], dict[tuple[int, int], int]]:
    """Numbers of steps between all cells, by breadth-first search."""
    found = {}
    for begin in CELLS:
        steps, edge = {begin: 0}, [begin]
        for number in itertools.count(1):
            near = {(x + a, y + b) for x, y in edge for a, b in ((1, 0), (-1, 0), (0, 1), (0, -1))}
            edge = [cell for cell in near if cell in CELLS and cell not in steps]
            if not edge:
                break
            steps |= dict.fromkeys(edge, number)
        found[begin] = steps
    return found


STEPS = true_steps()


@dataclass
class GridValue:
    """Stands in for a critic: minus its idea of the distance, of which a step is worth 1."""

    policy: Any = None
    wrong: dict[tuple[tuple[int, int], tuple[int, int]], float] = field(default_factory=dict)
    """Distances that it has wrong."""

    def __call__(self, state_BS: Tensor, goal_BG: Tensor) -> Tensor:
        pairs = zip(state_BS[:, :2].tolist(), goal_BG.tolist(), strict=True)
        return torch.tensor([-self._steps(*pair) for pair in pairs])

    def _steps(self, state: list[float], goal: list[float]) -> float:
        begin, end = ((round(x), round(y)) for x, y in (state, goal))
        if (begin, end) in self.wrong:
            return self.wrong[begin, end]
        true = STEPS[begin].get(end, 99)
        straight = abs(begin[0] - end[0]) + abs(begin[1] - end[1])
        return float(true if true <= KNOWN else max(4, straight))

    def steps(self, value: Tensor, at_goal: Tensor) -> Tensor:
        return (at_goal - value).clamp_min(1.0)

    def tensors(self) -> dict[str, Tensor]:
        return {}


def at(*cells: tuple[int, int]) -> Tensor:
    """States at rest in these cells."""
    return torch.tensor([(x, y, 0, 0) for x, y in cells], dtype=torch.float32)


def make_planner(
    *, cells: list[tuple[int, int]] = CELLS, longest: float = KNOWN, **options: Any
) -> GraphPlanner:
    """A planner with a node in each of these cells."""
    value: Any = GridValue(**options)
    states, count = at(*cells), len(cells)
    length = value(states.repeat_interleave(count, 0), states[:, :2].repeat(count, 1))
    return GraphPlanner(
        recipe=preset("point_u_maze"),
        value=value,
        node_MS=states,
        length_MM=(-length.view(count, count)).clamp_min(1.0).fill_diagonal_(torch.inf),
        at_node_M=torch.zeros(count),
        longest=longest,
        reach=0.5,
    )
