"""Reads and checks the flags of a command.

Whole numbers may be written as 1e6 and paths may begin with `~`. A flag such as --task, for
something that is a positional argument, is answered with a hint.
"""

import os
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from itertools import zip_longest
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeAlias, TypeVar, get_args, get_origin
from typing import get_type_hints as hints

import tyro
from tyro.conf import Positional
from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

from torch_crl import fields
from torch_crl.errors import UsageError, listed
from torch_crl.fields import whole_number
from torch_crl.sweep.launch import Launch

Options = TypeVar("Options")

RunPath: TypeAlias = Annotated[Positional[Path], tyro.conf.arg(metavar="RUN")]
"""The run directory that a command is about, or one of the folders in its policies/."""
LaunchFlags: TypeAlias = Annotated[Launch, tyro.conf.arg(name="")]
"""The flags that `sweep`, `compare` and `study` share: those of `Launch`, without a prefix."""

_TASKS = ("--task", "--tasks", "--task-name", "--env", "--env-name")
_RUNS = ("--run", "--run-dir")
# Command to its positional argument, an example of it, and the flags that people try for it.
_BY_ITSELF = {
    "train": ("the task", "reacher", (*_TASKS, "--name")),
    "eval": ("the run", "runs/NAME", _RUNS),
    "watch": ("the run", "runs/NAME", _RUNS),
    "export": ("the run", "runs/NAME", _RUNS),
    "distil": ("the run", "runs/NAME", _RUNS),
    "prune": ("the run", "runs/NAME", _RUNS),
    "plan": ("the run", "runs/NAME", _RUNS),
    "heatmap": ("the run", "runs/NAME", _RUNS),
    "zoo": ("the policy", "reacher", ("--policy", "--name")),
    "envs": ("the task", "ant", _TASKS),
    "compare": ("each task", "reacher", _TASKS),
    "sweep": ("each task", "reacher", _TASKS),
    "scale": ("the task", "ant", _TASKS),
    "study": ("the study", "depth", ("--study", "--name")),
}
_REGISTRY = ConstructorRegistry()
_POSITIONAL = get_args(Positional[str])[1]


def read_flags(
    options: Callable[..., Options],
    arguments: list[str],
    *,
    command: str,
    config: tuple[Any, ...] = (),
    check: bool = True,
    **tyro_options: Any,
) -> Options:
    """Read the options of `torch-crl COMMAND`; `tyro_options` are passed on to `tyro.cli`.

    Without `check`, values are not checked, which takes a while.

    Raises UsageError for a flag in place of a positional argument, and for all values that the
    dataclass does not allow. Raises SystemExit, after printing what is wrong, for anything else
    that cannot be read. A recipe among the options is checked by `torch_crl.recipe.checks` instead.
    """
    _hint(arguments, command)
    with _REGISTRY:
        read: Options = tyro.cli(
            options,
            args=arguments,
            prog=f"torch-crl {command}",
            config=(tyro.conf.FlagCreatePairsOff, *config),
            **tyro_options,
        )
    if check and (problems := _problems(read)):
        raise UsageError(problems[0] if len(problems) == 1 else listed(problems))
    return read


def _problems(options: Any) -> list[str]:
    """What is wrong with the values of the flags; a recipe among them is checked elsewhere."""
    if not is_dataclass(options):
        return []
    annotations = hints(type(options), include_extras=True)
    parts = {name: getattr(options, name) for name in annotations if hasattr(options, name)}
    own = {name for name, part in parts.items() if not is_dataclass(part)}
    problems = [
        f"{_shown(name, annotations[name])} {what}"
        for (name, *_), what in fields.check(type(options), asdict(options))  # type: ignore[arg-type]
        if name in own
    ]
    launches = [part for part in parts.values() if isinstance(part, Launch)]
    return problems + [problem for launch in launches for problem in _problems(launch)]


def _shown(name: str, annotation: Any) -> str:
    return name if _POSITIONAL in get_args(annotation) else "--" + name.replace("_", "-")


def _hint(arguments: list[str], command: str) -> None:
    what, example, flags = _BY_ITSELF.get(command, ("", "", ()))
    for argument, following in zip_longest(arguments, arguments[1:], fillvalue=""):
        flag, _, value = argument.partition("=")
        # The flag --task of `eval` exists, so it is not among these.
        if flag in flags:
            name = value or following
            name = example if not name or name.startswith("-") else name
            raise UsageError(
                f"there is no flag {flag}; {what} is given without one: torch-crl {command} {name}"
            )


@_REGISTRY.primitive_rule
def _whole_numbers(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[int] | None:
    if info.type is not int:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: whole_number(texts[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


@_REGISTRY.primitive_rule
def _paths(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Path] | None:
    """Paths with `~` expanded, which shells do not do in `--out=~/runs`."""
    if _given(info) is not Path:
        return None
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda texts: Path(os.path.expanduser(texts[0])),
        is_instance=lambda value: isinstance(value, Path | None),
        str_from_instance=lambda value: [str(value)],
    )


@_REGISTRY.primitive_rule
def _optional_choices(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """One of some words, or nothing by leaving the flag out: tyro would offer the word None too."""
    kind = _given(info)
    if kind is info.type or get_origin(kind) is not Literal:
        return None
    words = tuple(map(str, get_args(kind)))
    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(words)}}}",
        instance_from_str=lambda texts: texts[0],
        is_instance=lambda value: value is None or value in words,
        str_from_instance=lambda value: [str(value)],
        choices=words,
    )


def _given(info: PrimitiveTypeInfo) -> Any:
    """The type of a flag's value; of a flag that may be left out, that of what may be given."""
    kinds = [kind for kind in get_args(info.type) if kind is not NoneType]
    return kinds[0] if len(kinds) == 1 and NoneType in get_args(info.type) else info.type
