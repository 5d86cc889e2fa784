"""Files written whole or not at all, and read with care: a stranger may have made them."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from torch_crl.errors import TorchCrlError

ASIDE = ".writing-"
"""What the name of a file or folder begins with until it is whole."""
_MOST_BYTES = 1 << 28


class DamagedFileError(TorchCrlError, ValueError):
    """A file is missing, or holds something else than it should; the message names it."""


def write_text(path: Path, text: str) -> None:
    """Write a small file that is there whole or not at all, whenever the power fails.

    Where the name is a link, the link is replaced, and what it leads to stays as it is.
    """
    aside = path.with_name(ASIDE + path.name)
    remove(aside)
    # "x" never writes through a link that somebody has put there.
    with aside.open("xb") as file:
        file.write(text.encode("utf-8", "backslashreplace"))
    sync(aside)
    aside.rename(path)
    sync(path.parent)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with all that is in it; nothing, where nothing is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each of which is there after a power cut."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders, and has nothing to wait for.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: Path, *, most: int = _MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises DamagedFileError for anything else: a missing file, a folder, a device, a pipe that would
    never end.
    """
    with _opened(path) as (file, status):
        check_regular(path, status, most=most)
        return file.read(most + 1)


def read_end(path: Path, *, most: int, begin: int = 0) -> bytes:
    """The last `most` bytes of a regular file of any size, none of them before `begin`.

    Raises DamagedFileError as `read_bytes` does.
    """
    with _opened(path) as (file, status):
        check_regular(path, status, most=status.st_size)
        file.seek(max(begin, status.st_size - most))
        return file.read(most)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    try:
        # Without O_NONBLOCK the opening of a named pipe waits for somebody to write into it.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(descriptor, "rb") as file:
            yield file, os.fstat(descriptor)
    except OSError as error:
        raise DamagedFileError(f"{path} cannot be read: {error.strerror or error}") from error


def check_regular(path: Path, status: os.stat_result, *, most: int) -> None:
    """Raise DamagedFileError unless this is a regular file of at most `most` bytes."""
    if not stat.S_ISREG(status.st_mode):
        raise DamagedFileError(f"{path} cannot be read: it is no regular file")
    if status.st_size > most:
        raise DamagedFileError(
            f"{path} cannot be read: it has {status.st_size:,} bytes, and at most {most:,} are read"
        )
