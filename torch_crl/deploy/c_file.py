"""An actor as the two files that its C runtime reads: `policy.h` and `policy.bin`."""

import re
import struct
import zlib
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import numpy as np

from torch_crl.deploy.actor import ExportedActor, Floats

_LANES = 8
"""Rows of numbers are filled up to a multiple of this, so that the code needs no remainders."""
_MAGIC = 0x4C524354
_VERSIONS = {"published": 1, "pre_norm": 2}
"""A runtime of before `pre_norm` refuses files of it."""


def header_text(told: Mapping[str, Any]) -> str:
    """`policy.h`, with the sizes and the task of a description.

    Raises KeyError, TypeError or ValueError for what is no description.
    """
    text = files("torch_crl.deploy.runtimes").joinpath("policy.h.in").read_text()
    names = ("state_size", "goal_size", "action_size", "chunk", "width")
    # Whole numbers and plain letters only: the description may be a stranger's.
    state, goal, action, chunk, width = (int(told[name]) for name in names)
    stack = 4 * (_padded(state + goal) + 3 * _padded(width)) + 200
    values = {
        "TASK": re.sub(r"[^\w:./-]", "?", told["task"]),
        "STATE": state,
        "GOAL": goal,
        "ACTION": action,
        "CHUNK": chunk,
        "WIDTH": width,
        "HASH": _fnv(told["task"].encode()),
        "STACK": stack,
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def file_bytes(actor: ExportedActor, task: str) -> bytes:
    """`policy.bin`: sizes and checksum in 128 bytes, all weights, the pairs of the self-test."""
    numbers = np.concatenate([part.ravel() for part in _parts(actor)]).astype("<f4")
    before = struct.pack("<2I", _MAGIC, _VERSIONS[actor.block])
    after = struct.pack(
        "<11IfI32sIf24x",
        _fnv(task.encode()),
        *(actor.state_size, actor.goal_size, actor.action_size, actor.chunk, actor.width),
        *(len(actor.tensors["weight"]), actor.depth),
        *(actor.activation == "relu", actor.head == "clip", len(actor.pairs["state"])),
        actor.branch_scale,
        len(numbers),
        bytes.fromhex(actor.sha256),
        actor.block == "pre_norm",
        actor.tolerance,
    )
    rest = after + numbers.tobytes()
    return before + struct.pack("<I", zlib.crc32(rest, zlib.crc32(before))) + rest


def _parts(actor: ExportedActor) -> list[Floats]:
    t = actor.tensors
    names = ("weight", "bias", "ln_weight", "ln_bias")
    parts = [_filled(part) for part in actor.first_layer]
    for layer in range(len(t["weight"])):
        parts += [_filled(t[name][layer]) for name in names]
    parts += [_filled(t["output_weight"]), t["output_bias"]]
    pairs = actor.pairs
    return [*parts, np.concatenate([pairs["state"], pairs["goal"], pairs["action"]], axis=1)]


def _padded(length: int) -> int:
    return -(-length // _LANES) * _LANES


def _filled(x: Floats) -> Floats:
    """With zeros at the end of each row."""
    missing = _padded(x.shape[-1]) - x.shape[-1]
    return np.pad(x, [*[(0, 0)] * (x.ndim - 1), (0, missing)])


def _fnv(text: bytes) -> int:
    value = 2166136261
    for byte in text:
        value = ((value ^ byte) * 16777619) % 2**32
    return value
