"""Names of places in our tasks: the cells of a maze, and points around a robot."""

import math
from collections.abc import Mapping, Sequence

from torch_crl.envs.tasks.layouts import cells, first_columns

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_ORDINALS = ("first", "second", "third")
_COMPASS = {
    "east": 0,
    "north east": 45,
    "north": 90,
    "north west": 135,
    "west": 180,
    "south west": 225,
    "south": 270,
    "south east": 315,
}


def of_cells(layout: tuple[str, ...], *, scale: float) -> dict[str, tuple[float, float]]:
    """Name to the centre (x, y) of each free cell, as pictures show the maze: rows run downwards.

    Mazes of three rows and columns have corners and sides, larger ones rows and columns by number.
    """
    small = len(layout) == len(layout[0]) == 5
    name = _in_three_rows if small else _in_rows
    return {name(i, j): (scale * i, scale * j) for i, j in cells(layout, ".RGB")}


def of_mazes(layouts: Sequence[tuple[str, ...]], *, scale: float) -> dict[str, tuple[float, float]]:
    """Name of cell and maze to the centre of each free cell of mazes that stand side by side."""
    return {
        f"{name} of the {_ORDINALS[number]} maze": (x, y + scale * column)
        for number, column in enumerate(first_columns(layouts))
        for name, (x, y) in of_cells(layouts[number], scale=scale).items()
    }


def _in_three_rows(i: int, j: int) -> str:
    row, column = ("upper", "middle", "lower")[i - 1], ("left", "middle", "right")[j - 1]
    if row == column:
        return "centre"
    if row == "middle":
        return f"middle of the {column} side"
    if column == "middle":
        return f"middle of the {row} side"
    return f"{row} {column} corner"


def _in_rows(i: int, j: int) -> str:
    return f"cell in row {_NUMBERS[i]} and column {_NUMBERS[j]}"


def around(distances: Mapping[str, float], *, height: float) -> Mapping[str, tuple[float, ...]]:
    """Name to point (x, y, height) for eight directions from the origin, in each of the distances
    (name to metres).
    """
    return {
        f"{name} point in the {direction}": (
            distance * math.cos(math.radians(angle)),
            distance * math.sin(math.radians(angle)),
            height,
        )
        for direction, angle in _COMPASS.items()
        for name, distance in distances.items()
    }


def corners(centre: tuple[float, float, float], reach: float) -> Mapping[str, tuple[float, ...]]:
    """Name to point for the centre of a box and eight points at `reach` along x, y and z from it.

    As a robot at the origin that looks along y sees them: right is +x, far is +y.
    """
    x, y, z = centre
    return {"point in the middle": centre} | {
        f"{distance} point at the {height} {side}": (x + a * reach, y + b * reach, z + c * reach)
        for side, a in (("left", -1), ("right", 1))
        for distance, b in (("near", -1), ("far", 1))
        for height, c in (("lower", -1), ("upper", 1))
    }
