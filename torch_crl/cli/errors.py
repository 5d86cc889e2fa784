"""Errors of the user's making end in one message and no traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def told_to_user(*kinds: type[Exception]) -> Iterator[None]:
    """Turn these exceptions into a message on standard error and exit status 1."""
    try:
        yield
    except kinds as error:
        print(f"torch-crl: {error}", file=sys.stderr)
        raise SystemExit(1) from None
