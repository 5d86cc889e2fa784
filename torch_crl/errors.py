"""The base class of all errors that are meant for the user, and the exit status of each."""

import operator
import os
import signal
import sysconfig
import traceback
from traceback import FrameSummary
from typing import Any


class TorchCrlError(Exception):
    """A problem that the user can solve; the message says what was given and what to do.

    The command line prints it as one message without a traceback. Every error of this kind derives
    from this class, and also from ValueError or RuntimeError where callers may expect that.
    """


class UsageError(TorchCrlError):
    """A command or a call cannot be carried out with the given arguments."""


class NotFiniteError(TorchCrlError, ValueError):
    """A task or a policy gave NaN, infinity or a number too large for fp32; the message says which
    function, env and step.
    """


class OwnCodeError(TorchCrlError, RuntimeError):
    """Python code of the user's own, such as a function of a task, raised an error; the message
    says which, with its file and line.
    """


def require_count(what: str, number: object) -> None:
    """Raise UsageError unless this is a whole number of at least 1."""
    if whole(what, number) < 1:
        raise UsageError(f"{what} must be at least 1, got {number}")


def whole(what: str, number: Any) -> int:
    """A whole number of any type as an int. Raises UsageError for anything else."""
    try:
        return operator.index(number)
    except TypeError:
        raise UsageError(f"{what} must be a whole number, got {number!r}") from None


def exit_status(error: BaseException) -> int:
    """Exit status of a process that ends with this error: 128 + signal, or 1."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    return 1


def listed(problems: list[str]) -> str:
    """`2 problems:` and one line for each."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{count}:" + "".join(f"\n  - {problem}" for problem in problems)


def shortly(value: object) -> str:
    """A value that a user's own code gave, with its type; long ones by their type alone."""
    text = f"{type(value).__name__} {value!r}" if value is not None else "None"
    return text if len(text) < 80 else f"a {type(value).__name__}"


def in_one_line(error: BaseException) -> str:
    """An error raised by a user's own code, as one line: type, message, file and line number.

    The line is the innermost one in the user's code, else the innermost one in a package that the
    user has installed; it is never one of torch_crl.
    """
    message = (str(error).splitlines() or [""])[0]
    said = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if isinstance(error, SyntaxError):
        return said  # The message names file and line.
    theirs, of_packages = _lines(error)
    place = (theirs or of_packages)[-1:]
    return " ".join([said, *(f"({line.filename}, line {line.lineno})" for line in place)])


def is_of_own_code(error: BaseException) -> bool:
    """Whether a line passed by this error is in code of the user's own, not in a library."""
    return bool(_lines(error)[0])


def _lines(error: BaseException) -> tuple[list[FrameSummary], list[FrameSummary]]:
    """The lines that an error passed in the user's own code, and in installed packages."""
    python, packages = map(sysconfig.get_path, ("stdlib", "purelib"))
    lines = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((os.path.dirname(__file__), "<frozen"))
    ]
    theirs = [line for line in lines if not line.filename.startswith((python, packages))]
    return theirs, [line for line in lines if line.filename.startswith(packages)]
