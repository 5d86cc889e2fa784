"""What every Triton launch needs; imported by the kernel files only, since it imports Triton."""

import torch
from torch import Tensor
from triton import knobs
from triton.runtime import driver


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
