"""Folders of tensors that survive anything: written aside, synced, renamed, and checked when read.

A checkpoint folder holds `tensors.safetensors` and `meta.json`; the latter carries a checksum of
both. Nothing is pickled, so a file from a stranger runs no code.

    RUN/checkpoints/step_000000115200_update_000006400/   everything a run needs to go on
    RUN/policies/step_000000115200_update_000006400/      the actor alone, small
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from torch_crl.errors import TorchCrlError

TENSORS, META = "tensors.safetensors", "meta.json"
_ASIDE = ".writing-"


class CheckpointError(TorchCrlError, RuntimeError):
    """A checkpoint could not be written, or none could be read; the message names the path."""


def step_folder(parent: Path, env_steps: int, updates: int) -> Path:
    """Where the checkpoint of that moment lives; names sort by time."""
    return parent / f"step_{env_steps:012d}_update_{updates:09d}"


def save(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write a checkpoint folder, or leave everything as it was and raise CheckpointError.

    A name stands for one moment of a run, so an intact folder of that name is left alone.
    """
    if folder.exists() and _is_intact(folder):
        return
    aside = folder.with_name(_ASIDE + folder.name)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / TENSORS)
        sums = {"tensors": _file_sum(aside / TENSORS), "meta": _json_sum(meta)}
        text = json.dumps({"meta": meta, "sha256": sums}, indent=2)
        (aside / META).write_text(text + "\n")
        for path in (aside / TENSORS, aside / META, aside):
            _sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        _sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"could not write the checkpoint {folder}: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a small file that is there whole or not at all."""
    aside = path.with_name(_ASIDE + path.name)
    aside.write_text(text, encoding="utf-8")
    _sync(aside)
    aside.rename(path)
    _sync(path.parent)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and meta of a checkpoint folder.

    Raises CheckpointError if a file is missing, truncated or changed since it was written.
    """
    try:
        document = json.loads((folder / META).read_text())
        meta, sums = document["meta"], document["sha256"]
        intact = sums == {"tensors": _file_sum(folder / TENSORS), "meta": _json_sum(meta)}
        if not intact:
            raise CheckpointError(f"{folder} is damaged: its checksum does not match")
        return load_file(folder / TENSORS), meta
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


def _is_intact(folder: Path) -> bool:
    try:
        load(folder)
    except CheckpointError:
        return False
    return True


def folders(parent: Path) -> list[Path]:
    """Finished checkpoint folders, newest first."""
    return sorted(parent.glob("step_*"), reverse=True)


def load_newest(
    parent: Path,
) -> tuple[Path, dict[str, Tensor], dict[str, Any], list[CheckpointError]]:
    """The newest readable checkpoint below `parent`, and why newer ones were passed over.

    Raises CheckpointError if there is none.
    """
    failures: list[CheckpointError] = []
    for folder in folders(parent):
        try:
            tensors, meta = load(folder)
        except CheckpointError as error:
            failures.append(error)
        else:
            return folder, tensors, meta, failures
    reasons = "".join(f"\n  {failure}" for failure in failures)
    raise CheckpointError(f"no readable checkpoint in {parent}{reasons}")


def prune(parent: Path, *, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what a killed run left half written."""
    for folder in [*folders(parent)[keep:], *parent.glob(f"{_ASIDE}*")]:
        shutil.rmtree(folder, ignore_errors=True)


def flatten(parts: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """{part: {name: tensor}} to {part/name: tensor}."""
    return {
        f"{part}/{name}": tensor for part, named in parts.items() for name, tensor in named.items()
    }


def part_of(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    """The inverse of `flatten` for one part."""
    prefix = f"{part}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _file_sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json_sum(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
