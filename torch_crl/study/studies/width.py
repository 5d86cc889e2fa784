"""Are parameters better spent on depth or on width?"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.curves import Curve
from torch_crl.study.report import Section, Table
from torch_crl.study.statistics import corrected, permutation_test
from torch_crl.study.studies.common import (
    SEEDS,
    SETTINGS,
    THREE_TASKS,
    by_task,
    curves_picture,
    estimates,
    estimates_picture,
    estimates_table,
    grouped,
    scores,
)
from torch_crl.study.study import Answer, Scale, Study
from torch_crl.sweep.grid import Trial, grid

SHALLOW = 4
# Numbers of parameters count as equal if they differ by this share at most. Widths are whole
# numbers, which at the scales here makes differences of up to six thousandths.
EQUAL = 0.02
DEPTHS: Mapping[Scale, tuple[int, ...]] = {
    "smoke": (16,),
    "small": (8, 16, 32),
    "full": (8, 16, 64),
}


def width_of_equal_parameters(recipe: Recipe, parameters: int) -> int:
    """The width with which the recipe's three networks come nearest to this many parameters."""

    def count(width: int) -> int:
        networks = replace(recipe.networks, width=width)
        return replace(recipe, networks=networks).update_cost.parameters

    low, high = 1, 2
    while count(high) < parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < parameters else (low, middle)
    return min((low, high), key=lambda width: abs(count(width) - parameters))


def trials(scale: Scale) -> list[Trial]:
    """Each depth at the preset's width, and depth 4 at the width of equal parameters; x seeds."""
    found = []
    for task in THREE_TASKS[scale]:
        settings = {**SETTINGS[scale]}
        width = settings.pop("width", preset(task).networks.width)
        sizes = [(SHALLOW, width)]
        for depth in DEPTHS[scale]:
            deep = with_changes(preset(task, depth=depth), networks={"width": width})
            wide = width_of_equal_parameters(
                preset(task, depth=SHALLOW), deep.update_cost.parameters
            )
            sizes += [(depth, width), (SHALLOW, wide)]
        for depth, units in sizes:
            axes = {"depth": (depth,), "width": (units,), "seed": SEEDS[scale]}
            found += grid([task], axes=axes, settings=settings)
    return found


def answer(curves: Sequence[Curve]) -> Answer:
    """Deep against wide at equal parameters."""
    leaves = ("networks.critic_depth", "networks.width")
    sizes = {task: grouped(runs, *leaves) for task, runs in by_task(curves).items()}
    labelled = {
        task: {_label(size): group for size, group in groups.items()}
        for task, groups in sizes.items()
    }
    rows = [row for task, groups in sizes.items() for row in deep_against_wide(task, groups)]
    compared = {(task, deep) for task, deep, *_ in rows}
    alone = [
        f"{task}: {_label(size)} is compared with nothing, since no run of depth {SHALLOW} has as "
        "many parameters."
        for task, groups in sizes.items()
        for size in groups
        if size[0] != SHALLOW and (task, _label(size)) not in compared
    ]
    table = Table(
        caption="deep minus wide at equal parameters; permutation test, corrected by Holm's method",
        columns=(
            "task",
            "deep",
            "its parameters",
            "wide",
            "its parameters",
            "difference",
            "p",
            "smallest possible p",
        ),
        rows=tuple(rows),
    )
    points = {task: estimates(groups) for task, groups in labelled.items()}
    return Answer(
        findings=(
            *(
                f"{task}: {deep} against {wide}, {count / 1e6:.3g} M parameters: {difference:+.3g} "
                f"of the episode at the goal, corrected p = {p:.2g}."
                for task, deep, count, wide, _, difference, p, _ in rows
            ),
            *alone,
        ),
        sections=(
            Section(
                title="Scores",
                parts=(
                    estimates_picture(points),
                    estimates_table(points),
                    curves_picture(labelled),
                ),
            ),
            Section(title="Deep against wide", parts=(table,)),
        ),
    )


Row = tuple[str, str, int, str, int, float, float, float]


def deep_against_wide(task: str, groups: Mapping[tuple[int, int], list[Curve]]) -> list[Row]:
    """Every deep network beside the shallow one of equal parameters, if that was run."""
    counts = {size: group[0].recipe.update_cost.parameters for size, group in groups.items()}
    pairs = [
        (deep, wide)
        for deep in groups
        for wide in groups
        if deep[0] != SHALLOW == wide[0] and abs(counts[wide] / counts[deep] - 1) <= EQUAL
    ]
    tests = corrected(
        [permutation_test([scores(groups[d])], [scores(groups[w])]) for d, w in pairs]
    )
    return [
        (
            task,
            _label(deep),
            counts[deep],
            _label(wide),
            counts[wide],
            test.difference,
            test.p_value,
            test.smallest_p,
        )
        for (deep, wide), test in zip(pairs, tests, strict=True)
    ]


def _label(size: tuple[int, int]) -> str:
    depth, width = size
    return f"depth {depth}, width {width}"


STUDY = Study(
    question="Are parameters better spent on depth or on width?",
    statistic="Networks of depth 4 get the width at which all three together have as many "
    "parameters as the deep ones. Each pair is compared by a permutation test, which exchanges the "
    "seeds' labels.",
    trials=trials,
    answer=answer,
)
