"""The energies of matching rows, such as those of the policy's actions and their goals."""

from typing import Literal

import torch
from torch import Tensor

from torch_crl.kernels.infonce.reference import ENERGIES, unit_rows


def paired_energies(
    phi_BR: Tensor,
    psi_BR: Tensor,
    *,
    energy: str,
    implementation: Literal["reference", "numba", "triton"],
) -> Tensor:
    """The energies [B] of matching rows of phi and psi [B, R].

    The implementation "triton" takes float32 on a CUDA device; all others are plain torch. Raises
    ValueError for tensors of other shapes or, with "triton", other dtypes.
    """
    if phi_BR.ndim != 2 or phi_BR.shape != psi_BR.shape:
        raise ValueError(
            f"phi {tuple(phi_BR.shape)} and psi {tuple(psi_BR.shape)} must both be [B, R]"
        )
    if implementation != "triton":
        return ENERGIES[energy].paired(phi_BR, psi_BR)
    # Imported here, so that Triton is needed only if its kernels are requested.
    from torch_crl.kernels.paired_energies import kernel

    if {phi_BR.dtype, psi_BR.dtype} != {torch.float32}:
        raise ValueError(
            f"phi is {phi_BR.dtype} and psi {psi_BR.dtype}; the triton implementation takes "
            'torch.float32: convert them, or choose implementation="reference"'
        )
    if energy == "cosine":
        energy, phi_BR, psi_BR = "dot", unit_rows(phi_BR), unit_rows(psi_BR)
    return kernel.paired_energies(phi_BR, psi_BR, energy=energy)
