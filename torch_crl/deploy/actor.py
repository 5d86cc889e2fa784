"""The actor of a policy as arrays and sizes, which every runtime is written from.

S state, G goal, D width, L layers with weights of their own, O outputs, P pairs of the self-test.
"""

import copy
import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from torch_crl.agent.compute import PLAIN
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.policy import HEADS, Policy
from torch_crl.errors import UsageError

Floats = NDArray[np.float32]
_BLOCKS = ("published", "shared", "pre_norm")
_PAIRS = 8
_LEAST_TOLERANCE, _MOST_TOLERANCE = 1e-5, 1e-2


@dataclass(frozen=True, kw_only=True)
class ExportedActor:
    """An actor without torch: the deterministic action of state and goal."""

    state_size: int
    goal_size: int
    action_size: int
    chunk: int
    """Actions that are decided at once."""
    depth: int
    """Number of inner layers; those with weights of their own are applied one after the other, and
    then from the first one again."""
    block: Literal["published", "pre_norm"]
    """How layers are joined; see `torch_crl.kernels.tower.tower`."""
    activation: Literal["swish", "relu"]
    branch_scale: float
    head: Literal["tanh", "clip"]
    """What makes the action from the output."""
    tensors: dict[str, Floats]
    """`input_` and `output_` layer [D, S + G] and [O, D], inner `weight` [L, D, D], and the biases
    and LayerNorm parameters of each. The LayerNorm behind the first layer is the `input_` one;
    with `pre_norm` it is before the last layer, and the `output_` one."""
    pairs: dict[str, Floats]
    """`state` [P, S], `goal` [P, G] and the `action` [P, O] of the policy, computed in fp64."""
    tolerance: float
    """By how much an action of the self-test may differ: 1e-5, or eight times what rounding to fp32
    does to this policy in plain torch, since a runtime sums in another order; at most 0.01."""

    @property
    def width(self) -> int:
        """Number of units of a layer."""
        return len(self.tensors["input_bias"])

    @property
    def first_layer(self) -> list[Floats]:
        """Its weight and bias, and weight and bias of its LayerNorm, wherever that stands."""
        norm = "output" if self.block == "pre_norm" else "input"
        names = ("input_weight", "input_bias", f"{norm}_ln_weight", f"{norm}_ln_bias")
        return [self.tensors[name] for name in names]

    @property
    def sizes(self) -> dict[str, int | float | str]:
        """Everything but the numbers."""
        names = ("state_size", "goal_size", "action_size", "chunk", "depth", "width", "block")
        return {
            name: getattr(self, name) for name in (*names, "activation", "branch_scale", "head")
        }

    @property
    def sha256(self) -> str:
        """Of all weights, one after the other."""
        digest = hashlib.sha256()
        for tensor in self.tensors.values():
            digest.update(tensor.tobytes())
        return digest.hexdigest()


def actor_of(policy: Policy) -> ExportedActor:
    """The actor of a policy in fp32.

    Raises UsageError for networks that the runtimes do not know: a library's own, and blocks other
    than `published`, `shared` and `pre_norm`.
    """
    actor = policy.actor
    if not isinstance(actor, ResidualTower):
        raise UsageError(
            "this policy has the network of a library, which has exports of its own; `torch-crl "
            "export` takes residual towers, which baselines trained with --depth have"
        )
    policy.require_numbers("export")
    pairs, tolerance = _self_test(policy, actor)
    sizes = actor.sizes
    if sizes.block not in _BLOCKS:
        raise UsageError(
            f"this policy was trained with {sizes.flag}; the exported runtimes know "
            f"{', '.join(_BLOCKS)}"
        )
    tensors = {
        name: np.ascontiguousarray(tensor.detach().cpu().float().numpy())
        for name, tensor in actor.state_dict().items()
    }
    if sizes.block == "pre_norm":
        # By these names, runtimes of before there were such networks refuse them.
        tensors = {name.replace("input_ln", "output_ln"): each for name, each in tensors.items()}
    if policy.head == "squashed_gaussian":
        # Without the log-std, which the deterministic action does not need.
        outputs = policy.action_size * policy.chunk
        for name in ("output_weight", "output_bias"):
            tensors[name] = np.ascontiguousarray(tensors[name][:outputs])
    return ExportedActor(
        state_size=policy.state_size,
        goal_size=policy.goal_size,
        action_size=policy.action_size,
        chunk=policy.chunk,
        depth=sizes.depth,
        block="pre_norm" if sizes.block == "pre_norm" else "published",
        activation=sizes.activation,
        branch_scale=sizes.branch_scale,
        head="clip" if policy.head == "clip" else "tanh",
        tensors=tensors,
        pairs=pairs,
        tolerance=tolerance,
    )


@torch.no_grad()
def _self_test(policy: Policy, actor: ResidualTower) -> tuple[dict[str, Floats], float]:
    """The pairs and the tolerance of the self-test."""
    generator = torch.Generator().manual_seed(0)
    state, goal = (
        torch.randn(_PAIRS, size, generator=generator)
        for size in (policy.state_size, policy.goal_size)
    )
    inputs, plain = torch.cat([state, goal], dim=-1), copy.deepcopy(actor).cpu()
    # The runtimes compute in fp32, whatever this policy does.
    plain.compute = PLAIN
    found = HEADS[policy.head](plain.float()(inputs))
    exact = HEADS[policy.head](plain.double()(inputs.double()))
    error = float((found - exact).abs().max())
    pairs = {"state": state.numpy(), "goal": goal.numpy(), "action": exact.float().numpy()}
    return pairs, min(max(_LEAST_TOLERANCE, 8 * error), _MOST_TOLERANCE)
