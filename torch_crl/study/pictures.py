"""Figures of studies: curves with bands, estimates with intervals, maps of numbers.

X points of a curve. matplotlib is imported only when something is drawn.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from torch_crl.runs.plots import load_matplotlib, share_limits
from torch_crl.study.statistics import Array, Estimate
from torch_crl.system.terminal import UNITS_OF_TIME

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

Unit = Literal["env steps", "seconds", "share", "depth", "magnitude", "plain"]

# Okabe and Ito's colours, told apart by every kind of colour vision; yellow is too pale for lines.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#5B6675", "#882255")
# Ordered maps of colours, each cut where it becomes too pale for lines.
_ORDERED = {"viridis": 0.85, "Blues_r": 0.6, "Oranges_r": 0.6, "Greys_r": 0.6}
# Colours that are not in the first of these maps.
_BESIDE_ORDERED = ("#D55E00", "#CC79A7", "#E69F00", "#5B6675", "#882255")
_DEPTH = re.compile(r"\bdepth (\d+)")
# Dashes of a line to the shape of its points.
_LINES = {"-": "o", "--": "s", "-.": "^", ":": "v"}
_DASHES = tuple(_LINES)
# Characters of a legend to an inch, and what an entry takes beside its text.
_LEGEND_CHARACTERS, _LEGEND_HANDLE = 12, 7
_GREY = "#5b6675"
_STYLE: dict[Any, Any] = {
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.grid": True,
    "grid.color": "#dfe4ea",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "text.color": "#1c2430",
    "axes.labelcolor": "#1c2430",
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}
_PANEL_WIDTH, _PANEL_HEIGHT = 4.6, 3.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One curve, with a band around it if it has an interval."""

    label: str
    x_X: Array
    y_X: Array
    band: tuple[Array, Array] | None = None
    """Low and high ends, [X] each."""
    published: bool = False
    """Whether the curve is a published one: drawn thin and dotted, in the colour of its label.
    A single point is drawn hollow, its band as a bar."""


def curves_figure(
    panels: Mapping[str, Sequence[Line]],
    *,
    x: tuple[str, Unit],
    y: tuple[str, Unit],
    order: Sequence[str] = (),
) -> "Figure":
    """Draw a panel of curves for each title, all with one legend.

    Args:
        x, y: what the axis shows and its unit.
        order: order of the labels, which decides their colours; as they come if not given. Labels
            that differ only in their depth, as `depth 4` and `depth 16`, are coloured by depth.
    """
    labels = order or list(dict.fromkeys(line.label for lines in panels.values() for line in lines))
    looks = _looks(list(labels))
    scale, x_label = _scale(x, [line.x_X[-1] for lines in panels.values() for line in lines])
    with _figure(len(panels)) as (figure, axes_of_panels):
        for (title, lines), axes in zip(panels.items(), axes_of_panels, strict=True):
            for line in lines:
                _draw(axes, line, looks[line.label], scale=scale)
            axes.set(title=title, xlabel=x_label)
            _format(axes.xaxis, x[1])
            _format(axes.yaxis, y[1])
            if y[1] == "share":
                ends = [np.max(line.y_X if line.band is None else line.band[1]) for line in lines]
                axes.set_ylim(share_limits(max(ends, default=0.0)))
        _label_first_column(axes_of_panels, y[0])
        handles = _legend([line for lines in panels.values() for line in lines], looks)
        widest = max(map(len, handles), default=0) + _LEGEND_HANDLE
        fitting = int(figure.get_figwidth() * _LEGEND_CHARACTERS / widest)
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper left",
            ncols=max(1, min(5, fitting, len(handles))),
        )
    return figure


