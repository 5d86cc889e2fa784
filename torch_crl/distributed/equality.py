"""Whether the networks of all ranks are still the same, to the bit."""

import hashlib

import torch
from torch import Tensor

from torch_crl.distributed.ranks import RankError, Ranks


class RanksDifferError(RankError):
    """The ranks hold different networks or moments; the message names rank and tensor."""


def check_equal(tensors: dict[str, Tensor], ranks: Ranks) -> None:
    """Raise RanksDifferError on all ranks unless these tensors are the same on all of them.

    The update gives every rank the same bits, so a difference is a fault of memory, a GPU or a
    kernel, and from then on the ranks would train different networks without a word.
    """
    if ranks.is_alone:
        return
    every = ranks.all_of({name: _digest(tensor) for name, tensor in tensors.items()})
    for rank, theirs in enumerate(every):
        differing = [name for name, digest in every[0].items() if theirs.get(name) != digest]
        if differing:
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            raise RanksDifferError(
                f"rank {rank} holds another {differing[0]}{more} than rank 0, although every "
                "update gives all ranks the same numbers; the run stops, since it would train "
                "different networks. Resume it from its newest checkpoint; if it happens again, "
                f"look for a fault in the machine of rank {rank}"
            )


def broadcast(tensors: dict[str, Tensor], ranks: Ranks) -> None:
    """Give all ranks the numbers of rank 0, in place."""
    if ranks.is_alone:
        return
    with torch.no_grad():
        for tensor in tensors.values():
            if not ranks.is_first:
                tensor.zero_()
            # Zeros are added, so this is exact.
            ranks.sum_(tensor)


def _digest(tensor: Tensor) -> bytes:
    numbers = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(numbers.numpy().tobytes(), digest_size=8).digest()
