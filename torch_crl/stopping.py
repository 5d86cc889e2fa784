"""Ctrl-C and termination signals as a request that the training loop answers when it can."""

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn, Self


class StopSignals:
    """While entered, the first SIGINT or SIGTERM sets `requested` and says so; a second Ctrl-C
    stops at once.

    Outside the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self, announce: Callable[[str], object]) -> None:
        """`announce` gets one line at the first signal."""
        self._announce = announce
        self._signal: int | None = None
        self._previous: dict[int, signal._HANDLER] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self._signal is not None

    def leave(self) -> NoReturn:
        """Raise what the signal would have raised: KeyboardInterrupt, or SystemExit(143)."""
        if self._signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def __enter__(self) -> Self:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        """Give the handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number
        self._announce("stopping after this phase; Ctrl-C again stops at once, unsaved")
