"""Writes a policy as files that run without torch, and checks what it has written."""

import hashlib
import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from safetensors.numpy import save as safetensors_bytes

from torch_crl.agent.policy import Policy
from torch_crl.deploy import c_file
from torch_crl.deploy.actor import ExportedActor, actor_of
from torch_crl.deploy.description import as_properties, describe
from torch_crl.errors import UsageError
from torch_crl.system.files import exists

Runtime = Literal["onnx", "numpy", "c"]
RUNTIME_FILES: dict[Runtime, str] = {
    "onnx": "onnx_policy.py",
    "numpy": "numpy_policy.py",
    "c": "policy.c",
}
RUNTIMES = files("torch_crl.deploy.runtimes")
_CHECKED = ("policy.onnx", "policy.safetensors", "policy.bin", "policy.h")


def export(
    policy: Policy, task: str, to: Runtime, folder: Path | str, *, single_input: bool = False
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

    Raises UsageError for networks that the runtimes do not know, if onnx is missing, and for a
    folder that cannot be written or holds another runtime's export.
    """
    if to not in RUNTIME_FILES:
        raise UsageError(f"to must be one of {', '.join(RUNTIME_FILES)}, got {to!r}")
    folder = Path(folder)
    if single_input and to != "onnx":
        raise UsageError(f"--single-input is about the graph of --to onnx, got --to {to}")
    actor = actor_of(policy)
    told = describe(actor, task) | {"runtime": to}
    content = _content(actor, told, to, single_input=single_input)
    name = RUNTIME_FILES[to]
    content[name] = RUNTIMES.joinpath(name).read_bytes()
    content["README.md"] = _readme(actor, told, to, single_input=single_input).encode()
    told |= {"files": {file: sha256(content[file]) for file in content if file in _CHECKED}}
    content["policy.json"] = (json.dumps(signed(told), indent=2) + "\n").encode()
    try:
        _refuse_another_runtime(folder, to)
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in content.items():
            # By a rename, since a program may run on the file that is there.
            aside = folder / f".{file}.new"
            aside.write_bytes(data)
            os.replace(aside, folder / file)
    except OSError as error:
        raise UsageError(f"--out {folder} cannot be written: {error.strerror or error}") from error
    return [folder / file for file in content]


def sha256(data: bytes) -> str:
    """The checksum of a file's content, as policy.json has it."""
    return hashlib.sha256(data).hexdigest()


def signed(told: dict[str, Any]) -> dict[str, Any]:
    """A description with a checksum of itself."""
    rest = {key: value for key, value in told.items() if key != "sha256_of_this"}
    return rest | {"sha256_of_this": sha256(json.dumps(rest, sort_keys=True).encode())}


def _refuse_another_runtime(folder: Path, to: Runtime) -> None:
    others = [name for runtime, name in RUNTIME_FILES.items() if runtime != to]
    if found := [name for name in others if exists(folder / name)]:
        raise UsageError(
            f"{folder} holds an export with {found[0]}; give each runtime an --out of its own"
        )


def _content(
    actor: ExportedActor, told: dict[str, Any], to: Runtime, *, single_input: bool
) -> dict[str, bytes]:
    """The files with the weights."""
    if to == "c":
        return {
            "policy.h": c_file.header_text(told).encode(),
            "policy.bin": c_file.file_bytes(actor, told["task"]),
        }
    if to == "onnx":
        from torch_crl.deploy.onnx_graph import model_of

        model = model_of(actor, as_properties(told, actor), single_input=single_input)
        return {"policy.onnx": model.SerializeToString(deterministic=True)}
    tensors = actor.tensors | {f"test_{name}": pair for name, pair in actor.pairs.items()}
    # The order of the file's numbers is that of safetensors, so the sum is made from its bytes.
    blob = safetensors_bytes(tensors)
    start = 8 + int.from_bytes(blob[:8], "little")
    head = json.dumps([json.loads(blob[8:start]), told], sort_keys=True).encode()
    meta = told | {"sha256": sha256(head + blob[start:])}
    metadata = {"torch_crl": json.dumps(meta, sort_keys=True)}
    return {"policy.safetensors": safetensors_bytes(tensors, metadata)}


def _readme(actor: ExportedActor, told: dict[str, Any], to: Runtime, *, single_input: bool) -> str:
    text = RUNTIMES.joinpath("README.md.in").read_text()
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

and in a program, for one state and goal or for batches:

    from onnx_policy import Policy
    policy = Policy("policy.onnx")
    action = policy(state, goal)     # [S], [G] -> [A] or [N, S], [N, G] -> [N, A]
""",
    "numpy": """`policy.safetensors` holds the weights, and `numpy_policy.py` is all the code:

    python numpy_policy.py       # the self-test

and in a program, for one state and goal or for batches:

    from numpy_policy import Policy
    policy = Policy("policy.safetensors")
    action = policy(state, goal)     # [S], [G] -> [A] or [N, S], [N, G] -> [N, A]
""",
    "c": """`policy.bin` holds the weights; `policy.h` and `policy.c` are all the code, in C99 with
the vectors of GCC (9 or newer) and Clang. Nothing is allocated; the file is mapped into memory.

    cc -O3 -march=native -DPOLICY_MAIN policy.c -lm -o policy     # on ARM: -mcpu=native
    ./policy policy.bin          # the self-test
    ./policy policy.bin 1000     # and the nanoseconds of 1,000 calls

and in a program, in C or C++:

    #include "policy.h"
    policy_t policy;
    float state[POLICY_STATE_SIZE], goal[POLICY_GOAL_SIZE];
    float action[POLICY_CHUNK * POLICY_ACTION_SIZE];
    enum policy_status status = policy_open(&policy, "policy.bin");
    if (status == POLICY_OK) status = policy_self_test(&policy);
    if (status != POLICY_OK) { fputs(policy_message(status), stderr); return 1; }
    policy_act(&policy, state, goal, action);
""",
}
