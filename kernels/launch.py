"""What every Triton launch needs; imported by the kernel files only, since it imports Triton."""

import torch
import triton.language as tl
from torch import Tensor
from triton import knobs
from triton.runtime import driver

# Each factor is a sum of three bf16 numbers: as exact as fp32, on the tensor cores. Sums of
# two TF32 numbers are not ("tf32x3"): they lose 2^-20 of a product. The interpreter has fp32 only.
FP32_PRODUCTS = tl.constexpr("ieee" if knobs.runtime.interpret else "bf16x6")
"""What `tl.dot` takes as `input_precision` for products of fp32 numbers."""


def require_device(x: Tensor, op: str) -> None:
    """Raise ValueError unless Triton can run on the device of `x`."""
    if not x.is_cuda and not knobs.runtime.interpret:
        raise ValueError(
            f"{op}'s kernel needs CUDA tensors, got {x.device}; take implementation='reference', "
            "or set TRITON_INTERPRET=1 to try the kernel slowly on the CPU"
        )


def multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a CUDA device; under the interpreter, that of an H100."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that one program may use on a CUDA device."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return int(driver.active.utils.get_device_properties(index)["max_shared_mem"])
