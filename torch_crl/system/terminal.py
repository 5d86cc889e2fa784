"""All output to a terminal, a pipe or a log: a failure to print cannot end a run.

Characters that the stream's encoding lacks are escaped, and so are control characters in text that
comes from files. What cannot be written to standard error is dropped. If the reader of standard
output has closed it, the process ends without a message, with the exit status of SIGPIPE.
"""

import errno
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.measure import Measurement

# All control characters but tab and newline: with them a file's text could change colours, move the
# cursor or rename the terminal. The Unicode ones among them reverse the direction of a line.
_CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
# Python's representation of the bytes of a path that is not UTF-8.
_SURROGATE = re.compile("[\ud800-\udfff]")

UNITS_OF_TIME = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))
"""Seconds and name of each unit of time, largest first."""


def plain(text: object) -> str:
    r"""The text with control characters and undecodable bytes as visible escapes, as in `\x1b`."""
    shown = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], str(text))
    return _SURROGATE.sub(_escaped_surrogate, shown)


def print_line(text: object, *, stderr: bool = False) -> None:
    """Print the text, made `plain`, and a newline."""
    stream = _Stream(sys.stderr if stderr else sys.stdout, optional=stderr)
    stream.write(plain(text) + "\n")
    stream.flush()


def print_markdown(text: str) -> None:
    """Print a report: laid out for a terminal of any width, and as it is into a pipe or a file."""
    terminal = console()
    if not terminal.is_terminal:
        print_line(text)
        return
    from rich.markdown import Markdown

    terminal.print(Markdown(plain(text)))


def console(*, stderr: bool = False, quiet: bool = False) -> "Console":
    """A rich console that does not raise, and prints text without markup or highlighting.

    Text in brackets is shown as it is: names of files and tasks may contain brackets.
    """
    # Imported here, so that only commands that print tables wait for it.
    from rich.console import Console

    stream: Any = _Stream(sys.stderr if stderr else sys.stdout, optional=stderr)
    return Console(file=stream, quiet=quiet, highlight=False, markup=False, emoji=False)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Inside, printing to standard output and error cannot raise, in other libraries either."""
    _fill_closed_descriptors()
    before = sys.stdout, sys.stderr
    streams: Any = _Stream(sys.stdout, optional=False), _Stream(sys.stderr, optional=True)
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.settle()


def duration(seconds: float) -> str:
    """`40 s`, `1.5 min`, `2 h`: a time in the largest unit of which it has two or more."""
    for size, name in UNITS_OF_TIME:
        if abs(seconds) >= 2 * size:
            count = seconds / size
            return f"{count:,.0f} {name}" if count >= 999.5 else f"{count:.3g} {name}"
    return f"{seconds:.3g} s"


class NameCell:
    """A name in a cell of a table, wrapped only after underscores so that numbers stay whole."""

    def __init__(self, name: str) -> None:
        """Control characters are escaped."""
        self._parts = re.findall("[^_]*_|[^_]+", plain(name)) or [""]

    def __rich_measure__(self, console: "Console", options: "ConsoleOptions") -> "Measurement":
        """At least the width of the longest part, at most that of the whole name."""
        from rich.measure import Measurement

        lengths = [len(part) for part in self._parts]
        return Measurement(max(lengths), sum(lengths)).with_maximum(options.max_width)

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        """The lines, each with as many parts as fit."""
        from rich.text import Text

        lines = [""]
        for part in self._parts:
            if lines[-1] and len(lines[-1] + part) > options.max_width:
                lines.append("")
            lines[-1] += part
        yield Text("\n".join(lines), overflow="fold")


class _Stream:
    """A text stream that no character and, if it is optional, no failure to write can stop."""

    def __init__(self, stream: TextIO | None, *, optional: bool) -> None:
        """`stream` is None if the process was started without it."""
        self._stream, self._optional = stream, optional

    def __getattr__(self, name: str) -> Any:
        """All other attributes are those of the wrapped stream."""
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        """The stream's encoding, which rich reads before it draws lines."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        """Whether the stream is a terminal that is still open."""
        with suppress(OSError, ValueError):
            return self._stream is not None and self._stream.isatty()
        return False

    def write(self, text: str) -> int:
        """Write the text, with escapes for the characters that the encoding lacks."""
        said = _SURROGATE.sub(_escaped_surrogate, text)
        said = said.encode(self.encoding, "backslashreplace").decode(self.encoding)
        self._try("write", said)
        return len(text)

    def flush(self) -> None:
        """Flush the wrapped stream."""
        self._try("flush")

    def settle(self) -> None:
        """Flush; drop what cannot be written, or Python would report an error when it exits."""
        try:
            if self._stream is not None:
                self._stream.flush()
        except (OSError, ValueError):
            self._abandon()

    def _try(self, method: str, *arguments: str) -> None:
        if self._stream is None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except BrokenPipeError:
            self._abandon()
            if not self._optional:
                # rich would turn BrokenPipeError into an exit with status 1.
                raise SystemExit(128 + signal.SIGPIPE) from None
        except (OSError, ValueError, RuntimeError) as error:
            # ValueError: the stream is closed. RuntimeError: a signal handler writes in a write.
            if not self._optional:
                raise
            if isinstance(error, OSError) and error.errno == errno.EIO:
                # The terminal was closed.
                self._abandon()

    def _abandon(self) -> None:
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())  # type: ignore[union-attr]
            os.close(nowhere)


def _escaped_surrogate(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def _fill_closed_descriptors() -> None:
    """Open missing standard streams; a file opened later would take their number and messages."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
