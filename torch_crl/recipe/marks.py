"""Marks on a recipe's fields: which algorithms read a field, and how comparisons treat it.

A mark stands in the field's annotation, so that no other code has to list the names of fields.
"""

from dataclasses import dataclass
from enum import Enum, auto
from functools import cache
from typing import Any, get_args, get_type_hints

LIBRARY_ALGOS = ("ppo", "sac", "td3", "sac_her", "td3_her")
"""The algorithms that Stable-Baselines3 trains; all others are ours."""


@dataclass(frozen=True)
class ReadBy:
    """The algorithms that read a field; a field without this mark is read by all of them."""

    algos: tuple[str, ...]
    ignored_by: tuple[str, ...] = ()
    """Those of our objectives of `crl` that do not read it; one of a user's own may."""


BY_CRL = ReadBy(("crl",))
BY_CONTRAST = ReadBy(("crl",), ignored_by=("survival", "chrono"))
BY_TIMES = ReadBy(("crl",), ignored_by=("crl", "safe"))
BY_OURS = ReadBy(("crl", "gcbc"))
BY_LIBRARY = ReadBy(LIBRARY_ALGOS)
BY_ALL_WITH_REPLAY = ReadBy((*BY_OURS.algos, *(algo for algo in LIBRARY_ALGOS if algo != "ppo")))


class Mark(Enum):
    """How checks and comparisons of recipes treat a field."""

    OF_TOWERS = auto()
    """Read only if the networks are residual towers and not the library's own."""
    SIZE = auto()
    """Must be in its own range before its combination with other fields can be checked."""
    SAME_IN_COMPARISONS = auto()
    """Runs on one task can be compared only if they have the same value of it."""
    IN_METHOD_NAME = auto()
    """Already contained in the names of methods in comparisons."""
    NOT_OF_METHOD = auto()
    """May differ between runs of one method: it does not change the distribution of results."""


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


def unread(record: type, algo: str, objective: str = "") -> list[str]:
    """The fields that an algorithm, with this objective if one is given, does not read.

    Each is given as `part.field`.
    """
    return [
        leaf
        for leaf, found in marks(record).items()
        for mark in found
        if isinstance(mark, ReadBy)
        and (algo not in mark.algos or (algo == "crl" and objective in mark.ignored_by))
    ]
