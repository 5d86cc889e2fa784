"""Ctrl-C and termination signals as a request that the training loop follows at its next chance."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Self

# Ctrl-C, `kill`, a closed terminal, and the signal that Slurm can send before a time limit; some
# systems lack some of them.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
# `timeout` signals the process and then its group, so that one Ctrl-C arrives twice.
_SECONDS_OF_ONE_SIGNAL = 1.0


class StopSignals:
    """Context manager: inside, the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 sets `requested` and
    prints a line; a second Ctrl-C stops at once.

    A signal that the process ignores, such as SIGHUP under nohup, stays ignored. Outside the main
    thread, to which Python delivers no signals, this class does nothing.
    """

    def __init__(self, announce: Callable[[str], object]) -> None:
        """`announce` is called with one line at the first signal; it must not raise."""
        self._announce = announce
        self._signal: int | None = None
        self._came_at = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    def agree(self, largest: Callable[[int], int]) -> bool:
        """Whether a signal has come to any of several processes; it is then this one's too.

        `largest` turns the number of the own signal, or 0, into the largest of all processes. What
        comes while it waits counts the next time.
        """
        found = largest(self._signal or 0)
        self._signal = found or self._signal
        return bool(found)

    def leave(self) -> NoReturn:
        """Raise KeyboardInterrupt after Ctrl-C, else SystemExit(128 + signal)."""
        if self._signal in (None, signal.SIGINT):
            raise KeyboardInterrupt
        raise SystemExit(128 + self._signal)

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None: the handler belongs to a program around Python and could not be restored.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._came_at = number, now
            self._announce("stopping after this phase; Ctrl-C again stops at once, unsaved")
        elif number == signal.SIGINT and now - self._came_at > _SECONDS_OF_ONE_SIGNAL:
            raise KeyboardInterrupt
