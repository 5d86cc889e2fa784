"""Divides the envs of a checkpoint among another number of ranks than wrote it.

The columns of replay and envs are independent of each other, so they can move: rank r of W takes
the r-th of W equal parts of all columns. Streams of random numbers cannot be divided, so each rank
begins new ones.
"""

from pathlib import Path

import torch
from torch import Tensor

from torch_crl.distributed.ranks import Ranks
from torch_crl.system import checkpoint
from torch_crl.training.run import Run, stream_seed

# Where a rank's tensors have its columns, by the beginnings of their names; all others count.
_SECOND = ("replay/", "collector/staged/", "goals/pictures")
_STREAMS = {
    "learner/generator": "actor",
    "sampler/generator": "batches",
    "collector/generator": "exploration",
    "collector/env/generator": "starts",
}


def is_of_rank(name: str) -> bool:
    """Whether a tensor of a checkpoint is of one rank alone: its envs, its replay, its streams."""
    of_all = name.startswith(("learner/", "average/", "goals/"))
    return name in _STREAMS or name.startswith(_SECOND) or not of_all


def columns_of_rank(
    folder: Path,
    tensors: dict[str, Tensor],
    run: Run,
    ranks: Ranks,
    *,
    written_by: int,
    updates: int,
) -> dict[str, Tensor]:
    """The state that this rank begins with: the columns of a checkpoint that are now its own.

    Every rank reads the files of all that wrote it; `tensors` are what it has loaded and checked.
    """
    parts = [tensors]
    if written_by > 1:
        parts = [checkpoint.load_part(folder, rank) for rank in range(written_by)]
    divided = dict(tensors | parts[0])
    for name, first in parts[0].items():
        if name in _STREAMS:
            stream = f"{ranks.stream(_STREAMS[name])}/reshard{updates}"
            seed = stream_seed(run.recipe.system.seed, stream)
            divided[name] = _generator_state(run, name, seed)
        elif is_of_rank(name) and first.ndim:
            axis = 1 if name.startswith(_SECOND) else 0
            columns = torch.cat([part[name] for part in parts], dim=axis)
            divided[name] = columns.chunk(ranks.size, dim=axis)[ranks.rank].clone()
    return divided


def _generator_state(run: Run, name: str, seed: int) -> Tensor:
    """The state of a new stream; physics by Warp draws its starts on the device."""
    on_device = name != "collector/env/generator" or run.env.state_NS.is_cuda
    device = run.device if on_device else torch.device("cpu")
    return torch.Generator(device=device).manual_seed(seed).get_state()
