"""Cost against value: the choices that no other beats, and the cheapest one near the best."""

from collections.abc import Sequence

BEST_SHARE = 0.95


def pareto_front(costs: Sequence[float], values: Sequence[float]) -> list[int]:
    """Indices of the points that no other beats, in order of cost; of equal points the first.

    A point beats another if it is cheaper and at least as good, or as cheap and better.
    """
    front: list[int] = []
    for index in sorted(range(len(costs)), key=lambda i: (costs[i], -values[i], i)):
        if not front or values[index] > values[front[-1]]:
            front.append(index)
    return front


def cheapest_near_best(
    costs: Sequence[float], values: Sequence[float], *, share: float = BEST_SHARE
) -> int:
    """Index of the cheapest point with at least `share` of the largest value.

    Raises:
        ValueError: no points, or a largest value that is not above 0, whose share means nothing.
    """
    if not values or max(values) <= 0:
        raise ValueError("no point has a value above 0")
    good = [index for index, value in enumerate(values) if value >= share * max(values)]
    return min(good, key=lambda index: (costs[index], -values[index]))
