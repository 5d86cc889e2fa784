"""What one measurement consists of, as data."""

from dataclasses import dataclass, fields
from typing import Any, Literal

Row = dict[str, Any]
"""One line of a result: name to number or text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What is measured, and with which sizes and settings."""

    kind: Literal[
        "update",
        "floor",
        "profile",
        "baseline",
        "act",
        "env",
        "collect",
        "kernels",
        "end_to_end",
    ]
    task: str = "ant"
    simulator: str = "cpu"
    overlap: str = "off"
    depth: int = 4
    batch: int = 512
    """Rows of a batch, for updates and for the parts of an update."""
    width: int = 256
    block: str = "published"
    objective: str = "crl"
    implementation: str = "ours"
    """`ours`; `one_rank`, the same divided at its exchanges with other ranks; or a peer:
    `eager_torch`, `compiled_torch`, `jax`; of a baseline, its algorithm."""
    precision: str = "auto"
    tower: str = "auto"
    cuda_graph: str = "auto"
    recompute: int = 0
    envs: int = 512
    seconds: float = 1.0
    """Seconds to spend on timing calls."""


USUAL = {
    field.name: field.default
    for field in fields(Scenario)
    if field.name not in ("kind", "depth", "implementation", "seconds")
}
"""The settings that a table need not name."""


def unusual(row: Row) -> Row:
    """Those settings of a result that are not the usual ones."""
    return {name: row[name] for name, usual in USUAL.items() if row.get(name, usual) != usual}
