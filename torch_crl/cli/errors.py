"""Errors of the user's making end in one message and no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UsageError(Exception):
    """The command cannot be carried out as it was given; the message says why."""


@contextmanager
def told_to_user(*kinds: type[Exception]) -> Iterator[None]:
    """Turn these exceptions, and those of files and directories, into a message and status 1."""
    told: tuple[type[Exception], ...] = (UsageError, OSError, *kinds)
    try:
        yield
    except told as error:
        print(f"torch-crl: {error}", file=sys.stderr)
        raise SystemExit(1) from None
