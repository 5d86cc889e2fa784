"""The captured update, looked at node by node: `python -m torch_crl.benchmarks.null_gpu.updates`.

Runs on the null GPU only, for all blocks with kernels and every depth that is given. The exit
status is 1 if a graph has more nodes than `MOST_NODES`, if a replay makes the host wait, or if
replays need ever more memory.
"""

import argparse
import itertools
import sys

import torch

from torch_crl.benchmarks.null_gpu.library import Books
from torch_crl.benchmarks.scenarios import Scenario, free_cuda_memory, random_run, recipe_of

MOST_NODES = {"published": 41, "pre_norm": 39, "shared": 46}
"""Of one update of `ant` at its default sizes and any depth, by block. Lower them when possible."""

REPLAYS = 20


def faults(depth: int, block: str, *, list_nodes: bool) -> list[str]:
    """What is wrong with the update at a depth; its numbers are printed."""
    books = Books()
    scenario = Scenario(kind="update", depth=depth, block=block)
    run = random_run(recipe_of(scenario, torch.device("cuda")))
    graph = run.update_graph
    assert graph is not None, "an update on a GPU is captured"
    while not graph.captures:
        run.update()
    nodes = books.nodes()
    if list_nodes:
        print(*nodes, sep="\n")
    # The first replays draw from pools that grow to what all later ones need.
    run.update()
    torch.cuda.reset_peak_memory_stats()
    books.forget_counts()
    in_use = torch.cuda.memory_allocated()
    for _ in range(REPLAYS):
        run.update()
    counts = books.counts()
    peak = torch.cuda.max_memory_allocated()
    print(
        f"{block}, depth {depth}: {len(nodes)} nodes, {counts['launched'] / REPLAYS:g} launches an "
        f"update, {counts.get('host waits', 0)} host waits, peak {peak / 1e6:.0f} MB of tensors "
        f"and {counts['peak bytes'] / 1e6:.0f} MB of the device"
    )
    found = []
    if len(nodes) > MOST_NODES[block]:
        found.append(f"{len(nodes)} nodes, and {MOST_NODES[block]} are allowed")
    if counts.get("replays", 0) != REPLAYS or graph.captures != 1:
        found.append(f"{graph.captures} captures, {counts.get('replays', 0)} replays")
    if waits := counts.get("host waits", 0):
        found.append(f"{waits} host waits in {REPLAYS} replays")
    if allocations := counts.get("allocations", 0):
        found.append(f"{allocations} allocations of device memory in {REPLAYS} replays")
    if torch.cuda.memory_allocated() > in_use:
        found.append(f"{torch.cuda.memory_allocated() - in_use} bytes more after the replays")
    return [f"{block}, depth {depth}: {fault}" for fault in found]


def main() -> int:
    """Check the depths; the exit status is 1 if something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("depths", nargs="*", type=int, default=[4, 64])
    parser.add_argument("--nodes", action="store_true", help="list the nodes of every graph")
    options = parser.parse_args()
    found = []
    for block, depth in itertools.product(MOST_NODES, options.depths):
        found += faults(depth, block, list_nodes=options.nodes)
        free_cuda_memory()
    print(*found, sep="\n")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
