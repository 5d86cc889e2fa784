"""How the networks are computed: choices that affect speed and rounding but no formula."""

from dataclasses import dataclass
from typing import Literal

Tower = Literal["reference", "numba", "norm_act", "persistent"]
"""Implementations of a tower; see `torch_crl.kernels.tower`."""


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Choices that affect speed and rounding but no formula."""

    tower: Tower = "reference"
    """Implementation of the towers: `numba` computes whole ones, the others their hidden layers."""
    precision: str = "fp32"
    """Precision of the inputs of the hidden layers' matmuls; first and last layer are fp32."""
    recompute: int = 0
    """Number of layers between two activations kept for the backward pass; 0 keeps all."""
    cuda_graph: bool = False
    """Whether updates and the policy's actions are captured once as a CUDA graph and replayed."""

    @property
    def other_kernels(self) -> Literal["reference", "numba", "triton"]:
        """The implementation of all operations other than the tower."""
        if self.tower in ("reference", "numba"):
            return self.tower
        return "triton"

    @property
    def of_layers(self) -> Literal["reference", "triton"]:
        """The implementation of single layers and of the replay, which numba has no kernels for."""
        return "triton" if self.other_kernels == "triton" else "reference"

    @property
    def implementations(self) -> str:
        """All choices except the precision, as readable text."""
        graph = "one CUDA graph" if self.cuda_graph else "no CUDA graph"
        return f"towers: {self.tower}, other kernels: {self.other_kernels}, {graph}"

    def __str__(self) -> str:
        """All choices in one readable line."""
        return f"{self.precision}, {self.implementations}"


PLAIN = Compute()
"""Plain torch in fp32, with which a stand-alone policy runs."""
