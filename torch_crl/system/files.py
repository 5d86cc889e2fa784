"""Files that are written whole or not at all, and read with care: their source may be unknown."""

import dataclasses
import errno
import json
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from torch_crl.errors import TorchCrlError

ASIDE = ".writing-"
"""Prefix of the name of a file or folder that is not complete yet."""
_MOST_BYTES = 1 << 28
# The last one: links that lead in a circle.
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
# A drive that is not ready, a name with characters that no name has, a link that leads nowhere.
_ABSENT_ON_WINDOWS = (21, 123, 1921)


class DamagedFileError(TorchCrlError, ValueError):
    """A file is missing or has content other than it should; the message names it."""


def exists(path: Path) -> bool:
    """Whether there is anything at the path; a link counts for what it leads to.

    Raises OSError where that cannot be seen, for example without permission, or on a network file
    system that does not answer: `Path.exists` says no then, from Python 3.14 on, and what seems to
    be missing may be replaced.
    """
    return _status(path) is not None


def is_folder(path: Path) -> bool:
    """Whether there is a folder at the path, or a link to one. Raises OSError as `exists` does."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode)


def entries(folder: Path) -> list[Path]:
    """What is in a folder; nothing if there is none. Raises OSError as `exists` does."""
    try:
        return list(folder.iterdir())
    except (OSError, ValueError) as error:
        if _says_absent(error):
            return []
        raise


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (OSError, ValueError) as error:
        if _says_absent(error):
            return None
        raise


def _says_absent(error: OSError | ValueError) -> bool:
    """Whether nothing can be at a path; a ValueError says that no path has such a name."""
    if isinstance(error, ValueError):
        return True
    return error.errno in _ABSENT or getattr(error, "winerror", None) in _ABSENT_ON_WINDOWS


def why_unwritable(folder: Path) -> str:
    """Why no file can be made in the folder or, if it does not exist, where it would be made.

    Empty if one can.
    """
    place = folder
    try:
        place = next(path for path in (folder, *folder.absolute().parents) if exists(path))
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"{error.strerror}: {place}"


def write_text(path: Path, text: str) -> None:
    """Write a file such that it exists whole or not at all, even if the power fails.

    If the path is a link, the link is replaced, and its target stays as it is.
    """
    write_parts(path, [text])


def write_json(path: Path, document: object) -> None:
    """`write_text` of a document of dataclasses, mappings, lists, arrays, paths and plain values.

    Numbers that are not finite, which JSON lacks, become null.
    """
    write_text(path, json.dumps(_plain(document), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(below) for name, below in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(below) for below in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """`write_text` of a text that need not fit in memory; `parts` may read the file at `path`."""
    aside = path.with_name(ASIDE + path.name)
    remove(aside)
    # "x" never writes through an existing link.
    with aside.open("xb") as file:
        for part in parts:
            file.write(part.encode("utf-8", "backslashreplace"))
    sync(aside)
    aside.rename(path)
    sync(path.parent)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder with its contents; it need not exist."""
    if not path.is_symlink() and is_folder(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Create a folder and its missing parents, such that each of them survives a power cut."""
    if is_folder(path):
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if os.name == "nt" and is_folder(path):
        return  # Windows cannot open a folder, and need not sync one.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_bytes(path: Path, *, most: int = _MOST_BYTES) -> bytes:
    """The content of a regular file of at most `most` bytes.

    Raises DamagedFileError for anything else: a missing file, a folder, a device, or a pipe, which
    might never end.
    """
    with _opened(path) as (file, status):
        check_regular(path, status, most=most)
        return file.read(most + 1)


def read_end(path: Path, *, most: int, begin: int = 0) -> bytes:
    """The last `most` bytes of a regular file of any size, but none before the offset `begin`.

    Raises DamagedFileError as `read_bytes` does.
    """
    with _opened(path) as (file, status):
        check_regular(path, status, most=status.st_size)
        file.seek(max(begin, status.st_size - most))
        return file.read(most)


def read_lines(path: Path, *, most: int) -> Iterator[bytes]:
    """The lines of a regular file of any size; of a longer line, its first `most` bytes.

    What follows the last newline is left out. Raises DamagedFileError as `read_bytes` does.
    """
    with _opened(path) as (file, status):
        check_regular(path, status, most=status.st_size)
        line = b""
        while part := file.readline(most):
            line = (line + part)[:most]
            if part.endswith(b"\n"):
                yield line.removesuffix(b"\n")
                line = b""


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, os.stat_result]]:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait until a process writes into it.
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
