"""A frozen affine map from an encoder's embedding to the few numbers that the networks read.

What sentences about places have in common, and the form in which they are said, fills most of the
hundreds of numbers of an embedding. The first principal components of the known ones keep what
tells these apart, and networks on them understand more of the sentences that they have not seen
(benchmarks/LOG.md). M known embeddings, E embedding, F features.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Projection(NamedTuple):
    """(embedding - mean) @ basis, of mean square 1 over the embeddings that it was fitted to."""

    mean_E: Tensor
    basis_EF: Tensor

    def __call__(self, embedding: Tensor) -> Tensor:
        """Features [..., F] of embeddings [..., E]."""
        return (embedding - self.mean_E) @ self.basis_EF


def fit_projection(known_ME: Tensor, size: int) -> Projection:
    """The projection on the first `size` principal components of these embeddings.

    With fewer embeddings than components, the others are some directions at right angles to them.
    Raises ValueError if `size` is above E, or if all embeddings are the same.
    """
    known = known_ME.double()
    mean_E = known.mean(0)
    if not 1 <= size <= known.shape[1]:
        raise ValueError(f"features must be 1 to {known.shape[1]}, got {size}")
    _, values, vectors = torch.linalg.svd(known - mean_E, full_matrices=True)
    if not values[0] > 1e-6:
        raise ValueError("all embeddings are the same, so nothing tells the goals apart")
    basis_EF = vectors[:size].T
    scale = ((known - mean_E) @ basis_EF).square().mean().sqrt()
    return Projection(mean_E.float(), (basis_EF / scale).float())
