"""Clocks and power of the GPU while something runs on it, so that a slow card is seen as one."""

import statistics
import subprocess
from types import TracebackType

_QUERY = ("clocks.sm", "clocks.mem", "power.draw")
_NAMES = ("sm_mhz", "memory_mhz", "watts")


class Clocks:
    """Asks nvidia-smi ten times a second inside a `with` block; without it, the row is empty."""

    def __enter__(self) -> "Clocks":
        self.row: dict[str, float] = {}
        """Median clocks in MHz and power in watts, of the samples that drew the most power."""
        command = ["nvidia-smi", f"--query-gpu={','.join(_QUERY)}"]
        command += ["--format=csv,noheader,nounits", "-lms", "100"]
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            self._process = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            self.row = medians(self._process.communicate()[0])


def medians(samples: str) -> dict[str, float]:
    """The row from nvidia-smi's lines; the half that drew less power is left out, as idle."""
    numbers = []
    for line in samples.splitlines():
        try:
            numbers.append([float(cell) for cell in line.split(",")])
        # A card may not tell its power, and the last line may be cut.
        except ValueError:
            continue
    rows = sorted((row for row in numbers if len(row) == len(_NAMES)), key=lambda row: row[-1])
    busy = rows[len(rows) // 2 :]
    return {
        name: statistics.median(row[i] for row in busy) for i, name in enumerate(_NAMES) if busy
    }
