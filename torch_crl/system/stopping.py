"""Ctrl-C and termination signals as a request that the training loop answers when it can."""

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Self

# Ctrl-C, `kill`, a terminal that goes away, and what Slurm can send before a time limit: those of
# them that the system has.
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
# `timeout` signals the process and then its group: the same Ctrl-C twice within a moment.
_SECONDS_OF_ONE_SIGNAL = 1.0


class StopSignals:
    """While entered, the first SIGINT, SIGTERM, SIGHUP or SIGUSR1 sets `requested` and says so; a
    second Ctrl-C stops at once.

    A signal that the process ignores, as SIGHUP under nohup, stays ignored. Outside the main
    thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self, announce: Callable[[str], object]) -> None:
        """`announce` gets one line at the first signal; it must not raise."""
        self._announce = announce
        self._signal: int | None = None
        self._came_at = 0.0
        self._previous: dict[int, signal._HANDLER] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    def leave(self) -> NoReturn:
        """Raise KeyboardInterrupt after Ctrl-C, else SystemExit(128 + signal)."""
        if self._signal in (None, signal.SIGINT):
            raise KeyboardInterrupt
        raise SystemExit(128 + self._signal)

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                # None is a handler of a program around Python, which could not be given back.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        now = time.monotonic()
        if self._signal is None:
            self._signal, self._came_at = number, now
            self._announce("stopping after this phase; Ctrl-C again stops at once, unsaved")
        elif number == signal.SIGINT and now - self._came_at > _SECONDS_OF_ONE_SIGNAL:
            raise KeyboardInterrupt
