"""How the networks compute: what decides speed and rounding and no formula."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Compute:
    """What decides speed and rounding and no formula."""

    tower: str = "reference"
    """`reference`, `norm_act` or `persistent`, see `torch_crl.kernels.tower.tower`."""
    precision: str = "fp32"
    """Of the operands of the inner layers' products; first and last layer are fp32."""
    recompute: int = 0
    """Layers between two activations kept for the backward; 0 keeps all."""
    cuda_graph: bool = False
    """Updates and the policy's actions are captured once and replayed."""

    @property
    def other_kernels(self) -> Literal["reference", "triton"]:
        """The implementation of all operations beside the tower."""
        return "reference" if self.tower == "reference" else "triton"

    @property
    def implementations(self) -> str:
        """All choices but the precision, for people."""
        graph = "one CUDA graph" if self.cuda_graph else "no CUDA graph"
        return f"towers: {self.tower}, other kernels: {self.other_kernels}, {graph}"

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.precision}, {self.implementations}"


PLAIN = Compute()
"""Plain torch in fp32: what a policy on its own is run with."""
