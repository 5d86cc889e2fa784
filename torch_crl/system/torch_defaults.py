"""What torch takes where nothing is said: said once, for all that the library computes."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def torch_defaults() -> Iterator[None]:
    """Inside, new tensors are float32, on the CPU and no inference tensors; after it, as before.

    So `torch.set_default_dtype`, `torch.set_default_device` and `torch.inference_mode` in a user's
    script change nothing of what the library computes.
    """
    # One call that costs a microsecond and knows all three.
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
