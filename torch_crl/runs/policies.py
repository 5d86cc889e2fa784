"""Saving, finding and loading the policies of a run, each in a folder of its own."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from torch_crl import fields
from torch_crl.agent.networks import ResidualTower, mlp, mlp_sizes
from torch_crl.agent.policy import Policy
from torch_crl.agent.senses import MemoryTraces
from torch_crl.agent.sizes import MlpSizes, TowerSizes
from torch_crl.encoders.camera import Camera
from torch_crl.errors import UsageError, shortly
from torch_crl.fields import STRICT, Count
from torch_crl.goals.readers import rebuild_reader
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.finding import located
from torch_crl.system import checkpoint
from torch_crl.system.files import exists
from torch_crl.system.torch_defaults import torch_defaults

_GOALS = "goals/"
"""Prefix of the tensors of what reads goals."""
_CAMERA = "camera/"
"""Prefix of the tensors of a camera."""


def save_policy(policy: Policy, folder: Path, meta: dict[str, Any]) -> None:
    """Write the actor's weights and all that `load_policy` needs to rebuild it.

    Raises CheckpointError.
    """
    checkpoint.save(folder, tensors_of(policy), meta | description_of(policy))


def tensors_of(policy: Policy) -> dict[str, Tensor]:
    """The actor's weights, and the numbers of what reads goals."""
    reader = policy.reader
    read = reader.tensors() if reader is not None else {}
    seen = policy.camera.tensors() if policy.camera is not None else {}
    return (
        policy.actor.state_dict()
        | {_GOALS + name: tensor for name, tensor in read.items()}
        | {_CAMERA + name: tensor for name, tensor in seen.items()}
    )


def description_of(policy: Policy) -> dict[str, Any]:
    """The metadata that `policy_in` needs, beside the actor's weights."""
    reader = policy.reader
    goals = {"goals": reader.description()} if reader is not None else {}
    camera = {"camera": policy.camera.description()} if policy.camera is not None else {}
    return {
        "policy": goals
        | camera
        | {
            "state_size": policy.state_size,
            "goal_size": policy.goal_size,
            "head": policy.head,
            "chunk": policy.chunk,
            "network": _describe(policy.actor),
        }
    }


@torch_defaults()
def load_policy(path: str | Path, *, which: Literal["newest", "best"] = "newest") -> Policy:
    """The policy in a run directory, in one policy folder or at `zoo:NAME`, on the CPU.

    Args:
        which: for a run directory, the newest readable policy, or the one with the best evaluation
            during training.

    Raises CheckpointError if there is none.
    """
    return find_policy(path, which=which).policy


class FoundPolicy(NamedTuple):
    """A policy, its folder, and the reasons why newer ones were passed over."""

    policy: Policy
    folder: Path
    passed_over: list[str]


def find_policy(path: str | Path, *, which: Literal["newest", "best"] = "newest") -> FoundPolicy:
    """`load_policy`, with the folder and the newer policies that could not be read."""
    if not isinstance(path, str | os.PathLike):
        raise UsageError(f"a policy is named by a path or zoo:NAME, got {shortly(path)}")
    folder = Path(os.path.expanduser(located(path)))
    failures: list[str] = []
    if exists(folder / checkpoint.META):
        if which == "best":
            raise checkpoint.CheckpointError(
                f"{folder} is one policy, and the best one is chosen from a run directory"
            )
        tensors, meta = checkpoint.load(folder)
    elif not exists(folder):
        raise checkpoint.CheckpointError(
            f"{folder} does not exist; give a run directory or one policy of it"
        )
    else:
        run = RunDirectory(folder)
        saved = run.best_policies if which == "best" else run.saved_policies
        if not saved:
            raise checkpoint.CheckpointError(
                f"{folder} holds neither a policy nor a run with a {which} one; give a run "
                f"directory or one policy of it{_instead(folder, which)}"
            )
        folder, tensors, meta, failures = checkpoint.load_newest(saved)
    return FoundPolicy(policy_in(folder, tensors, meta), folder, failures)


def _instead(folder: Path, which: Literal["newest", "best"]) -> str:
    """What was meant by the `policies` folder of a run, if it is one."""
    run = RunDirectory(folder.absolute().parent)
    saved = run.best_policies if which == "best" else run.saved_policies
    if folder.absolute() != run.policies.absolute() or not saved:
        return ""
    return f", such as {folder.parent} or {folder / saved[0].name}"


