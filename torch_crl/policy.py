"""A trained actor as a plain function of state and goal, saved and loaded on its own."""

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor

from torch_crl import checkpoint
from torch_crl.networks import ResidualTower, action_distribution

Array = TypeVar("Array", Tensor, np.ndarray)


class Policy:
    """The deterministic policy tanh(mean): what evaluation and robots run."""

    def __init__(self, actor: ResidualTower, *, state_size: int, goal_size: int) -> None:
        """`actor` maps concat(state, goal) to concat(mean, raw log-std)."""
        self.actor = actor
        self.state_size, self.goal_size = state_size, goal_size

    @torch.no_grad()
    def __call__(self, state: Array, goal: Array) -> Array:
        """Action in (-1, 1) for one state [S] and goal [G], or for batches [N, S] and [N, G].

        Torch tensors give a tensor on the same device, NumPy arrays an array; both float32.
        Raises ValueError for other sizes.
        """
        state_tensor, goal_tensor = (
            torch.as_tensor(part, dtype=torch.float32) for part in (state, goal)
        )
        sizes = (state_tensor.shape[-1], goal_tensor.shape[-1])
        if sizes != (self.state_size, self.goal_size):
            raise ValueError(
                f"this policy takes states of {self.state_size} and goals of {self.goal_size} "
                f"numbers, got {sizes[0]} and {sizes[1]}"
            )
        inputs = torch.cat([state_tensor, goal_tensor], dim=-1).to(self.actor.weight.device)
        action = torch.tanh(action_distribution(self.actor(inputs))[0])
        if isinstance(state, Tensor):
            return action.to(state.device)
        return action.cpu().numpy()


def save_policy(
    folder: Path, actor: ResidualTower, *, state_size: int, goal_size: int, meta: dict[str, Any]
) -> None:
    """Write the actor's weights and all that `load_policy` needs to rebuild it."""
    sizes = {
        "state_size": state_size,
        "goal_size": goal_size,
        "action_size": len(actor.output_bias) // 2,
        "width": actor.weight.shape[-1],
        "depth": actor.depth,
        "activation": actor.activation,
        "branch_scale": actor.branch_scale,
    }
    checkpoint.save(folder, actor.state_dict(), meta | {"policy": sizes})


def load_policy(path: str | Path) -> Policy:
    """The policy in a run directory (the newest readable one) or in one policy folder, on the CPU.

    Raises CheckpointError if there is none.
    """
    folder = Path(path)
    if (folder / checkpoint.META).exists():
        tensors, meta = checkpoint.load(folder)
    else:
        _, tensors, meta, _ = checkpoint.load_newest(folder / "policies")
    if "policy" not in meta:
        raise checkpoint.CheckpointError(
            f"{folder} holds a checkpoint and no policy; give the run directory instead"
        )
    sizes = meta["policy"]
    actor = ResidualTower(
        sizes["state_size"] + sizes["goal_size"],
        2 * sizes["action_size"],
        width=sizes["width"],
        depth=sizes["depth"],
        activation=sizes["activation"],
        branch_scale=sizes["branch_scale"],
        generator=Generator(),
    )
    actor.load_state_dict(tensors)
    return Policy(actor, state_size=sizes["state_size"], goal_size=sizes["goal_size"])
