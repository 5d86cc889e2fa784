"""What a command is doing, on standard error: a bar on a terminal, else a line for each stage."""

from types import TracebackType
from typing import Self

from torch_crl.system.terminal import console, print_line


class Stages:
    """Shows one stage after the other; use it as a context manager.

    The bar is gone at the end, before results are printed.
    """

    def __init__(self) -> None:
        """Nothing is shown before the first stage."""
        # Imported here, so that a command with a wrong flag need not wait for it.
        from rich.progress import Progress, TaskID

        to = console(stderr=True)
        self._on_terminal = to.is_terminal
        self._progress = Progress(console=to, transient=True, disable=not self._on_terminal)
        self._bar: TaskID | None = None
        self._what = ""

    def begin(self, what: str, total: float | None = None) -> None:
        """A stage of `total` steps; None where nobody knows how many."""
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._bar = self._progress.add_task(what, total=total)
        if what != self._what and not self._on_terminal:
            print_line(what, stderr=True)
        self._what = what

    def done(self, count: float) -> None:
        """So many steps of the stage are done."""
        if self._bar is not None:
            self._progress.update(self._bar, completed=count)

    def advance(self) -> None:
        """One more step of the stage is done."""
        if self._bar is not None:
            self._progress.advance(self._bar)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()
