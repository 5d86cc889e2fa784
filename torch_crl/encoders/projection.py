"""A frozen affine map from an encoder's embedding to the few numbers that the networks read.

Of pictures, the first principal components are kept. Most of a sentence's embedding says in which
form it is worded. The directions in which all places differ between the forms are taken out, and of
what is left the first principal components are kept. Networks on these understand more of the
sentences that they have not seen (benchmarks/LOG.md).
P places, K forms, E embedding, F features.
"""

from collections.abc import Mapping
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

    def left_over(self, embedding: Tensor) -> Tensor:
        """Length [...] of the part of embeddings [..., E] on which the features do not depend."""
        orthonormal_EF, _ = torch.linalg.qr(self.basis_EF.double())
        centred = (embedding - self.mean_E).double()
        length: Tensor = (centred - centred @ orthonormal_EF @ orthonormal_EF.T).norm(dim=-1)
        return length


def fit_projection(known_PKE: Tensor, size: int) -> Projection:
    """The projection for embeddings of K forms of sentences about each of P places.

    With fewer places than components, the others are some directions at right angles to them.
    Raises ValueError if `size` is above E - K + 1, or if all places are the same.
    """
    known = known_PKE.double()
    forms, width = known.shape[1:]
    mean_E = known.mean((0, 1))
    if not 1 <= size <= width - forms + 1:
        raise ValueError(f"features must be 1 to {width - forms + 1}, got {size}")
    # The forms' means differ in K - 1 directions at most.
    _, _, of_forms = torch.linalg.svd(known.mean(0) - mean_E, full_matrices=True)
    rest_EX = of_forms[forms - 1 :].T
    _, values, vectors = torch.linalg.svd(
        (known - mean_E).flatten(0, 1) @ rest_EX, full_matrices=True
    )
    if not values[0] > 1e-6:
        raise ValueError("all embeddings are the same, so nothing tells the places apart")
    basis_EF = _signed(rest_EX @ vectors[:size].T)
    scale = ((known - mean_E) @ basis_EF).square().mean().sqrt()
    return Projection(mean_E.float(), (basis_EF / scale).float())


def fit_components(known_PE: Tensor, size: int) -> Projection:
    """The first principal components of embeddings, each of mean square 1 over them.

    Raises ValueError for more components than the embeddings have.
    """
    known = known_PE.double()
    mean_E = known.mean(0)
    _, values, vectors = torch.linalg.svd(known - mean_E, full_matrices=False)
    different = int((values > 1e-6 * max(float(values[0]), 1e-6)).sum())
    if not 1 <= size <= different:
        raise ValueError(f"features must be 1 to {different}, got {size}")
    basis_EF = _signed(vectors[:size].T)
    return Projection(mean_E.float(), (basis_EF / values[:size] * len(known) ** 0.5).float())


def _signed(basis_EF: Tensor) -> Tensor:
    """The components with fixed signs: one and its opposite are as good, and libraries differ."""
    largest_F = basis_EF.abs().argmax(0)
    return basis_EF * basis_EF.gather(0, largest_F[None]).sign()


def check_tables(tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ValueError unless saved numbers have these names and shapes, are float32 and finite."""
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if found != dict(wanted):
        raise ValueError(f"there are tensors of shapes {found}, and needed are {wanted}")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite, or not float32")
