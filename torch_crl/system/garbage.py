"""How often Python looks for garbage in a process that is a command of ours."""

import atexit
import gc
import re
import sys

THRESHOLD = 10_000
"""New objects, less those freed, after which Python looks through the youngest ones."""


def collect_seldom() -> None:
    """Look for objects that only refer to each other less often than usual, and not at the end.

    Importing torch makes half a million objects, which stay. Python looks through them again and
    again while they are made, and once more when it ends: a third of the time of a short command.
    For a process of ours only: a library leaves the settings of its user's process alone.
    """
    gc.set_threshold(THRESHOLD)
    atexit.register(freeze)


def freeze() -> None:
    """Leave everything as it is when the process ends.

    Not with Triton from 3.9 on: the library that binds it to Python prints what it finds left.
    """
    version = getattr(sys.modules.get("triton"), "__version__", "0.0")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (3, 9):
        gc.freeze()
