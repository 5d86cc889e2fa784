"""Energies of all pairs in a batch, reduced to the scores that the contrastive losses need."""

from typing import Any, Literal

from torch import Tensor

from torch_crl.kernels.infonce import reference
from torch_crl.kernels.infonce.reference import ENERGIES as ENERGIES
from torch_crl.kernels.infonce.reference import EPSILON as EPSILON
from torch_crl.kernels.infonce.reference import Energy as Energy
from torch_crl.kernels.infonce.reference import PairScores as PairScores
from torch_crl.kernels.infonce.reference import logsumexp_of_columns as logsumexp_of_columns
from torch_crl.kernels.infonce.reference import reduce_energies as reduce_energies
from torch_crl.kernels.infonce.reference import unit_rows

IMPLEMENTATIONS = ("reference", "numba", "triton")


def pair_scores(
    phi_BR: Tensor,
    psi_CR: Tensor,
    *,
    energy: str,
    columns: bool = False,
    softplus: bool = False,
    row_mask_B: Tensor | None = None,
    group_C: Tensor | None = None,
    first: int = 0,
    implementation: Literal["reference", "numba", "triton"],
) -> PairScores:
    """Scores of all pairs of rows of phi [B, R] and psi [C, R]; every field is [B].

    Args:
        energy: A name in ENERGIES.
        columns: Also compute column_logsumexp_B; C must be B.
        softplus: Also compute row_softplus_B.
        row_mask_B: float32, 1 for the rows that the sums of the columns contain and 0 for others;
            None is all rows. It does not change the scores of rows.
        group_C: int64, the group of each column and of the row that it belongs to; pairs of one
            group are in no score but their row's sum, except for the true pairs. None is no groups.
        first: The column to which row 0 belongs; row i belongs to column first + i.
        implementation: "reference" makes the B x C matrix of energies, in any floating dtype;
            "numba" makes it too, on one CPU core, where C is B, and else is the reference; "triton"
            does not make it, takes float32 on a CUDA device, and raises if it cannot run.

    Raises:
        ValueError: For shapes that do not match, an unknown name, or tensors that the
            requested implementation does not take.
    """
    two_matrices = phi_BR.ndim == 2 and psi_CR.ndim == 2 and phi_BR.numel() > 0
    if not two_matrices or phi_BR.shape[1] != psi_CR.shape[1]:
        raise ValueError(
            f"phi {tuple(phi_BR.shape)} and psi {tuple(psi_CR.shape)} must be [B, R] and [C, R] "
            "with B and R at least 1; pass one representation per row"
        )
    rows, goals = len(phi_BR), len(psi_CR)
    if not 0 <= first <= goals - rows:
        raise ValueError(
            f"{rows} rows from column {first} on have no goal each among {goals}; pass as many "
            "goals as rows, true pairs in equal rows, or `first` for more goals"
        )
    if columns and rows != goals:
        raise ValueError(f"sums of columns need as many rows as goals, got {rows} and {goals}")
    if energy not in ENERGIES:
        raise ValueError(f"energy {energy!r} is unknown; choose one of {', '.join(ENERGIES)}")
    options: dict[str, Any] = {"energy": energy, "columns": columns, "softplus": softplus}
    options |= {"row_mask_B": row_mask_B, "group_C": group_C, "first": first}
    if implementation == "reference" or (implementation == "numba" and rows != goals):
        return reference.pair_scores(phi_BR, psi_CR, **options)
    # Imported here, so that numba and Triton are needed only if their kernels are requested.
    if implementation == "numba":
        from torch_crl.kernels.infonce.cpu import pair_scores as compiled
    elif implementation == "triton":
        from torch_crl.kernels.infonce.op import pair_scores as compiled
    else:
        raise ValueError(
            f"implementation {implementation!r} is unknown; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if energy == "cosine":
        options["energy"], phi_BR, psi_CR = "dot", unit_rows(phi_BR), unit_rows(psi_CR)
    scores = compiled(phi_BR, psi_CR, **options)
    return scores._replace(
        column_logsumexp_B=scores.column_logsumexp_B if columns else None,
        row_softplus_B=scores.row_softplus_B if softplus else None,
    )
