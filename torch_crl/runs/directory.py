"""A run directory: where everything lies, who may write there, and how it is read.

    RUN/recipe.json        every setting
    RUN/machine.json       when and on what the run was started, and its own task's module
    RUN/metrics.jsonl      a record a line: `train` after each collection, `evaluation`
    RUN/tensorboard/       the same for TensorBoard
    RUN/wandb/             the same for Weights & Biases, if it was asked for
    RUN/checkpoints/       the newest states, each a folder of tensors
    RUN/policies/          the actor at each checkpoint, and the best by evaluation
    RUN/learning_curve.png
    RUN/result.json        the run is finished; its last evaluation
    .RUN.lock              beside it, held by the process that writes; survives --overwrite

A run moves on by commits: the policy is written first and the checkpoint after it, so that a
checkpoint, which appears by one rename, stands for both. Whatever is newer than the checkpoint that
a run resumes from was never committed, and is written again.
"""

import errno
import itertools
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from torch_crl import fields
from torch_crl.errors import TorchCrlError
from torch_crl.recipe.record import Recipe
from torch_crl.runs.lock import holder, is_locked, locked
from torch_crl.runs.records import (
    MachineFile,
    ResultFile,
    parse_record,
    read_file,
    read_recipe,
)
from torch_crl.system.files import (
    ASIDE,
    DamagedFileError,
    make_folder,
    read_bytes,
    read_end,
    remove,
    sync,
    write_text,
)

_DELETING = ".deleting-"
_BEST = "best_"
_TAIL_BYTES = 4096


class RunDirectoryError(TorchCrlError, ValueError):
    """A folder is no run directory, or one that cannot be used like this; the message says why."""


class Moment(NamedTuple):
    """A moment of a run; names of folders made of it sort by time."""

    env_steps: int
    updates: int

    @property
    def name(self) -> str:
        """Of a folder that holds what a run was at this moment."""
        return f"step_{self.env_steps:012d}_update_{self.updates:09d}"

    @staticmethod
    def of(folder: Path) -> "Moment | None":
        """The moment that a folder is named after; None for other folders."""
        parts = folder.name.removeprefix(_BEST).split("_")
        if len(parts) != 4 or parts[::2] != ["step", "update"]:
            return None
        if not all(part.isdecimal() and part.isascii() for part in parts[1::2]):
            return None
        return Moment(int(parts[1]), int(parts[3]))


