"""Shortest ways over a set of nodes, from pairwise lengths that are true where they are short.

Sources: SoRB, arXiv 1906.05253 (search over states of the replay); SGM, arXiv 2003.06417 (edges
that fail are removed). M nodes, N queries, P points, G goal.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

CONNECTED = 0.9
"""Share of the ordered pairs of nodes that the kept edges have to connect."""
_FAILURES = 3
"""An edge that was tried in vain so often is removed."""


class Spread(NamedTuple):
    """Points that are far from each other, and near all others."""

    index_M: Tensor
    radius: float
    """No point is farther from the nearest of these."""


def spread(point_PG: Tensor, count: int) -> Spread:
    """`count` different points, each the one farthest from those before; the first is point 0.

    Fewer, if not so many points differ.
    """
    # Column by column, since sums over rows of few numbers are slow.
    point_GP = point_PG.T.contiguous()
    chosen = torch.zeros(min(count, len(point_PG)), dtype=torch.int64)
    nearest_P = torch.full((len(point_PG),), torch.inf)
    for number in range(len(chosen)):
        if number:
            farthest = nearest_P.argmax()
            if nearest_P[farthest] == 0.0:
                chosen = chosen[:number]
                break
            chosen[number] = farthest
        last_G1 = point_GP[:, chosen[number], None]
        torch.minimum(nearest_P, (point_GP - last_G1).square().sum(0), out=nearest_P)
    return Spread(chosen, float(nearest_P.max().sqrt()))


def shortest(edge_MM: Tensor) -> Tensor:
    """Length of the shortest way from each node to each other; infinite where there is none.

    Floyd and Warshall's algorithm. The length of no edge may be negative; that from a node to
    itself is 0.
    """
    way_MM = edge_MM.clone().fill_diagonal_(0.0)
    for over in range(len(way_MM)):
        torch.minimum(way_MM, way_MM[:, over, None] + way_MM[over], out=way_MM)
    return way_MM


def connected_share(edge_MM: Tensor) -> float:
    """Share of the ordered pairs of different nodes that finite edges connect."""
    nodes = len(edge_MM)
    reached = edge_MM.isfinite().fill_diagonal_(True)
    while True:
        further = reached.float() @ reached.float() > 0
        if torch.equal(further, reached):
            break
        reached = further
    return (int(reached.sum()) - nodes) / max(1, nodes * (nodes - 1))


def cut_off(length_MM: Tensor, *, share: float = CONNECTED) -> float:
    """The smallest length such that edges up to it connect this share of the pairs of nodes.

    If no length does, the one that connects as many pairs as can be connected; 0 without any.
    """
    lengths = length_MM[length_MM.isfinite()].unique()
    if not len(lengths):
        return 0.0
    wanted = min(share, connected_share(length_MM))
    low, high = 0, len(lengths) - 1
    while low < high:
        middle = (low + high) // 2
        if connected_share(kept(length_MM, float(lengths[middle]))) >= wanted:
            high = middle
        else:
            low = middle + 1
    return float(lengths[low])


def kept(length: Tensor, longest: float) -> Tensor:
    """The lengths up to `longest`; infinity for the others."""
    return torch.where(length <= longest, length, torch.inf)


@dataclass
class Graph:
    """Edges between nodes, and the shortest ways over them."""

    edge_MM: Tensor
    """Length of the edge from each node to each other; infinite where there is none."""
    way_MM: Tensor = field(init=False)
    """Length of the shortest way."""
    dropped: list[tuple[int, int]] = field(default_factory=list)
    """Edges that were removed since they failed."""

    def __post_init__(self) -> None:
        self._failures: dict[tuple[int, int], int] = {}
        self.edge_MM.fill_diagonal_(torch.inf)
        self.way_MM = shortest(self.edge_MM)

    def failed(self, begin: int, end: int) -> None:
        """Count that somebody walked along this edge and did not arrive."""
        times = self._failures[begin, end] = self._failures.get((begin, end), 0) + 1
        if times >= _FAILURES and self.edge_MM[begin, end].isfinite():
            self.edge_MM[begin, end] = torch.inf
            self.dropped.append((begin, end))
            self.way_MM = shortest(self.edge_MM)

    def rest(self, last_NM: Tensor) -> Tensor:
        """Length [N, M] of the shortest way from each node to a goal outside of the graph.

        `last_NM` is the length of the last step, from each node to the goal of each query.
        """
        return (self.way_MM + last_NM[:, None, :]).amin(-1)

    def onward(self, node_N: Tensor, last_NM: Tensor, rest_NM: Tensor) -> Tensor:
        """The node [N] after this one on the way to the goal of each query; -1 is the goal."""
        over_NM = self.edge_MM[node_N] + rest_NM
        length_N, next_N = over_NM.min(-1)
        direct_N = last_NM.gather(1, node_N[:, None])[:, 0]
        return torch.where(direct_N <= length_N, -1, next_N)
