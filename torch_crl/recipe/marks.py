"""What is said of a recipe's field beside its type: who reads it, and what comparisons make of it.

A mark stands in the field's annotation, so that nothing else has to list the names of fields.
"""

from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import Any, get_args, get_type_hints

LIBRARY_ALGOS = ("ppo", "sac", "td3", "sac_her", "td3_her")
"""The algorithms that Stable-Baselines3 trains; all others are ours."""


@dataclass(frozen=True)
class ReadBy:
    """The algorithms that read a field. All of them do where it has no such mark."""

    algos: tuple[str, ...]


BY_CRL = ReadBy(("crl",))
BY_OURS = ReadBy(("crl", "gcbc"))
BY_LIBRARY = ReadBy(LIBRARY_ALGOS)
BY_ALL_WITH_REPLAY = ReadBy((*BY_OURS.algos, *(algo for algo in LIBRARY_ALGOS if algo != "ppo")))


class Mark(Enum):
    """What a field is to those who check or compare recipes."""

    OF_TOWERS = auto()
    """Read only where the networks are residual towers and not a library's own."""
    SIZE = auto()
    """Must be possible by itself before it can be asked whether it fits with others."""
    SAME_IN_COMPARISONS = auto()
    """Runs on one task can be compared only if they agree in it."""
    IN_METHOD_NAME = auto()
    """The name of a method in a comparison says it already."""
    NOT_OF_METHOD = auto()
    """Two runs of one method may differ in it: it leaves the distribution of results alone."""


@cache
def marks(record: type) -> dict[str, tuple[Any, ...]]:
    """`part.field` to the marks of the field, for a record whose fields are records."""
    return {
        f"{part}.{name}": get_args(kind)[1:]
        for part, fields in get_type_hints(record).items()
        for name, kind in get_type_hints(fields, include_extras=True).items()
    }


def marked(record: type, mark: Mark) -> list[str]:
    """The fields with this mark, as `part.field`."""
    return [leaf for leaf, found in marks(record).items() if mark in found]


def unread(record: type, algo: str) -> list[str]:
    """The fields that an algorithm does not read, as `part.field`."""
    return [
        leaf
        for leaf, found in marks(record).items()
        for mark in found
        if isinstance(mark, ReadBy) and algo not in mark.algos
    ]
