"""torch's default dtype, device and mode, set to the same for everything the library computes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Inside, new tensors are by default float32, on the CPU and not inference tensors.

    So `torch.set_default_dtype`, `torch.set_default_device` and `torch.inference_mode` in a user's
    script do not affect what the library computes. Afterwards the user's settings apply again.
    """
    # One call, which takes a microsecond, shows all three settings.
    usual = torch.empty(0)
    if usual.dtype == torch.float32 and usual.is_cpu and not usual.is_inference():
        yield
        return
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, usual.dtype)
        torch.set_default_dtype(torch.float32)
        stack.enter_context(torch.device("cpu"))
        if usual.is_inference():
            stack.enter_context(torch.inference_mode(mode=False))
            stack.enter_context(torch.no_grad())
        yield
