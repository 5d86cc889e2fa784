"""Draws the time of an update by depth: measured, published, and the floor of the machine."""

from pathlib import Path
from typing import Any

from torch_crl.runs.plots import load_matplotlib

# Hours for 100 M env steps of `humanoid` on an A100, simulation included (arXiv 2503.14858,
# table 3); one update for 39.68 env steps.
PUBLISHED_HOURS = {4: 1.48, 8: 2.13, 16: 3.40, 32: 5.92, 64: 10.99}
PUBLISHED_UPDATES = 100e6 / 39.68


def published_milliseconds() -> dict[int, float]:
    """Depth to time of one update of the published runs."""
    seconds = {depth: 3600 * hours for depth, hours in PUBLISHED_HOURS.items()}
    return {depth: 1e3 * value / PUBLISHED_UPDATES for depth, value in seconds.items()}


def save_time_by_depth(rows: list[dict[str, Any]], path: Path, *, machine: str) -> None:
    """Log-log PNG of the rows `update` and `floor`, one line for each implementation and size."""
    load_matplotlib()
    from matplotlib.figure import Figure

    floor = {row["depth"]: row["ms_p50"] for row in rows if row["kind"] == "floor"}
    rows = [row for row in rows if row["kind"] == "update" and "ms_p50" in row]
    batch, width = rows[0]["batch"], rows[0]["width"]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        name = f"{row['implementation']}, {row['precision']}, batch {row['batch']}"
        lines.setdefault(name, []).append(row)
    for name, points in lines.items():
        points.sort(key=lambda row: row["depth"])
        depths, middle, low, high = (
            [row[key] for row in points] for key in ("depth", "ms_p50", "ms_p20", "ms_p80")
        )
        (line,) = axes.plot(depths, middle, marker="o", label=name)
        axes.fill_between(depths, low, high, color=line.get_color(), alpha=0.2)
    published = published_milliseconds()
    style: dict[str, Any] = {"color": "grey", "linewidth": 1.2}
    axes.plot(*zip(*published.items(), strict=True), "--", label="published run, A100", **style)
    depths = sorted({row["depth"] for row in rows} | set(published))
    if floor:
        label = f"matmuls and Adam alone, batch {batch}"
        axes.plot(*zip(*sorted(floor.items()), strict=True), ":.", label=label, **style)
    axes.set(xlabel="depth of all three networks")
    axes.set(ylabel="time of one update (ms)", title=f"width {width}, {machine}")
    save_by_depth(figure, depths, path)


def save_by_depth(figure: Any, depths: list[int], path: Path) -> None:
    """Write a figure whose only axes are logarithmic and have these depths as ticks."""
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    (axes,) = figure.axes
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(depths, [str(depth) for depth in depths])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=150)