def estimates_figure(
    panels: Mapping[str, Mapping[str, Estimate]],
    *,
    x: tuple[str, Unit],
    order: Sequence[str] = (),
) -> "Figure":
    """Draw a row for each label in each panel: a dot at the point and a bar over the interval."""
    labels = list(order or dict.fromkeys(label for rows in panels.values() for label in rows))
    looks = _looks(labels)
    height = 1.1 + 0.34 * max(map(len, panels.values()))
    with _figure(len(panels), panel_height=height) as (figure, axes_of_panels):
        for (title, rows), axes in zip(panels.items(), axes_of_panels, strict=True):
            present = [label for label in labels if label in rows]
            for row, label in enumerate(present):
                colour, estimate = looks[label][0], rows[label]
                if estimate.interval is not None:
                    axes.plot(
                        estimate.interval,
                        [row, row],
                        color=colour,
                        lw=7,
                        alpha=0.3,
                        solid_capstyle="butt",
                    )
                axes.plot([estimate.point], [row], "o", color=colour, markersize=7)
            axes.set(title=title, xlabel=x[0], ylim=(len(present) - 0.5, -0.5))
            axes.set_yticks(range(len(present)), present)
            axes.tick_params(axis="y", length=0, labelcolor="#1c2430")
            axes.grid(visible=False, axis="y")
            _format(axes.xaxis, x[1])
            if x[1] == "share":
                ends = [max([row.point, *(row.interval or ())]) for row in rows.values()]
                axes.set_xlim(share_limits(max(ends, default=0.0)))
    return figure


def heat_map_figure(
    panels: Mapping[str, Array],
    *,
    rows: tuple[str, Sequence[object]],
    columns: tuple[str, Sequence[object]],
    value: str,
) -> "Figure":
    """Draw a heat map of numbers [rows, columns] for each title, with the number in each cell.

    `rows` and `columns` are what varies along them and its values; row 0 is at the bottom.
    """
    cells = len(rows[1])
    with _figure(len(panels), panel_height=1.3 + 0.5 * cells) as (figure, axes_of_panels):
        finite = np.concatenate([np.ravel(array) for array in panels.values()])
        lowest, highest = float(np.nanmin(finite)), float(np.nanmax(finite))
        for (title, array), axes in zip(panels.items(), axes_of_panels, strict=True):
            image = axes.imshow(
                array, origin="lower", cmap="YlGnBu", vmin=lowest, vmax=highest, aspect="auto"
            )
            for (row, column), number in np.ndenumerate(array):
                if np.isfinite(number):
                    dark = number > lowest + 0.55 * (highest - lowest)
                    colour = "white" if dark else "#1c2430"
                    axes.text(column, row, f"{number:.3g}", ha="center", va="center", color=colour)
            axes.set(title=title, xlabel=columns[0])
            axes.set_xticks(range(len(columns[1])), [str(entry) for entry in columns[1]])
            axes.set_yticks(range(cells), [str(entry) for entry in rows[1]])
            axes.grid(visible=False)
        _label_first_column(axes_of_panels, rows[0])
        figure.colorbar(image, ax=axes_of_panels, label=value, shrink=0.9)
    return figure


def _draw(axes: "Axes", line: Line, look: tuple[str, str], *, scale: float) -> None:
    axes.plot(line.x_X / scale, line.y_X, **_stroke(line, look), clip_on=len(line.x_X) > 1)
    if line.band is not None and len(line.x_X) == 1:
        axes.vlines(line.x_X / scale, *line.band, color=look[0], linewidth=1.4)
    elif line.band is not None:
        axes.fill_between(line.x_X / scale, *line.band, color=look[0], alpha=0.16, linewidth=0)


def _stroke(line: Line, look: tuple[str, str]) -> dict[str, Any]:
    """How the line is drawn, in matplotlib's terms."""
    colour, dashes = look
    points = len(line.x_X)
    if not line.published:
        marker = _LINES[dashes] if points <= 30 else ""
        return {"color": colour, "ls": dashes, "lw": 2.0, "marker": marker, "ms": 3.5}
    if points > 1:
        return {"color": colour, "ls": ":", "lw": 1.4}
    return {
        "color": colour,
        "ls": "",
        "marker": _LINES[dashes],
        "ms": 8,
        "mfc": "white",
        "mew": 1.6,
    }


