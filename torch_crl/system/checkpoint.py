"""Folders of tensors that survive crashes: written aside, synced, renamed, and verified when read.

A checkpoint folder holds `tensors.safetensors` and `meta.json`, which contains checksums of both.
Nothing is pickled, so reading a file from an unknown source runs no code.

    RUN/checkpoints/step_000000115200_update_000006400/   everything that a resumed run needs
    RUN/policies/step_000000115200_update_000006400/      only the actor, small
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file, save_file
from torch import Tensor

from torch_crl import fields
from torch_crl.errors import TorchCrlError
from torch_crl.fields import STRICT
from torch_crl.system.files import ASIDE, DamagedFileError, check_regular, read_bytes, sync

TENSORS, META = "tensors.safetensors", "meta.json"
_MOST_META_BYTES = 1 << 20
_MOST_BYTES = 1 << 37


class CheckpointError(TorchCrlError, RuntimeError):
    """A checkpoint could not be written, or none could be read; the message names the path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sums:
    """SHA-256 checksums of the tensors and of the metadata."""

    __pydantic_config__ = STRICT

    tensors: str
    meta: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Document:
    """The content of meta.json."""

    __pydantic_config__ = STRICT

    meta: dict[str, Any]
    sha256: _Sums


def save(folder: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write a checkpoint folder, or leave everything as it was and raise CheckpointError.

    A name stands for one moment of a run, so an intact folder of that name is not written again.
    """
    if folder.exists() and _is_intact(folder):
        return
    aside = folder.with_name(ASIDE + folder.name)
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, aside / TENSORS)
        sums = {"tensors": _file_sum(aside / TENSORS), "meta": _json_sum(meta)}
        text = json.dumps({"meta": meta, "sha256": sums}, indent=2)
        (aside / META).write_text(text + "\n")
        for path in (aside / TENSORS, aside / META, aside):
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(f"could not write the checkpoint {folder}: {error}") from error


def load(
    folder: Path, *, most_bytes: int = _MOST_BYTES
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a checkpoint folder.

    Raises CheckpointError if a file is missing, truncated or changed since it was written, or has
    more than `most_bytes`.
    """
    try:
        text = read_bytes(folder / META, most=_MOST_META_BYTES)
        document = fields.read(_Document, text)
        check_regular(folder / TENSORS, os.stat(folder / TENSORS), most=most_bytes)
        sums = _Sums(tensors=_file_sum(folder / TENSORS), meta=_json_sum(document.meta))
        if document.sha256 != sums:
            raise CheckpointError(f"{folder} is damaged: its checksum does not match")
        return _tensors(folder / TENSORS), document.meta
    except DamagedFileError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


def load_meta(folder: Path) -> dict[str, Any]:
    """The metadata that `load` returns, without reading the tensors. Raises CheckpointError."""
    try:
        return fields.read(_Document, read_bytes(folder / META, most=_MOST_META_BYTES)).meta
    except ValueError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        str(path).encode()
    # safetensors cannot open a path that is not UTF-8.
    except UnicodeEncodeError:
        return load_bytes(path.read_bytes())
    return load_file(path)


def _is_intact(folder: Path) -> bool:
    try:
        load(folder)
    except CheckpointError:
        return False
    return True


def load_newest(
    folders: Sequence[Path], *, most_bytes: int = _MOST_BYTES
) -> tuple[Path, dict[str, Tensor], dict[str, Any], list[CheckpointError]]:
    """Load the first readable one of these checkpoints: folder, tensors, metadata, failures.

    The failures say why the checkpoints before it could not be read. Raises CheckpointError if
    none can be read.
    """
    failures: list[CheckpointError] = []
    for folder in folders:
        try:
            tensors, meta = load(folder, most_bytes=most_bytes)
        except CheckpointError as error:
            failures.append(error)
        else:
            return folder, tensors, meta, failures
    raise CheckpointError("\n  ".join(["no readable checkpoint", *map(str, failures)]))


def check_tensors(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless names, shapes and dtypes of these tensors are the wanted ones."""
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    for name, tensor in tensors.items():
        like = wanted.get(name)
        if like is not None and (tensor.shape, tensor.dtype) != (like.shape, like.dtype):
            problems.append(
                f"{name} is {list(tensor.shape)} of {tensor.dtype}, needed is {list(like.shape)} "
                f"of {like.dtype}"
            )
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError("; ".join(problems[:3]) + more)


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
