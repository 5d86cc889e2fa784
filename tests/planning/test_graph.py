"""Graphs of nodes: spreading, shortest ways, the cut-off, edges that fail."""

import math

import pytest
import torch
from torch import Generator

from tests.planning.grid import CELLS, KNOWN, STEPS, make_planner
from torch_crl.planning.graph import Graph, connected_share, cut_off, kept, shortest, spread

INF = math.inf


def test_points_are_spread_by_hand() -> None:
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    # Farthest from 0 is 10; of the others, 2 is farther from both than 1.
    found = spread(points, 3)
    assert found.index_M.tolist() == [0, 3, 2]
    assert found.radius == 1.0
    # There are four, of which one comes twice.
    assert spread(points[[0, 1, 1, 2, 3]], 9).index_M.tolist() == [0, 4, 3, 1]


def test_shortest_ways_by_hand() -> None:
    # 0 -> 1 -> 2 in 2 + 2 is shorter than 0 -> 2 in 5; nothing leads to 3 or back to 0.
    edges = torch.tensor(
        [[INF, 2.0, 5.0, INF], [INF, INF, 2.0, INF], [INF, 1.0, INF, INF], [7.0, INF, INF, INF]]
    )
    expected = [[0, 2, 4, INF], [INF, 0, 2, INF], [INF, 1, 0, INF], [7, 9, 11, 0]]
    assert shortest(edges).tolist() == expected


def test_shortest_ways_of_a_random_graph_are_those_of_repeated_relaxation() -> None:
    generator = Generator().manual_seed(0)
    edges = torch.rand(23, 23, generator=generator, dtype=torch.float64)
    edges = torch.where(edges < 0.15, edges, torch.inf)
    expected = edges.clone().fill_diagonal_(0.0)
    for _ in range(22):
        expected = torch.minimum(expected, (expected[:, :, None] + expected[None]).amin(1))
    torch.testing.assert_close(shortest(edges), expected)


def test_the_cut_off_is_the_smallest_that_connects() -> None:
    lengths = make_planner().length_MM
    # Cells are a single step from their neighbours, so edges of one step connect them all.
    assert cut_off(lengths) == 1.0
    assert connected_share(kept(lengths, 1.0)) == 1.0
    # Two groups that one long edge in one direction joins: 2 + 2 pairs within, 4 across.
    far = torch.tensor(
        [[INF, 1.0, INF, INF], [1.0, INF, 9.0, INF], [INF, INF, INF, 2.0], [INF, INF, 2.0, INF]]
    )
    assert connected_share(kept(far, 2.0)) == pytest.approx(4 / 12)
    assert cut_off(far, share=0.3) == 2.0
    # No more than 8 of 12 pairs can be connected at all.
    assert cut_off(far) == 9.0 and connected_share(far) == pytest.approx(8 / 12)
    assert cut_off(torch.full((3, 3), INF)) == 0.0


def test_ways_over_the_grid_are_the_true_ones() -> None:
    graph = make_planner().graph
    for row, begin in enumerate(CELLS):
        for column, end in enumerate(CELLS):
            assert float(graph.way_MM[row, column]) == STEPS[begin].get(end, INF)
    # No edge leads through a wall.
    for row, column in graph.edge_MM.isfinite().nonzero().tolist():
        assert STEPS[CELLS[row]][CELLS[column]] <= KNOWN


def test_every_node_leads_on_to_the_goal() -> None:
    graph = make_planner().graph
    goal = CELLS.index((4, 2))
    last = torch.full((1, len(CELLS)), INF)
    last[0, goal] = 1.0
    rest = graph.rest(last)
    for begin, cell in enumerate(CELLS):
        assert float(rest[0, begin]) == STEPS[cell][4, 2] + 1
        node, length = begin, 0.0
        while node != -1:
            after = int(graph.onward(torch.tensor([node]), last, rest))
            length += 1.0 if after == -1 else float(graph.edge_MM[node, after])
            node = after
        assert length == STEPS[cell][4, 2] + 1


def test_an_edge_that_fails_three_times_is_dropped() -> None:
    graph = Graph(torch.tensor([[INF, 1.0, 5.0], [INF, INF, 1.0], [INF, INF, INF]]))
    for times in range(3):
        assert float(graph.way_MM[0, 2]) == 2.0 and not graph.dropped, times
        graph.failed(0, 1)
    assert float(graph.way_MM[0, 2]) == 5.0
    graph.failed(0, 1)
    assert graph.dropped == [(0, 1)]
