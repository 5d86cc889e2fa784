"""A log file that grows by whole records and survives a full disk."""

import errno
import os
from io import FileIO
from pathlib import Path


class AppendFile:
    """Appends records to a file; those that cannot be written are kept for the next attempt."""

    def __init__(self, path: Path) -> None:
        """The file and its folder are created when the first record is written."""
        self.path = path
        self._file: FileIO | None = None
        self._waiting = bytearray()

    def write(self, record: bytes) -> None:
        """Append the record, after those that could not be written before.

        Raises OSError, which names the path, if not all can be written; the rest is kept.
        """
        self._waiting += record
        try:
            self._write_waiting()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def sync(self) -> None:
        """Wait until everything is on the disk. Raises OSError if it cannot be written."""
        self.write(b"")
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; records that are not written yet are lost."""
        if self._file is not None:
            self._file.close()

    def _write_waiting(self) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab", buffering=0)
        if os.fstat(self._file.fileno()).st_nlink == 0:
            # The next record creates the file again.
            self.close()
            self._file = None
            raise FileNotFoundError(errno.ENOENT, "it was removed while the run went on")
        # A full disk may take only the beginning of a record; the rest is written later.
        while self._waiting:
            del self._waiting[: self._file.write(self._waiting)]
