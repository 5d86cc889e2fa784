"""The contents of a run's files, as records with checked fields."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from typing_extensions import TypedDict  # pydantic takes typing.TypedDict from Python 3.12 on only.

from torch_crl import fields
from torch_crl.fields import PositiveOrZero, StepsOrZero
from torch_crl.recipe.record import Recipe
from torch_crl.system.files import DamagedFileError, read_bytes

T = TypeVar("T")


Kind = Literal["train", "evaluation"]
"""What a line of metrics.jsonl is about."""


class Record(TypedDict):
    """The fields of every line of metrics.jsonl; all others are metrics, which are numbers."""

    kind: Kind
    env_steps: StepsOrZero
    updates: StepsOrZero
    seconds: PositiveOrZero


Record.__pydantic_config__ = {"extra": "allow", "allow_inf_nan": False}  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True, slots=True)
class ResultFile:
    """The content of result.json."""

    __pydantic_config__ = {"extra": "ignore"}

    evaluation: dict[str, float] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineFile:
    """The content of machine.json."""

    __pydantic_config__ = {"extra": "ignore"}

    begun: str = ""
    """Start of the run, as ISO 8601 in UTC."""
    machine: dict[str, Any] = field(default_factory=dict)
    task_files: dict[str, str] = field(default_factory=dict)
    """Name of each task of the user's own to the file of its module."""


def read_recipe(path: Path) -> Recipe:
    """The recipe in a file of any name. Raises DamagedFileError."""
    return read_file(path, Recipe.from_json)


def parse_record(line: bytes) -> dict[str, Any]:
    """One line of metrics.jsonl. Raises ValueError."""
    record: dict[str, Any] = {**fields.read(Record, line)}
    if record["kind"] == "evaluation":
        for name in ("success_any", "time_at_goal_share"):
            share = record.get(name)
            if not isinstance(share, int | float) or not 0 <= share <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {share!r}")
    for name, value in record.items():
        if name == "kind":
            continue
        # An integer of hundreds of digits cannot become a float.
        too_large = isinstance(value, int) and abs(value) > 2**63
        if isinstance(value, bool) or not isinstance(value, int | float) or too_large:
            raise ValueError(f"{name} must be a number, got {value!r}")
        if record["kind"] == "evaluation" and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value!r}")
    return record


def read_file(path: Path, parse: Callable[[bytes], T]) -> T:
    """The file as parsed by `parse`. Raises DamagedFileError, also for a ValueError of `parse`."""
    try:
        return parse(read_bytes(path))
    except DamagedFileError:
        raise
    except ValueError as error:
        raise DamagedFileError(f"{path} cannot be read: {error}") from error
