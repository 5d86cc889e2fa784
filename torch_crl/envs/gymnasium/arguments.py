"""What users give to our Gymnasium envs, checked before physics sees it. N envs."""

import numpy as np
from numpy.typing import NDArray

from torch_crl.envs.spec import LARGEST
from torch_crl.errors import NotFiniteError


def finite_actions(actions: object, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    """The actions in float32.

    Raises ValueError for what has another shape or holds no numbers, and NotFiniteError for
    numbers that are not finite or too large.
    """
    given = np.asarray(actions)
    if given.shape != shape or given.dtype.kind not in "fiu":
        raise ValueError(
            f"{name}: an action must be numbers of shape {list(shape)}, got {given.dtype} of shape "
            f"{list(given.shape)}"
        )
    if not (np.abs(given) < LARGEST).all():
        raise NotFiniteError(
            f"{name}: the action that was given is NaN, infinite or beyond {LARGEST:g}, first in "
            f"entry {np.argwhere(~(np.abs(given) < LARGEST))[0].tolist()}; it was not carried out"
        )
    return given.astype(np.float32)


def mask_of_envs(given: object, num_envs: int) -> NDArray[np.bool_]:
    """A mask over the envs, bool [N]. Raises ValueError for anything else."""
    mask = np.asarray(given)
    if mask.shape != (num_envs,) or mask.dtype != np.bool_:
        raise ValueError(
            f"reset_mask must have {num_envs} bools, got {mask.dtype} of shape {list(mask.shape)}"
        )
    return mask