class RunDirectory:
    """One run's folder. Nothing is read or written until it is asked for."""

    def __init__(self, path: str | Path) -> None:
        """The folder need not exist; `~` is the user's home, and a link is what it leads to."""
        given = Path(os.path.expanduser(path))
        # The present folder has no name, and a link would be another name of one directory.
        plain = given.name not in ("", "..") and not given.is_symlink()
        self.path = given if plain else Path(os.path.realpath(given))
        self.recipe = self.path / "recipe.json"
        self.machine = self.path / "machine.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.tensorboard = self.path / "tensorboard"
        self.learning_curve = self.path / "learning_curve.png"
        self.checkpoints = self.path / "checkpoints"
        self.policies = self.path / "policies"
        self._is_owned = False

    def __str__(self) -> str:
        """The path."""
        return str(self.path)

    @cached_property
    def lock(self) -> Path:
        """The file beside the directory that its writer locks."""
        real = Path(os.path.realpath(self.path))
        return real.with_name(f".{real.name}.lock")

    @property
    def _written(self) -> list[Path]:
        """What a run writes into, or over, while it goes on."""
        inside = [self.checkpoints, self.policies, self.tensorboard]
        return [*inside, self.recipe, self.metrics, self.result, self.learning_curve]

    @property
    def log(self) -> Path:
        """The file beside the directory that takes what a sweep's worker prints."""
        return self.path.with_name(self.path.name + ".log")

    @property
    def holds_run(self) -> bool:
        """Whether a run was begun here."""
        return self.recipe.exists()

    @property
    def is_finished(self) -> bool:
        """Whether training came to its end here."""
        return self.result.exists()

    @property
    def is_occupied(self) -> bool:
        """Whether something lies here, a run or not."""
        if not self.path.is_dir():
            return self.path.exists()
        return not self._is_begun and any(self.path.iterdir())

    @property
    def _is_begun(self) -> bool:
        """Whether only that lies here which a process that was killed in `begin` has left."""
        empty = (self.checkpoints, self.policies)
        return all(
            entry in (self.machine, self.metrics)
            or entry.name.startswith(ASIDE)
            or (entry in empty and not any(entry.iterdir()))
            for entry in self.path.iterdir()
        )

    # Who may write.

    def problems(self, *, resume: bool, overwrite: bool) -> list[str]:
        """Why a run cannot be started in, or continued from, this directory."""
        if resume and overwrite:
            return ["--resume and --overwrite exclude each other"]
        if resume and not self.holds_run:
            return [f"--resume: {self} holds no run (there is no recipe.json in it)"]
        occupied = self.is_occupied
        if occupied and not (resume or overwrite):
            return [
                f"run directory {self} exists; --resume continues the run in it, --overwrite "
                "deletes it, --run-dir names another"
            ]
        if overwrite and occupied and not self.holds_run:
            return [f"--overwrite: {self} holds something that is not a run; it is left alone"]
        links = [entry for entry in self._written if resume and entry.is_symlink()]
        if links:
            return [
                f"--resume: {links[0]} is a link, and a run is written in its own folder alone; "
                "put what it leads to in its place"
            ]
        if not self._is_owned and is_locked(self.lock):
            return [
                f"run directory {self} is in use by {holder(self.lock)}; wait for it or stop it, "
                "or name another with --run-dir"
            ]
        existing = next(path for path in (self.path, *self.lock.parents) if path.exists())
        try:
            with tempfile.TemporaryFile(dir=existing):
                return []
        except OSError as error:
            return [f"run directory {self} cannot be written: {error.strerror} in {existing}"]

    @contextmanager
    def owned(self, *, wait: Callable[[str], object] | None = None) -> Iterator[list[str]]:
        """Be the only process that writes here. Yields lines to tell the user.

        `wait` is told whom it waits for; without it a directory in use raises DirectoryInUseError.
        An owner may enter again.
        """
        if self._is_owned:
            yield []
            return
        make_folder(self.lock.parent)
        with locked(self.lock, f"run directory {self}", wait=wait) as note:
            self._is_owned = True
            try:
                yield [note] if note else []
            finally:
                self._is_owned = False

    # Writing: for the owner alone.

    def begin(self, recipe: Recipe, *, machine: Mapping[str, Any]) -> None:
        """Begin an empty run in the place of what is here.

        It appears whole, by a rename, and all that resume needs is then safe from a power cut. A
        folder that is there and empty, which may be a mount point, is filled instead; the recipe
        comes last.
        """
        self.remove()
        new = self
        if not self.path.exists():
            new = RunDirectory(self.path.with_name(ASIDE + self.path.name))
            remove(new.path)
        for folder in (new.checkpoints, new.policies):
            make_folder(folder)
        write_text(new.machine, json.dumps(machine, indent=2) + "\n")
        write_text(new.metrics, "")
        write_text(new.recipe, recipe.to_json())
        if new is not self:
            new.path.rename(self.path)
            sync(self.path.parent)

    def extend(self, recipe: Recipe) -> None:
        """Let a run go on to the end of a longer recipe."""
        self.result.unlink(missing_ok=True)
        sync(self.path)
        write_text(self.recipe, recipe.to_json())

    def finish(self, result: Mapping[str, Any]) -> None:
        """The run has come to its end."""
        write_text(self.result, json.dumps(result, indent=2) + "\n")

    def remove(self) -> None:
        """Delete the run: by a rename, so that a kill leaves all of it or none.

        Where that cannot be, for a mount point or the present folder, its recipe goes last.
        """
        aside = self.path.with_name(_DELETING + self.path.name)
        remove(aside)
        if not self.is_occupied:
            return
        try:
            if self.path.samefile(os.curdir):
                raise OSError(errno.EBUSY, "the present folder")
            self.path.rename(aside)
        except OSError:
            entries = sorted(self.path.iterdir(), key=lambda entry: entry == self.recipe)
            for entry in entries:
                remove(entry)
        else:
            sync(self.path.parent)
            remove(aside)

    def go_back_to(self, moment: Moment) -> None:
        """Forget what is newer than a checkpoint, and what a killed process left half written."""
        for parent in (self.path, self.checkpoints, self.policies):
            for left in parent.glob(f"{ASIDE}*"):
                remove(left)
        for policy in [*folders(self.policies), *folders(self.policies, _BEST)]:
            written = Moment.of(policy)
            if written is not None and written > moment:
                remove(policy)

    def best_policy(self, moment: Moment) -> Path:
        """Where the policy lives that was the best one when it was evaluated at this moment."""
        return self.policies / (_BEST + moment.name)

    def prune(self, *, checkpoints: int) -> None:
        """Keep the newest checkpoints, and of the best policies the newest, which is the best."""
        for folder in [*folders(self.checkpoints)[checkpoints:], *self.best_policies[1:]]:
            remove(folder)

    # Reading: by anybody, from anybody.

    @property
    def saved_checkpoints(self) -> list[Path]:
        """Folders of checkpoints, newest first."""
        return folders(self.checkpoints)

    @property
    def saved_policies(self) -> list[Path]:
        """Folders of policies, newest first."""
        return folders(self.policies)

    @property
    def best_policies(self) -> list[Path]:
        """Folders of policies that were the best so far, the best first."""
        return folders(self.policies, _BEST)

    def read_recipe(self) -> Recipe:
        """Raises RunDirectoryError if there is none, DamagedFileError if it cannot be read."""
        if not self.holds_run:
            raise RunDirectoryError(f"{self} holds no run (there is no recipe.json in it)")
        return read_recipe(self.recipe)

    def read_result(self) -> ResultFile:
        """Raises DamagedFileError."""
        return read_file(self.result, lambda text: fields.read(ResultFile, text))

    def read_machine(self) -> MachineFile:
        """Empty for a run that has none, or a damaged one: nothing depends on it."""
        try:
            return read_file(self.machine, lambda text: fields.read(MachineFile, text))
        except DamagedFileError:
            return MachineFile()

    def read_metrics(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind, `train` or `evaluation`, in metrics.jsonl.

        Raises DamagedFileError, naming the line, if one of either kind cannot be read.
        """
        records, damaged = self.scan_metrics()
        if damaged:
            raise DamagedFileError(f"{self.metrics} cannot be read: {damaged[0]}")
        return [record for record in records if record["kind"] == kind]

    def scan_metrics(self) -> tuple[list[dict[str, Any]], list[str]]:
        """All records that can be read, and why the other lines cannot."""
        if not self.metrics.exists():
            return [], []
        records, damaged = [], []
        # A killed run may leave half a line at the end; what follows the last newline is dropped.
        lines = read_bytes(self.metrics).split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                records.append(parse_record(line))
            except ValueError as error:
                damaged.append(f"line {number}: {error}")
        return records, damaged

    @property
    def logged_env_steps(self) -> int:
        """Env steps of the newest record that can be read; 0 if there is none."""
        with suppress(DamagedFileError):
            # What follows the last newline is half a line, and so may be the first.
            for line in reversed(read_end(self.metrics, most=_TAIL_BYTES).split(b"\n")[:-1]):
                with suppress(ValueError):
                    return int(parse_record(line)["env_steps"])
        return 0

    def drop_metrics_after(self, moment: Moment) -> list[str]:
        """Forget records that will be written again; returns a line for what could not be read."""
        records, damaged = self.scan_metrics()
        kept = [
            record
            for record in records
            if record["env_steps"] <= moment.env_steps and record["updates"] <= moment.updates
        ]
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in kept))
        return [f"{self.metrics}: {line}; left out" for line in damaged]


def default_run_dir(recipe: Recipe) -> Path:
    """`runs/TASK_seedN_DATE-TIME`, with a number behind it where that exists."""
    task = re.sub("[:/]", "_", recipe.task.name)
    name = f"{task}_seed{recipe.system.seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    names = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
    return next(path for path in map(Path("runs").joinpath, names) if not path.exists())


def run_directory_of(path: Path) -> RunDirectory:
    """The run directory itself, or the one that a policy folder in it belongs to.

    Raises RunDirectoryError if the path is neither.
    """
    # Unlike `Path.resolve` this answers where links lead in a circle.
    path = Path(os.path.realpath(os.path.expanduser(path)))
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "recipe.json").exists():
            return RunDirectory(folder)
    raise RunDirectoryError(f"{path} is no run directory (there is no recipe.json in it)")


def find_run_directories(folder: Path) -> Iterator[Path]:
    """All run directories at any level of a folder. A link may be one, and is followed no further:
    it may lead back up.
    """
    if (folder / "recipe.json").exists():
        yield folder
    elif folder.is_dir():
        for below in folder.iterdir():
            if below.is_symlink() and not (below / "recipe.json").exists():
                continue
            if below.is_dir() and not below.name.startswith("."):
                yield from find_run_directories(below)


def folders(parent: Path, prefix: str = "") -> list[Path]:
    """Folders that are named after moments of a run, the newest first."""
    found = [folder for folder in parent.glob(f"{prefix}step_*") if Moment.of(folder)]
    return sorted(found, key=lambda folder: folder.name, reverse=True)
