"""An actor as the two files that its C runtime reads: `policy.h` and `policy.bin`."""

import struct
from importlib.resources import files

import numpy as np

from torch_crl.deploy.actor import ExportedActor, Floats

_LANES = 8
"""Rows of numbers are filled up to a multiple of this, so that the code needs no remainders."""
_MAGIC, _VERSION = 0x4C524354, 1


def header_text(actor: ExportedActor, task: str) -> str:
    """`policy.h`, with the sizes of the actor."""
    text = files("torch_crl.deploy.runtimes").joinpath("policy.h.in").read_text()
    inputs = actor.state_size + actor.goal_size
    stack = 4 * (_padded(inputs) + 3 * _padded(actor.width)) + 200
    values = {
        "TASK": task,
        "STATE": actor.state_size,
        "GOAL": actor.goal_size,
        "ACTION": actor.action_size,
        "CHUNK": actor.chunk,
        "WIDTH": actor.width,
        "HASH": _fnv(task.encode()),
        "STACK": stack,
    }
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text


def file_bytes(actor: ExportedActor, task: str) -> bytes:
    """`policy.bin`: sizes and checksum in 64 bytes, all weights, and the pairs of the self-test."""
    numbers = np.concatenate([part.ravel() for part in _parts(actor)]).astype("<f4")
    header = struct.pack(
        "<13If2I",
        *(_MAGIC, _VERSION, _fnv(task.encode())),
        *(actor.state_size, actor.goal_size, actor.action_size, actor.chunk, actor.width),
        *(len(actor.tensors["weight"]), actor.depth),
        *(actor.activation == "relu", actor.head == "clip", len(actor.pairs["state"])),
        actor.branch_scale,
        len(numbers),
        _checksum(numbers.view("<u4")),
    )
    return header + numbers.tobytes()


def _parts(actor: ExportedActor) -> list[Floats]:
    t = actor.tensors
    names = ("weight", "bias", "ln_weight", "ln_bias")
    parts = [_filled(t[f"input_{name}"]) for name in names]
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


def _checksum(words: "np.ndarray[tuple[int], np.dtype[np.uint32]]") -> int:
    """As the runtime computes it word by word: a += word, b += a, all modulo 2^32."""
    wide = words.astype(np.uint64)
    first = int(wide.sum()) % 2**32
    second = int((wide * np.arange(len(wide), 0, -1, dtype=np.uint64)).sum()) % 2**32
    return first ^ (second * 0x9E3779B1) % 2**32
