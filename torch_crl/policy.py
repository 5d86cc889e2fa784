"""A trained actor as a plain function of state and goal, saved and loaded on its own."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from annotated_types import Len
from torch import Tensor, nn

from torch_crl import checkpoint, fields
from torch_crl.defaults import torch_defaults
from torch_crl.envs.finite import NotFiniteError
from torch_crl.fields import STRICT, Count, Depth, Positive
from torch_crl.networks import ResidualTower, action_distribution, mlp, mlp_sizes
from torch_crl.runs.directory import RunDirectory

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

    @property
    def action_size(self) -> int:
        """Entries of an action."""
        *_, bias = self.actor.state_dict().values()
        return len(bias) // 2 if self.head == "squashed_gaussian" else len(bias)

    @torch_defaults()
    @torch.no_grad()
    def __call__(self, state: Array, goal: Array) -> Array:
        """Action in [-1, 1] for one state [S] and goal [G], or for batches [N, S] and [N, G].

        One goal goes with many states, and one state with many goals. Torch tensors give a tensor
        on the same device; NumPy arrays of any kind of number, and lists, an array; both float32.
        Raises ValueError for other sizes, and for NaN or infinity, where they are on the CPU: a
        look at another device would wait for it, and NaN gives a NaN action there.
        """
        device = next(self.actor.parameters()).device
        state_tensor, goal_tensor = map(_as_tensor, (state, goal))
        leading = self._leading(state_tensor, goal_tensor)
        for name, part in (("state", state_tensor), ("goal", goal_tensor)):
            _require_finite(name, part)
        parts = [part.to(device).expand(*leading, -1) for part in (state_tensor, goal_tensor)]
        inputs = torch.cat(parts, dim=-1)
        # The actor takes at least one row.
        output = self.actor(inputs if inputs.numel() else inputs.new_zeros(1, inputs.shape[-1]))
        action = HEADS[self.head](output)
        if not inputs.numel():
            action = action[:0].reshape(*leading, action.shape[-1])
        if isinstance(state, Tensor):
            return action.to(state.device)
        return action.cpu().numpy()

    def _leading(self, state: Tensor, goal: Tensor) -> torch.Size:
        """The leading axes of the action. Raises ValueError for sizes that do not fit."""
        shapes = f"got shapes {list(state.shape)} and {list(goal.shape)}"
        if (state.shape[-1:], goal.shape[-1:]) != ((self.state_size,), (self.goal_size,)):
            raise ValueError(
                f"this policy takes states of {self.state_size} and goals of {self.goal_size} "
                f"numbers, along the last axis; {shapes}"
            )
        try:
            leading: torch.Size = torch.broadcast_shapes(state.shape[:-1], goal.shape[:-1])
        except RuntimeError:
            raise ValueError(
                f"there must be as many states as goals, or one of either; {shapes}"
            ) from None
        return leading

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Write the actor's weights and all that `load_policy` needs to rebuild it."""
        described = {
            "state_size": self.state_size,
            "goal_size": self.goal_size,
            "head": self.head,
            "network": _describe(self.actor),
        }
        checkpoint.save(folder, self.actor.state_dict(), meta | {"policy": described})


@torch_defaults()
def load_policy(path: str | Path, *, which: Literal["newest", "best"] = "newest") -> Policy:
    """The policy in a run directory or in one policy folder, on the CPU.

    Args:
        which: of a run directory, the newest readable policy, or the one that was best when it was
            evaluated in training.

    Raises CheckpointError if there is none.
    """
    return find_policy(path, which=which).policy


class FoundPolicy(NamedTuple):
    """A policy, where it was found, and why newer ones were passed over."""

    policy: Policy
    folder: Path
    passed_over: list[checkpoint.CheckpointError]


def find_policy(path: str | Path, *, which: Literal["newest", "best"] = "newest") -> FoundPolicy:
    """`load_policy` with what a user should be told about it."""
    folder = Path(os.path.expanduser(path))
    failures: list[checkpoint.CheckpointError] = []
    if (folder / checkpoint.META).exists():
        tensors, meta = checkpoint.load(folder)
    else:
        run = RunDirectory(folder)
        saved = run.best_policies if which == "best" else run.saved_policies
        if not saved:
            raise checkpoint.CheckpointError(
                f"{run.policies} holds no {which} policy; give a run directory or one policy of it"
            )
        folder, tensors, meta, failures = checkpoint.load_newest(saved)
    if "policy" not in meta:
        raise checkpoint.CheckpointError(
            f"{folder} holds a checkpoint and no policy; give the run directory instead"
        )
    try:
        policy = _rebuild(fields.read(_Description, json.dumps(meta["policy"])), tensors)
    # torch raises RuntimeError for sizes that it cannot even multiply.
    except (ValueError, RuntimeError) as error:
        raise checkpoint.CheckpointError(f"{folder} holds no policy: {error}") from error
    return FoundPolicy(policy, folder, failures)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tower:
    """What builds a `ResidualTower`."""

    __pydantic_config__ = STRICT

    kind: Literal["tower"]
    input_size: Count
    output_size: Count
    width: Count
    depth: Depth
    activation: Literal["swish", "relu"]
    branch_scale: Positive
    block: Literal["published", "no_skip", "no_norm", "hyperspherical", "pre_norm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mlp:
    """What builds an `mlp`."""

    __pydantic_config__ = STRICT

    kind: Literal["mlp"]
    layers: Annotated[list[Count], Len(2, 64)]
    activation: Literal["relu", "tanh"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Description:
    """What is saved of a policy beside its weights."""

    __pydantic_config__ = STRICT

    state_size: Count
    goal_size: Count
    head: Literal["squashed_gaussian", "tanh", "clip"]
    network: _Tower | _Mlp


def _as_tensor(part: Any) -> Tensor:
    if isinstance(part, Tensor):
        return part.float()
    # A copy where the array runs backwards or has another byte order, which torch does not take.
    return torch.from_numpy(np.array(part, dtype=np.float32))


def _require_finite(name: str, part: Tensor) -> None:
    # A sum of finite numbers is finite, and costs less than a look at each of them.
    if not part.is_cpu or math.isfinite(part.sum()) or part.isfinite().all():
        return
    *row, entry = (~part.isfinite()).nonzero()[0].tolist()
    where = f" of row {', '.join(map(str, row))}" if row else ""
    value = float(part[*row, entry])
    raise NotFiniteError(f"the policy was given a {name} whose entry {entry}{where} is {value}")


def _describe(actor: nn.Module) -> dict[str, Any]:
    if isinstance(actor, ResidualTower):
        return {"kind": "tower", **actor.sizes()}
    assert isinstance(actor, nn.Sequential)
    return {"kind": "mlp", **mlp_sizes(actor)}


def _rebuild(described: _Description, tensors: dict[str, Tensor]) -> Policy:
    """The policy of these weights. Raises ValueError where they do not fit its description."""
    sizes = asdict(described.network)
    kind = sizes.pop("kind")
    # Without memory: what a description asks for may be larger than any machine.
    with torch.device("meta"):
        actor = ResidualTower(**sizes, generator=None) if kind == "tower" else mlp(**sizes)
    checkpoint.check_tensors(tensors, actor.state_dict())
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    actor.load_state_dict(tensors, assign=True)
    inputs = described.state_size + described.goal_size
    taken = sizes["input_size"] if kind == "tower" else sizes["layers"][0]
    if taken != inputs:
        raise ValueError(f"its network takes {taken} numbers, a state and a goal {inputs}")
    return Policy(
        actor,
        state_size=described.state_size,
        goal_size=described.goal_size,
        head=described.head,
    )
