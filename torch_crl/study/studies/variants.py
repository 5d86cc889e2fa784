"""Compares variants at several depths with one of them, for studies of variants."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch_crl.runs.curves import Curve
from torch_crl.study.report import Section, Table
from torch_crl.study.statistics import corrected, permutation_test
from torch_crl.study.studies.common import (
    by_task,
    curves_picture,
    estimates,
    estimates_picture,
    estimates_table,
    scores,
)
from torch_crl.study.study import Answer

Runs = dict[str, dict[int, list[Curve]]]


class Difference(NamedTuple):
    """Difference of a variant's mean score from the base's at the same depth, over all tasks."""

    variant: str
    depth: int
    difference: float
    p_value: float
    """Permutation test within tasks, corrected by Holm's method."""
    smallest_p: float


def compare_variants(
    curves: Sequence[Curve], *, variant_of: Callable[[Curve], str], base: str
) -> Answer:
    """Scores by variant and depth, what depth adds to each, and tests against `base`."""
    tasks = {task: _by_variant(runs, variant_of) for task, runs in by_task(curves).items()}
    labelled = {
        f"{task}, depth {depth}": {
            variant: depths[depth] for variant, depths in variants.items() if depth in depths
        }
        for task, variants in tasks.items()
        for depth in sorted({depth for depths in variants.values() for depth in depths})
    }
    points = {task: estimates(groups) for task, groups in labelled.items()}
    pictures = (estimates_picture(points), estimates_table(points), curves_picture(labelled))
    differences = against(tasks, base=base)
    return Answer(
        findings=tuple(
            f"{found.variant} at depth {found.depth} against {base}: {found.difference:+.3g} "
            f"of the episode at the goal, corrected p = {found.p_value:.2g} (at best "
            f"{found.smallest_p:.2g})."
            for found in differences
        ),
        sections=(
            Section(title="Scores", parts=pictures),
            Section(title="What depth adds", parts=(_gains(tasks),)),
            Section(title=f"Against {base}", parts=(_table(differences, base),)),
        ),
    )


def against(tasks: Mapping[str, Runs], *, base: str) -> list[Difference]:
    """Test every variant and depth that all tasks have against `base`."""
    cells = sorted(
        {
            (variant, depth)
            for variants in tasks.values()
            for variant, depths in variants.items()
            for depth in depths
            if variant != base
        }
    )
    tests = {}
    for variant, depth in cells:
        pairs = [(runs.get(variant, {}), runs.get(base, {})) for runs in tasks.values()]
        if all(depth in ours and depth in theirs for ours, theirs in pairs):
            tests[variant, depth] = permutation_test(
                [scores(ours[depth]) for ours, _ in pairs],
                [scores(theirs[depth]) for _, theirs in pairs],
            )
    return [
        Difference(variant, depth, test.difference, test.p_value, test.smallest_p)
        for (variant, depth), test in zip(tests, corrected([*tests.values()]), strict=True)
    ]


def _by_variant(curves: Sequence[Curve], variant_of: Callable[[Curve], str]) -> Runs:
    runs: Runs = {}
    for curve in curves:
        depths = runs.setdefault(variant_of(curve), {})
        depths.setdefault(curve.recipe.networks.critic_depth, []).append(curve)
    return {variant: dict(sorted(depths.items())) for variant, depths in sorted(runs.items())}


def _gains(tasks: Mapping[str, Runs]) -> Table:
    rows = []
    for task, variants in tasks.items():
        for variant, depths in variants.items():
            shallow, deep = min(depths), max(depths)
            if shallow < deep:
                test = permutation_test([scores(depths[deep])], [scores(depths[shallow])])
                rows.append((task, variant, shallow, deep, test.difference, test.p_value))
    return Table(
        caption="rise of the mean score from the shallowest to the deepest; p is not corrected",
        columns=("task", "variant", "from", "to", "rise", "p"),
        rows=tuple(rows),
    )


def _table(differences: Sequence[Difference], base: str) -> Table:
    return Table(
        caption=f"mean score minus that of {base} at the same depth, averaged over tasks; "
        "permutation test within tasks, corrected by Holm's method",
        columns=("variant", "depth", "difference", "p", "smallest possible p"),
        rows=tuple(differences),
    )
