"""Ranks that hold up the others: the slowest one sets the pace of all."""

import statistics

_TOLERATED = 1.2
"""Times the median of all ranks."""
_COLLECTIONS = 5
"""In so many collections one after the other a rank has to be late before it is told."""


class Stragglers:
    """Looks at how long each rank takes for a collection."""

    def __init__(self) -> None:
        """Nobody has been late yet."""
        self._late: dict[int, int] = {}
        self._told: set[int] = set()

    def report(self, seconds: list[float]) -> tuple[dict[str, float], list[str]]:
        """Metrics, and a line for each rank that is told of for the first time.

        `seconds` are those of the ranks' newest collection, in their order.
        """
        if len(seconds) == 1:
            return {}, []
        median = statistics.median(seconds)
        lines = []
        for rank, each in enumerate(seconds):
            self._late[rank] = self._late.get(rank, 0) + 1 if each > _TOLERATED * median else 0
            if self._late[rank] == _COLLECTIONS and rank not in self._told:
                self._told.add(rank)
                lines.append(
                    f"warning: rank {rank} takes {each / median:.1f} times as long as the others "
                    f"for {_COLLECTIONS} collections in a row, and all wait for it"
                )
        metrics = {"collect_seconds_median": median, "collect_seconds_slowest": max(seconds)}
        return metrics, lines
