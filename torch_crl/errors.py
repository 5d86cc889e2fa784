"""The one root of all errors that are meant for people, and the exit status that each ends with."""

import signal


class TorchCrlError(Exception):
    """Something that the user can mend; the message says what was given and what to do.

    The command line prints it as one message without a traceback. Every error of this kind derives
    from this class, and also from ValueError or RuntimeError where callers may expect that.
    """


class UsageError(TorchCrlError):
    """A command, or a call, cannot be carried out as it was given."""


def exit_status(error: BaseException) -> int:
    """What a process that ends with this error tells its parent: 128 + signal, or 1."""
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, BrokenPipeError):
        return 128 + signal.SIGPIPE
    return 1


def listed(problems: list[str]) -> str:
    """`2 problems:` and a line for each."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{count}:" + "".join(f"\n  - {problem}" for problem in problems)
