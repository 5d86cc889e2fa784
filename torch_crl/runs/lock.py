"""At most one writer in a run directory, by a lock that ends with its process, however it ends."""

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from torch_crl.errors import TorchCrlError
from torch_crl.system.files import DamagedFileError, exists, read_bytes


class DirectoryInUseError(TorchCrlError, RuntimeError):
    """Another process is writing in the run directory; the message names the process."""


@contextmanager
def locked(path: Path, what: str, *, wait: Callable[[str], object] | None = None) -> Iterator[str]:
    """Inside, hold the lock file `path`, which names its holder by process and host.

    Yields a line to show the user, which is empty unless the file system has no locks: then nothing
    is locked, and the work goes on.

    Args:
        what: what is locked, for messages.
        wait: called once with a line that names the holder, before waiting for it; without `wait`,
            a lock that is held raises DirectoryInUseError.
    """
    # It loads asyncio, which `--help` can do without.
    from filelock import FileLock, SoftFileLock, Timeout

    lock = FileLock(path)
    note = ""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if wait is None:
                    raise DirectoryInUseError(f"{what} is in use by {holder(path)}") from None
                wait(f"waiting for {holder(path)}, which works in {what}")
                lock.acquire()
        except (OSError, NotImplementedError) as error:
            note = f"{what} cannot be locked ({error}); do not start two runs in it"
    if caught:
        note = (
            f"{what} has a file system without locks; a file stands for one, which a crash leaves"
        )
    # Where flock is missing, filelock changes the object's class to SoftFileLock, which writes both
    # lines itself.
    if lock.is_locked and type(lock).__name__ != SoftFileLock.__name__:
        with suppress(OSError):
            path.write_text(f"{os.getpid()}\n{platform.node()}\n", encoding="utf-8")
    try:
        yield note
    finally:
        lock.release()


def holder(path: Path) -> str:
    """The holder that a lock file names, as `process 4711 on host`."""
    try:
        process, host = read_bytes(path, most=4096).decode(errors="replace").split()[:2]
    except (DamagedFileError, ValueError):
        return "another process"
    return f"process {process} on {host}"


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock file now."""
    if not exists(path):
        return False
    from filelock import FileLock, Timeout

    try:
        with FileLock(path).acquire(blocking=False):
            return False
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