def _legend(lines: Sequence[Line], looks: Mapping[str, tuple[str, str]]) -> "dict[str, Artist]":
    """An entry for each label, and one for each kind of published line, in grey."""
    from matplotlib.lines import Line2D

    handles: dict[str, Artist] = {}
    for line in lines:
        name, look = line.label, looks[line.label]
        if line.published:
            name = "published score" if len(line.x_X) == 1 else "published curve"
            look = (_GREY, look[1])
        handles.setdefault(name, Line2D([], [], **_stroke(line, look)))
    return dict(sorted(handles.items(), key=lambda entry: entry[0].startswith("published ")))


@contextmanager
def _figure(
    count: int, *, panel_height: float = _PANEL_HEIGHT
) -> "Iterator[tuple[Figure, list[Axes]]]":
    """A figure with `count` panels, up to three in a row, in the style of all our pictures."""
    load_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # Four panels make two full rows rather than one of three and a single panel.
    columns = 2 if count == 4 else min(3, count)
    rows = -(-count // columns)
    with rc_context(_STYLE):
        size = (max(2, columns) * _PANEL_WIDTH, rows * panel_height + 0.6)
        figure = Figure(figsize=size, layout="constrained", facecolor="white")
        grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
        for axes in grid[count:]:
            axes.set_visible(False)
        yield figure, grid[:count]


def _looks(labels: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and dashes of each label.

    Labels that differ only in their depth form a group. Its colours go from dark to light with the
    logarithm of the depth. Dashes tell four groups apart, in which a depth has the same colour; the
    next four have another map of colours.
    """
    groups: dict[str, list[str]] = defaultdict(list)
    for label in labels:
        groups[_DEPTH.sub("depth", label)].append(label)
    several = [group for group in groups.values() if len(group) > 1]
    depth_of = {label: _log_depth(label) for group in several for label in group}
    shallow, deep = min(depth_of.values(), default=0.0), max(depth_of.values(), default=0.0)
    looks = {}
    for index, group in enumerate(several):
        for label in group:
            place = (depth_of[label] - shallow) / (deep - shallow)
            colour = _ordered_colour(place, index // len(_DASHES))
            looks[label] = (colour, _DASHES[index % len(_DASHES)])
    others = [label for label in labels if label not in looks]
    colours = _BESIDE_ORDERED if looks else _COLOURS
    for index, label in enumerate(others):
        dashes = _DASHES[index // len(colours) % len(_DASHES)]
        looks[label] = (colours[index % len(colours)], dashes)
    return looks


def _log_depth(label: str) -> float:
    found = _DEPTH.search(label)
    assert found is not None
    return math.log(int(found[1]))


def _ordered_colour(place: float, index: int) -> str:
    """A colour of an ordered map: `place` 0 is its dark end and 1 its light one."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    name, until = list(_ORDERED.items())[index % len(_ORDERED)]
    return to_hex(colormaps[name](until * place))


def _format(axis: "Axis", unit: Unit) -> None:
    from matplotlib.ticker import EngFormatter, StrMethodFormatter

    if unit == "env steps":
        axis.set_major_formatter(EngFormatter(sep=" "))
    if unit in ("depth", "magnitude"):
        rescale = axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale
        rescale("log", base=2 if unit == "depth" else 10)
        axis.set_major_formatter(StrMethodFormatter("{x:,g}"))


def _scale(x: tuple[str, Unit], ends: Sequence[float]) -> tuple[float, str]:
    """The number to divide an axis by, and its label.

    Seconds become minutes or hours if the axis reaches at least two of them.
    """
    if x[1] != "seconds":
        return 1.0, x[0]
    size, name = next(
        (size, name) for size, name in UNITS_OF_TIME if max(ends) >= 2 * size or size == 1.0
    )
    return size, f"{x[0]}, {name}"


def _label_first_column(axes_of_panels: "Sequence[Axes]", label: str) -> None:
    for axes in axes_of_panels:
        place = axes.get_subplotspec()
        if place is not None and place.is_first_col():
            axes.set_ylabel(label)