def policy_in(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> Policy:
    """The policy from the tensors and metadata that `checkpoint.load` read in a folder.

    Raises CheckpointError, which names the folder, if they are not those of a policy.
    """
    if "policy" not in meta:
        raise checkpoint.CheckpointError(
            f"{folder} holds a checkpoint and no policy; give the run directory instead"
        )
    try:
        return _rebuild(fields.read(_Description, json.dumps(meta["policy"])), tensors)
    # torch raises RuntimeError for sizes whose product overflows.
    except (ValueError, RuntimeError) as error:
        raise checkpoint.CheckpointError(f"{folder} holds no policy: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class _Description:
    """The metadata from which a policy is rebuilt, beside its weights."""

    __pydantic_config__ = STRICT

    state_size: Count
    goal_size: Count
    head: Literal["squashed_gaussian", "tanh", "clip"]
    chunk: Count = 1
    """Number of actions that the actor decides at once; files of before chunks lack it."""
    goals: dict[str, Any] = field(default_factory=dict)
    """What `rebuild_reader` takes; empty for a policy whose goals are numbers of the state."""
    camera: dict[str, Any] = field(default_factory=dict)
    """What `Camera.rebuild` takes; empty for a policy that is given states."""
    network: dict[str, Any]
    """`kind` is `tower` or `mlp`; all else are the fields of `TowerSizes` or `MlpSizes`."""


def _describe(actor: nn.Module) -> dict[str, Any]:
    if isinstance(actor, ResidualTower):
        return {"kind": "tower", **asdict(actor.sizes)}
    assert isinstance(actor, nn.Sequential)
    return {"kind": "mlp", **asdict(mlp_sizes(actor))}


def _rebuild(described: _Description, tensors: dict[str, Tensor]) -> Policy:
    """The policy with these weights. Raises ValueError if they do not fit its description."""
    # On the meta device, without memory: a description may ask for more than the machine has.
    with torch.device("meta"):
        actor, input_size = _build(described.network)
    read = checkpoint.part_of(tensors, _GOALS.removesuffix("/")) if described.goals else {}
    seen = checkpoint.part_of(tensors, _CAMERA.removesuffix("/"))
    camera = Camera.rebuild(described.camera, seen) if described.camera else None
    others = (_GOALS, *([_CAMERA] if camera else []))
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(others)}
    reader = rebuild_reader(described.goals, read) if described.goals else None
    if reader is not None and reader.goal_size != described.goal_size:
        raise ValueError(f"its goals have {reader.goal_size} numbers, not {described.goal_size}")
    checkpoint.check_tensors(tensors, actor.state_dict())
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} has numbers that are not finite")
    actor.load_state_dict(tensors, assign=True)
    inputs = described.state_size + (reader.size if reader else described.goal_size)
    if input_size != inputs:
        raise ValueError(f"its network takes {input_size} numbers, a state and a goal {inputs}")
    outputs = tensors[next(reversed(actor.state_dict()))].shape[0]
    per_action = 2 if described.head == "squashed_gaussian" else 1
    if outputs % (per_action * described.chunk):
        raise ValueError(
            f"its network has {outputs} outputs, which are not {described.chunk} actions"
        )
    if camera is not None:
        takes = MemoryTraces.size(camera.size, outputs // (per_action * described.chunk))
        if described.state_size != takes:
            raise ValueError(
                f"its states have {described.state_size} numbers, and of what its camera shows "
                f"{takes} are made; a student of an earlier version is to be distilled again"
            )
    return Policy(
        actor,
        state_size=described.state_size,
        goal_size=described.goal_size,
        head=described.head,
        chunk=described.chunk,
        reader=reader,
        camera=camera,
    )


def _build(network: dict[str, Any]) -> tuple[nn.Module, int]:
    """A network of these sizes, and the length of its input. Raises ValueError for wrong sizes."""
    kind = network.get("kind")
    sizes = json.dumps({name: size for name, size in network.items() if name != "kind"})
    if kind == "tower":
        tower = fields.read(TowerSizes, sizes)
        return ResidualTower(tower, generator=None), tower.input_size
    if kind == "mlp":
        layers = fields.read(MlpSizes, sizes)
        return mlp(layers), layers.layers[0]
    raise ValueError(f"its network must be of the kind 'tower' or 'mlp', got {kind!r}")
