"""Folders of tensors that survive crashes: written aside, synced, renamed, and verified when read.

A checkpoint folder holds `tensors.safetensors` and `meta.json`, which contains checksums of both.
Nothing is pickled, so reading a file from an unknown source runs no code.

    RUN/checkpoints/step_000000115200_update_000006400/   everything that a resumed run needs
    RUN/policies/step_000000115200_update_000006400/      only the actor, small

A run on several ranks writes `tensors.safetensors` with what they share, and beside it
`rank_0000.safetensors` and so on with what each of them has alone.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from torch_crl.system.files import ASIDE, DamagedFileError, check_regular, exists, read_bytes, sync

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
    ranks: tuple[str, ...] = ()
    """Of the files of the ranks."""


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
    if exists(folder) and is_intact(folder):
        return
    begin(folder)
    finish(folder, meta, tensors=write_part(folder, TENSORS, tensors))


def begin(folder: Path) -> None:
    """Make the empty folder, beside the final one, that `write_part` fills."""
    aside = _aside(folder)
    with _written_or_removed(folder):
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)


def write_part(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> str:
    """Write one file of a checkpoint that was begun; returns its checksum for `finish`."""
    path = _aside(folder) / name
    with _written_or_removed(folder):
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        sync(path)
        return _file_sum(path)


def finish(folder: Path, meta: dict[str, Any], *, tensors: str, ranks: Sequence[str] = ()) -> None:
    """Make a checkpoint of the files that were written, given their checksums."""
    aside = _aside(folder)
    with _written_or_removed(folder):
        sums: dict[str, Any] = {"tensors": tensors, "meta": _json_sum(meta)}
        if ranks:
            sums["ranks"] = list(ranks)
        text = json.dumps({"meta": meta, "sha256": sums}, indent=2)
        (aside / META).write_text(text + "\n")
        for path in (aside / META, aside):
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
        sync(folder.parent)


def part_of_rank(rank: int) -> str:
    """Name of the file with what a rank has alone."""
    return f"rank_{rank:04d}.safetensors"


def _aside(folder: Path) -> Path:
    return folder.with_name(ASIDE + folder.name)


@contextmanager
def _written_or_removed(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(_aside(folder), ignore_errors=True)
        raise CheckpointError(f"could not write the checkpoint {folder}: {error}") from error


def load(
    folder: Path,
    *,
    most_bytes: int = _MOST_BYTES,
    rank: int | None = None,
    ranks: int = 1 << 20,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a checkpoint folder.

    With a rank, its own tensors are added to those that all ranks share, where there are such. Of
    so many `ranks`, all of which load the folder, each also checks the files of the ranks that were
    before and are no more.

    Raises CheckpointError if a file is missing, truncated or changed since it was written, or has
    more than `most_bytes`.
    """
    try:
        text = read_bytes(folder / META, most=_MOST_META_BYTES)
        document = fields.read(_Document, text)
        wanted = {TENSORS: document.sha256.tensors}
        if rank is not None:
            sums = document.sha256.ranks
            wanted |= {part_of_rank(at): sums[at] for at in range(rank, len(sums), ranks)}
        for name in wanted:
            check_regular(folder / name, os.stat(folder / name), most=most_bytes)
        found = {name: _file_sum(folder / name) for name in wanted}
        if found != wanted or document.sha256.meta != _json_sum(document.meta):
            raise CheckpointError(f"{folder} is damaged: its checksum does not match")
        tensors = _tensors(folder / TENSORS)
        if rank is not None and (own := part_of_rank(rank)) in wanted:
            tensors |= _tensors(folder / own)
        return tensors, document.meta
    except DamagedFileError as error:
        raise CheckpointError(f"{folder} is damaged: {error}") from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is damaged: {type(error).__name__}: {error}") from error


def load_part(folder: Path, rank: int) -> dict[str, Tensor]:
    """What a rank had alone, of a checkpoint that `load` has checked."""
    return _tensors(folder / part_of_rank(rank))


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


def is_intact(folder: Path, rank: int | None = None) -> bool:
    """Whether `load` would read the folder."""
    try:
        load(folder, rank=rank)
    except CheckpointError:
        return False
    return True


def load_newest(
    folders: Sequence[Path],
    *,
    most_bytes: int = _MOST_BYTES,
    rank: int | None = None,
    ranks: int = 1,
    of_all: Callable[[str], list[str]] = lambda failure: [failure],
) -> tuple[Path, dict[str, Tensor], dict[str, Any], list[str]]:
    """Load the first readable one of these checkpoints: folder, tensors, metadata, failures.

    The failures say why the checkpoints before it could not be read. Raises CheckpointError if
    none can be read.

    Args:
        rank, ranks: see `load`.
        of_all: from a failure of this rank, or "", to those of all ranks: a checkpoint that one of
            them cannot read is passed over by all.
    """
    failures: list[str] = []
    for folder in folders:
        loaded, failure = None, ""
        try:
            loaded = load(folder, most_bytes=most_bytes, rank=rank, ranks=ranks)
        except CheckpointError as error:
            failure = str(error)
        failed = list(dict.fromkeys(filter(None, of_all(failure))))
        if loaded is not None and not failed:
            return folder, *loaded, failures
        failures += failed
    raise CheckpointError("\n  ".join(["no readable checkpoint", *failures]))


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
