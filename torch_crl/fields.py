"""Bounds on the fields of a record: stated once, beside the field, and read by checks and help.

A record is a dataclass whose annotations carry bounds, such as `num_envs: Count`. `read` makes a
record from JSON and reports all problems at once. The checks are pydantic's, which is imported by
the first check and not by `--help`.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import is_dataclass, replace
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin
from typing import get_type_hints as hints

from annotated_types import Ge, Gt, Le, Lt
from typing_extensions import is_typeddict
from tyro.conf import arg

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

T = TypeVar("T")

# More than any machine needs; a number in a damaged file may be anything.
_MOST = 2**31 - 1

Count = Annotated[int, Ge(1), Le(_MOST), arg(metavar="INT>=1")]
CountOrZero = Annotated[int, Ge(0), Le(_MOST), arg(metavar="INT>=0")]
# Libraries crash when they are asked for more threads than they can start.
Threads = Annotated[int, Ge(0), Le(1024), arg(metavar="INT>=0")]
TwoOrMore = Annotated[int, Ge(2), Le(_MOST), arg(metavar="INT>=2")]
Steps = Annotated[int, Ge(1), Le(2**53), arg(metavar="INT>=1")]
StepsOrZero = Annotated[int, Ge(0), Le(2**53), arg(metavar="INT>=0")]
# No lower bound here: `recipe.checks` has the whole rule, multiples of a block's layers, and names
# the nearest ones.
Depth = Annotated[int, Le(2**20)]
Seed = Annotated[int, Ge(0), Le(2**63 - 1), arg(metavar="INT>=0")]
Positive = Annotated[float, Gt(0.0), arg(metavar="FLOAT>0")]
PositiveOrZero = Annotated[float, Ge(0.0), arg(metavar="FLOAT>=0")]
Decay = Annotated[float, Ge(0.0), Lt(1.0), arg(metavar="0<=FLOAT<1")]
BelowOne = Annotated[float, Gt(0.0), Lt(1.0), arg(metavar="0<FLOAT<1")]

STRICT = {"strict": True, "extra": "forbid", "allow_inf_nan": False}
"""The `__pydantic_config__` of a record: no text in place of a number, no unknown fields."""


class Problem(NamedTuple):
    """One problem of a record."""

    where: tuple[str, ...]
    """The names that lead to the field, outermost first."""
    what: str
    """What the field must be and what it is: `must be at least 1, got 0`."""

    def __str__(self) -> str:
        """`part.field must be at least 1, got 0`."""
        return " ".join([".".join(self.where), self.what]).strip()


class FieldsError(ValueError):
    """A record cannot be used; `problems` lists every reason."""

    def __init__(self, problems: list[Problem]) -> None:
        """The message has all problems in one line."""
        self.problems = problems
        super().__init__("; ".join(map(str, problems)))


def whole_number(text: str) -> int:
    """The integer in a text such as `1000000`, `1_000_000` or `1e6`. Raises ValueError."""
    try:
        number = Decimal(text.strip())
        if number.is_finite() and number == number.to_integral_value():
            if abs(number) < 2**63:
                return int(number)
            raise ValueError(f"must lie between -2^63 and 2^63, got {text!r}")
    except ArithmeticError:
        pass
    raise ValueError(f"must be a whole number, as 1000000 or 1e6, got {text!r}")


def with_floats(record: T) -> T:
    """The record with 16.0 where a field of floats holds 16: both are equal, not so their texts."""
    changed: dict[str, Any] = {}
    for name in _float_fields(type(record)):  # type: ignore[arg-type]
        value = getattr(record, name)
        # What is no number at all, or too large for a float, is for `check` to find.
        if isinstance(value, int | float) and type(value) not in (bool, float):
            with suppress(OverflowError):
                changed[name] = float(value)
    return replace(record, **changed) if changed else record  # type: ignore[type-var]


@cache
def _float_fields(kind: Any) -> tuple[str, ...]:
    return tuple(name for name, annotation in hints(kind).items() if annotation is float)


def read(kind: type[T], text: bytes | str) -> T:
    """The record of type `kind` in a JSON text. Raises FieldsError with all problems."""
    from pydantic import ValidationError

    try:
        record: T = _adapter(kind).validate_json(text)  # type: ignore[arg-type]
        return record
    except ValidationError as error:
        details = error.errors(include_url=False)
    except RecursionError:
        raise FieldsError([Problem((), "it is nested too deeply")]) from None
    raise FieldsError([_problem(kind, detail) for detail in details])


def check(kind: type[T], values: Any) -> list[Problem]:
    """The problems of a record's values, which are given as nested dictionaries."""
    # Bytes on a command line that are not UTF-8 arrive as lone surrogates, which JSON cannot hold.
    problems = [
        Problem(where, f"must be text in UTF-8, got {_short(text)}")
        for where, text in _texts(values)
        if not _is_utf8(text)
    ]
    text = json.dumps(values, default=repr, ensure_ascii=False).encode(errors="replace")
    try:
        read(kind, text)
    except FieldsError as error:
        told = {problem.where for problem in problems}
        problems += [problem for problem in error.problems if problem.where not in told]
    return problems


