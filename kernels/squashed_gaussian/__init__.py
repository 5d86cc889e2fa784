"""The actor's last step: from its tower's output and noise to an action and its log-density."""

from torch import Tensor

from torch_crl.kernels.squashed_gaussian import reference
from torch_crl.kernels.squashed_gaussian.reference import (
    action_distribution as action_distribution,
)
from torch_crl.kernels.squashed_gaussian.reference import squashed_sample as squashed_sample

IMPLEMENTATIONS = ("reference", "numba", "triton")
LARGEST_ACTION = 1024


def squashed_gaussian(
    output_B2A: Tensor, noise_BA: Tensor, *, implementation: str
) -> tuple[Tensor, Tensor]:
    """A reparameterised action tanh(mean + std * noise), and log pi(action) summed over entries.

    Args:
        output_B2A: concat(mean, raw log-std) [B, 2 A] of an actor; see `action_distribution`.
        noise_BA: standard normal draws, which get no gradient from the kernel.
        implementation: "reference" is plain torch, in any floating dtype; "numba" is one loop
            forward and one backward on one CPU core; "triton" is one kernel forward and one
            backward, for float32 and up to 1024 entries of an action, on a CUDA device or under
            Triton's interpreter.

    Returns:
        action [B, A] and log_prob [B].

    Raises:
        ValueError: For shapes that do not match, an unknown name, or tensors that the
            requested implementation does not take.
    """
    if (
        output_B2A.ndim != 2
        or noise_BA.ndim != 2
        or output_B2A.shape != (len(noise_BA), 2 * noise_BA.shape[1])
        or noise_BA.numel() == 0
    ):
        raise ValueError(
            f"output {tuple(output_B2A.shape)} and noise {tuple(noise_BA.shape)} must be [B, 2 A] "
            "and [B, A] with B and A at least 1; draw one number for each entry of an action"
        )
    if implementation == "reference":
        return reference.squashed_gaussian(output_B2A, noise_BA)
    if implementation == "numba":
        # Imported here, so that numba is needed only if its kernels are requested.
        from torch_crl.kernels.squashed_gaussian import cpu

        return cpu.squashed_gaussian(output_B2A, noise_BA)
    if implementation != "triton":
        raise ValueError(
            f"implementation {implementation!r} is unknown; choose one of "
            f"{', '.join(IMPLEMENTATIONS)}"
        )
    if noise_BA.shape[1] > LARGEST_ACTION:
        raise ValueError(
            f"an action has {noise_BA.shape[1]} entries; the triton implementation takes up to "
            f'{LARGEST_ACTION}: choose implementation="reference"'
        )
    # Imported here, so that Triton is needed only if its kernels are requested.
    from torch_crl.kernels.squashed_gaussian import kernel

    return kernel.squashed_gaussian(output_B2A, noise_BA)
