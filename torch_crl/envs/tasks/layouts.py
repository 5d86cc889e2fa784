"""Maze layouts as data, one character per cell.

`#` is a wall and `.` is free. `R`, `G` and `B` are free too: `R` is the start of the robot, `G` a
possible goal, `B` a possible start of the ball.
Row i, column j of a grid lies at world (x, y) = (scale * i, scale * j): the row number grows
along +x.
An `_eval` layout has the walls and the start of its plain layout and fewer goal cells.
Layouts are those of the reference implementation of arXiv 2503.14858.
"""

from collections.abc import Sequence

LAYOUTS: dict[str, tuple[str, ...]] = {
    "u_maze": ("#####", "#RGG#", "###G#", "#GGG#", "#####"),
    "u_maze_eval": ("#####", "#R..#", "###.#", "#GGG#", "#####"),
    "u_maze_single_eval": ("#####", "#R..#", "###.#", "#G..#", "#####"),
    "u_maze_eval_1f2f3f4f5f": ("#####", "#RGG#", "###G#", "#.GG#", "#####"),
    "u_maze_eval_1f2f3f4f": ("#####", "#RGG#", "###G#", "#..G#", "#####"),
    "u_maze_eval_1f2f3f": ("#####", "#RGG#", "###G#", "#...#", "#####"),
    "u_maze_eval_5f6f": ("#####", "#R..#", "###.#", "#GG.#", "#####"),
    "u2_maze": ("######", "#RGGG#", "####G#", "#GGGG#", "######"),
    "u2_maze_eval": ("######", "#R...#", "####.#", "#GGGG#", "######"),
    "u3_maze": ("#######", "#RGGGG#", "#####G#", "#GGGGG#", "#######"),
    "u3_maze_eval": ("#######", "#R....#", "#####.#", "#GGGGG#", "#######"),
    "u3_maze_single_eval": ("#######", "#R....#", "#####.#", "#G....#", "#######"),
    "u4_maze": ("#####", "#GGG#", "#R#G#", "###G#", "#G#G#", "#GGG#", "#####"),
    "u4_maze_eval": ("#####", "#...#", "#R#.#", "###.#", "#G#.#", "#GGG#", "#####"),
    "u5_maze": (
        "########",
        "#GGGGGG#",
        "#R####G#",
        "######G#",
        "#G####G#",
        "#GGGGGG#",
        "########",
    ),
    "u5_maze_eval": (
        "########",
        "#......#",
        "#R####.#",
        "######.#",
        "#G####G#",
        "#GGGGGG#",
        "########",
    ),
    "u5_maze_single_eval": (
        "########",
        "#......#",
        "#R####.#",
        "######.#",
        "#G####.#",
        "#......#",
        "########",
    ),
    "u6_maze": (
        "#######",
        "#GGGGG#",
        "#R###G#",
        "#####G#",
        "#G###G#",
        "#GGGGG#",
        "#######",
    ),
    "u6_maze_eval": (
        "#######",
        "#.....#",
        "#R###.#",
        "#####.#",
        "#G###G#",
        "#GGGGG#",
        "#######",
    ),
    "u7_maze": ("######", "#GGGG#", "#R##G#", "####G#", "#G##G#", "#GGGG#", "######"),
    "u7_maze_eval": ("######", "#....#", "#R##.#", "####.#", "#G##G#", "#GGGG#", "######"),
    "big_maze": (
        "########",
        "#RG##GG#",
        "#GG#GGG#",
        "##GGG###",
        "#GG#GGG#",
        "#G#GG#G#",
        "#GGG#GG#",
        "########",
    ),
    # Nine goals, as in the published ant runs; humanoid and point use the ten-goal variant.
    "big_maze_eval": (
        "########",
        "#R.##GG#",
        "#..#..G#",
        "##...###",
        "#..#...#",
        "#.#G.#G#",
        "#.GG#GG#",
        "########",
    ),
    "big_maze_eval_10_goals": (
        "########",
        "#R.##GG#",
        "#..#.GG#",
        "##...###",
        "#..#...#",
        "#.#G.#G#",
        "#.GG#GG#",
        "########",
    ),
    "hardest_maze": (
        "############",
        "#RGGG#GGGGG#",
        "#G##G#G#G#G#",
        "#GGGGGG#GGG#",
        "#G####G###G#",
        "#GG#G#GGGGG#",
        "##G#G#G#G###",
        "#GG#GGG#GGG#",
        "############",
    ),
}

THREE_MAZES: tuple[tuple[str, ...], ...] = (
    ("#####", "#...#", "###.#", "#...#", "#####"),
    ("#####", "#...#", "#.###", "#...#", "#####"),
    ("#####", "#.#.#", "#...#", "#.#.#", "#####"),
)
"""`u_maze`, its mirror image and one with the shape of an H; each episode is in one of them."""

BALL_LAYOUTS: dict[str, tuple[str, ...]] = {
    "u_maze": ("#####", "#RGB#", "###G#", "#GGG#", "#####"),
    "big_maze": (
        "########",
        "#R.##GG#",
        "#..#GGG#",
        "##BGB###",
        "#GG#GGG#",
        "#G#GG#G#",
        "#GGG#GG#",
        "########",
    ),
}


def cells(layout: tuple[str, ...], kinds: str) -> list[tuple[int, int]]:
    """(row, column) of every cell whose letter is in `kinds`, in reading order."""
    return [
        (i, j) for i, row in enumerate(layout) for j, letter in enumerate(row) if letter in kinds
    ]


def side_by_side(layouts: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """One layout of several with equal numbers of rows, from left to right with a wall between."""
    first, *others = layouts
    return tuple(row + "".join(other[i][1:] for other in others) for i, row in enumerate(first))


def first_columns(layouts: Sequence[tuple[str, ...]]) -> list[int]:
    """The column in `side_by_side` at which each layout begins."""
    widths = [len(layout[0]) - 1 for layout in layouts]
    return [sum(widths[:number]) for number in range(len(layouts))]


def corridor(layout: tuple[str, ...]) -> list[tuple[int, int]]:
    """The cells of a maze without forks, in order from `R` to the far end.

    Raises ValueError at a fork.
    """
    free = set(cells(layout, ".RG"))
    path = cells(layout, "R")
    while True:
        i, j = path[-1]
        ahead = {(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & free - set(path)
        if not ahead:
            return path
        if len(ahead) > 1:
            raise ValueError(f"no single path: the maze forks at row {i}, column {j}")
        path.append(ahead.pop())