def _texts(values: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """All texts in nested dictionaries and sequences, each with the names that lead to it."""
    if isinstance(values, str):
        yield where, values
    elif isinstance(values, dict | list | tuple):
        below = values.items() if isinstance(values, dict) else enumerate(values)
        for name, value in below:
            yield from _texts(value, (*where, str(name)))


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def _problem(kind: Any, detail: "ErrorDetails") -> Problem:
    where, field = [], kind
    for name in detail["loc"]:
        where.append(str(name))
        field = _below(field, name)
    given = detail["input"]
    text = f"must {_wanted(detail, field)}, got {_short(given)}"
    if detail["type"] == "missing":
        text = "is missing"
    elif detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        text = "is no field that this version knows"
    elif detail["type"] == "json_invalid":
        text = f"it is not valid JSON ({detail['ctx']['error']})"
    return Problem(tuple(where), text)


def _below(kind: Any, name: int | str) -> Any:
    """The annotation of a field or entry of a type; None if it has none."""
    plain = get_args(kind)[0] if get_origin(kind) is Annotated else kind
    if is_dataclass(plain) or is_typeddict(plain):
        return hints(plain, include_extras=True).get(str(name))
    arguments = get_args(plain)
    return arguments[-1] if get_origin(plain) in (dict, list, tuple) and arguments else None


def _wanted(detail: "ErrorDetails", field: Any) -> str:
    """What a field must be: from its annotation if that has a bound, else from the error."""
    bounds = dict(_bounds(field))
    if {"above", "below"} <= set(bounds):
        between = f"be above {bounds['above']:g} and below {bounds['below']:g}"
    else:
        between = ""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "greater_than_equal":
            return f"be at least {_plain(context['ge'])}"
        case "less_than_equal":
            return f"be at most {_plain(context['le'])}"
        case "greater_than":
            return between or f"be above {context['gt']:g}"
        case "less_than":
            return between or f"be below {context['lt']:g}"
        case "literal_error":
            return "be one of " + ", ".join(map(repr, _choices(field)))
        case "int_type" | "int_from_float" | "int_parsing" | "int_parsing_size":
            return "be a whole number"
        case "float_type":
            return "be a number"
        case "finite_number":
            return "be a finite number"
        case "string_type":
            return "be text"
        case "bool_type":
            return "be true or false"
        case "dict_type" | "dataclass_type":
            return "be an object with named fields"
        case _:
            return detail["msg"].replace("Input should be", "be")


def _bounds(field: Any) -> Iterator[tuple[str, float]]:
    for mark in get_args(field)[1:]:
        if isinstance(mark, Gt):
            yield "above", float(mark.gt)  # type: ignore[arg-type]
        if isinstance(mark, Lt):
            yield "below", float(mark.lt)  # type: ignore[arg-type]


def _choices(field: Any) -> tuple[Any, ...]:
    plain = get_args(field)[0] if get_origin(field) is Annotated else field
    return get_args(plain) if get_origin(plain) is Literal else ()


def _plain(number: float) -> int | float:
    return int(number) if number == int(number) else number


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
