"""What `--branch` means: the factor on a residual block's output, which very deep networks need."""

DEEPEST_PUBLISHED_ACTOR = 512
"""Largest depth of an actor in arXiv 2503.14858, where the loss of deeper actors exploded."""


def branch_scale(branch: str, depth: int) -> float:
    """The branch factor that the option `--branch` gives a network of this depth.

    Every block adds the same positive mean to the sum, and Adam moves every block by about the
    learning rate in a direction that all samples share. With factor 1, both the head's input and
    its change in one update therefore grow with the number of blocks. At depth 1024 the first
    updates push every action into the flat part of its tanh, where no gradient is left. With
    16 / depth neither grows with the depth, and networks of up to 16 layers are as published
    (benchmarks/LOG.md).
    """
    scaled = branch == "scaled" or (branch == "auto" and depth > DEEPEST_PUBLISHED_ACTOR)
    return min(1.0, 16 / depth) if scaled and depth else 1.0
