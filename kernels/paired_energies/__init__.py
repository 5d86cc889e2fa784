"""The energies of matching rows, such as those of the policy's actions and their goals."""

from typing import Literal

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

    The implementation "triton" takes float32 on a CUDA device; all others are plain torch.
    """
    if implementation != "triton":
        return ENERGIES[energy].paired(phi_BR, psi_BR)
    # Imported here, so that Triton is needed only if its kernels are requested.
    from torch_crl.kernels.paired_energies import kernel

    if energy == "cosine":
        energy, phi_BR, psi_BR = "dot", unit_rows(phi_BR), unit_rows(psi_BR)
    return kernel.paired_energies(phi_BR, psi_BR, energy=energy)
