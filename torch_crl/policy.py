"""A trained actor as a plain function of state and goal, saved and loaded on its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Generator, Tensor, nn

from torch_crl import checkpoint
from torch_crl.networks import ResidualTower, action_distribution, mlp, mlp_sizes

Array = TypeVar("Array", Tensor, np.ndarray)


def _squashed_gaussian(output: Tensor) -> Tensor:
    return torch.tanh(action_distribution(output)[0])


def _clip(output: Tensor) -> Tensor:
    return output.clamp(-1.0, 1.0)


HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "squashed_gaussian": _squashed_gaussian,
    "tanh": torch.tanh,
    "clip": _clip,
}
"""What makes the deterministic action of an actor's output: tanh of its first half, concat(mean,
raw log-std); tanh of all of it; all of it, cut off at -1 and 1."""


class Policy:
    """The deterministic policy: what evaluation and robots run."""

    def __init__(
        self,
        actor: nn.Module,
        *,
        state_size: int,
        goal_size: int,
        head: str = "squashed_gaussian",
    ) -> None:
        """`actor` maps concat(state, goal) to what the head takes: a ResidualTower or an `mlp`."""
        self.actor = actor
        self.head = head
        self.state_size, self.goal_size = state_size, goal_size

    @torch.no_grad()
    def __call__(self, state: Array, goal: Array) -> Array:
        """Action in [-1, 1] for one state [S] and goal [G], or for batches [N, S] and [N, G].

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
        device = next(self.actor.parameters()).device
        inputs = torch.cat([state_tensor, goal_tensor], dim=-1).to(device)
        action = HEADS[self.head](self.actor(inputs))
        if isinstance(state, Tensor):
            return action.to(state.device)
        return action.cpu().numpy()

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write the actor's weights and all that `load_policy` needs to rebuild it."""
        described = {
            "state_size": self.state_size,
            "goal_size": self.goal_size,
            "head": self.head,
            "network": _describe(self.actor),
        }
        checkpoint.save(folder, self.actor.state_dict(), meta | {"policy": described})


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
    described = meta["policy"]
    actor = _rebuild(described["network"])
    actor.load_state_dict(tensors)
    return Policy(
        actor,
        state_size=described["state_size"],
        goal_size=described["goal_size"],
        head=described["head"],
    )


def _describe(actor: nn.Module) -> dict[str, Any]:
    if isinstance(actor, ResidualTower):
        return {"kind": "tower", **actor.sizes()}
    assert isinstance(actor, nn.Sequential)
    return {"kind": "mlp", **mlp_sizes(actor)}


def _rebuild(network: dict[str, Any]) -> nn.Module:
    sizes = {name: value for name, value in network.items() if name != "kind"}
    if network["kind"] == "tower":
        return ResidualTower(**sizes, generator=Generator())
    return mlp(**sizes)
