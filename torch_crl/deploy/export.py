"""Writes a policy as files that run without torch, and checks what it has written."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from safetensors.numpy import save as safetensors_bytes

from torch_crl.agent.policy import Policy
from torch_crl.deploy import c_file
from torch_crl.deploy.actor import ExportedActor, actor_of
from torch_crl.deploy.description import as_properties, describe
from torch_crl.errors import UsageError

Runtime = Literal["onnx", "numpy", "c"]
_COPIED = {"onnx": "onnx_policy.py", "numpy": "numpy_policy.py", "c": "policy.c"}
_RUNTIMES = files("torch_crl.deploy.runtimes")


def export(
    policy: Policy, task: str, to: Runtime, folder: Path, *, single_input: bool = False
) -> list[Path]:
    """Write the deterministic policy of a task into a folder, which is made; returns the files.

    Two exports of one policy are equal byte by byte.

    Args:
        policy: of residual towers.
        task: its name; it gives the policy's files control period, actuators and names.
        to: `onnx` writes a graph of opset 17; `numpy` weights for a module of one file; `c` weights
            for a source without dependencies, and a header with the sizes.
        folder: where to; files of the same names are written over.
        single_input: of ONNX: the input `obs` is concat(state, goal), and the output `actions`.

    Raises UsageError for networks that the runtimes do not know, or if onnx is missing.
    """
    if single_input and to != "onnx":
        raise UsageError(f"--single-input is about the graph of --to onnx, got --to {to}")
    actor = actor_of(policy)
    told = describe(actor, task)
    content = _content(actor, told, to, single_input=single_input)
    folder.mkdir(parents=True, exist_ok=True)
    name = _COPIED[to]
    content[name] = _RUNTIMES.joinpath(name).read_bytes()
    if to == "onnx":
        told |= {"sha256_of_onnx": hashlib.sha256(content["policy.onnx"]).hexdigest()}
    content["policy.json"] = (json.dumps(told, indent=2) + "\n").encode()
    content["README.md"] = _readme(actor, told, to, single_input=single_input).encode()
    for file, data in content.items():
        (folder / file).write_bytes(data)
    return [folder / file for file in content]


def _content(
    actor: ExportedActor, told: dict[str, Any], to: Runtime, *, single_input: bool
) -> dict[str, bytes]:
    """The files with the weights."""
    if to == "c":
        return {
            "policy.h": c_file.header_text(actor, told["task"]).encode(),
            "policy.bin": c_file.file_bytes(actor, told["task"]),
        }
    if to == "onnx":
        from torch_crl.deploy.onnx_graph import model_of

        model = model_of(actor, as_properties(told, actor), single_input=single_input)
        return {"policy.onnx": model.SerializeToString(deterministic=True)}
    tensors = actor.tensors | {f"test_{name}": pair for name, pair in actor.pairs.items()}
    # The order of the file's numbers is that of safetensors, so the sum is made from its bytes.
    blob = safetensors_bytes(tensors)
    data = blob[8 + int.from_bytes(blob[:8], "little") :]
    meta = told | {"sha256": hashlib.sha256(data).hexdigest()}
    metadata = {"torch_crl": json.dumps(meta, sort_keys=True)}
    return {"policy.safetensors": safetensors_bytes(tensors, metadata)}


def _readme(actor: ExportedActor, told: dict[str, Any], to: Runtime, *, single_input: bool) -> str:
    text = _RUNTIMES.joinpath("README.md.in").read_text()
    usage = _USAGE[to]
    if single_input:
        usage += "\nThe graph's input is `obs` = concat(state, goal), its output `actions`.\n"
    chunk = ""
    if actor.chunk > 1:
        chunk = (
            f"\nThe policy decides {actor.chunk} actions at once, to be carried out one after the "
            "other at successive control steps. Keeping them, and how many have been carried out, "
            "is up to the program that calls it; it has to ask anew when an episode begins.\n"
        )
    period = told.get("control_period")
    values = {
        "TASK": told["task"],
        "STATE": str(actor.state_size),
        "GOAL": str(actor.goal_size),
        "ACTION": str(actor.action_size),
        "PERIOD": f" every {period:g} s" if period else "",
        "CONTROL": told.get("control", "the env's own"),
        "CHUNK": chunk,
        "USAGE": usage,
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", value)
    return text


_USAGE = {
    "onnx": """`policy.onnx` (opset 17, any number of rows) runs in ONNX Runtime 1.12 and newer:

    pip install onnxruntime
    python onnx_policy.py        # the self-test

    from onnx_policy import Policy
    action = Policy("policy.onnx")(state, goal)     # [N, S], [N, G] -> [N, A]
""",
    "numpy": """`policy.safetensors` holds the weights, and `numpy_policy.py` is all the code:

    python numpy_policy.py       # the self-test

    from numpy_policy import Policy
    action = Policy("policy.safetensors")(state, goal)     # [S], [G] -> [A], or batches
""",
    "c": """`policy.bin` holds the weights; `policy.h` and `policy.c` are all the code, in C99
with the vectors of GCC and Clang. Nothing is allocated; the file is mapped into memory.

    cc -O3 -march=native -DPOLICY_MAIN policy.c -lm -o policy
    ./policy policy.bin          # the self-test
    ./policy policy.bin 1000     # and the nanoseconds of 1,000 calls
""",
}
