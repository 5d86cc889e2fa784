"""A run directory: its files, the lock that only one process holds, reading and writing.

    RUN/recipe.json        every setting
    RUN/machine.json       time and machine of the start, and the module of a task of the user's own
    RUN/metrics.jsonl      one record per line: `train` after each collection, and `evaluation`
    RUN/tensorboard/       the same records for TensorBoard
    RUN/wandb/             the same records for Weights & Biases, if --wandb was given
    RUN/checkpoints/       the newest checkpoints, each a folder of tensors
    RUN/policies/          the actor at each checkpoint, and the best one by evaluation
    RUN/learning_curve.png
    RUN/result.json        the last evaluation; exists when the run is finished
    .RUN.lock              beside RUN, locked by the process that writes; survives --overwrite

A run progresses by commits: it writes the policy first and the checkpoint after it, so that a
checkpoint, which appears by one rename, confirms both. Whatever is newer than the checkpoint that
a run resumes from was never committed, and is written again.
"""

import errno
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, get_args

from torch_crl import fields
from torch_crl.errors import TorchCrlError, UsageError
from torch_crl.recipe.record import Recipe
from torch_crl.runs.lock import holder, is_locked, locked
from torch_crl.runs.records import (
    Kind,
    MachineFile,
    ResultFile,
    parse_record,
    read_file,
    read_recipe,
)
from torch_crl.system.files import (
    ASIDE,
    DamagedFileError,
    entries,
    exists,
    is_folder,
    make_folder,
    read_end,
    read_lines,
    remove,
    sync,
    why_unwritable,
    write_parts,
    write_text,
)

_DELETING = ".deleting-"
_BEST = "best_"
_TAIL_BYTES = 4096
_LINE_BYTES = 1 << 20


class RunDirectoryError(TorchCrlError, ValueError):
    """A folder is not a run directory, or cannot be used as asked; the message says why."""


class Moment(NamedTuple):
    """A moment of a run; folders that are named after moments sort by time."""

    env_steps: int
    updates: int

    @property
    def name(self) -> str:
        """Name of a folder with the state of a run at this moment."""
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
    """One run's folder. Creating this object reads and writes nothing."""

    def __init__(self, path: str | Path) -> None:
        """The folder need not exist; `~` is the user's home, and a link stands for its target."""
        given = Path(os.path.expanduser(path))
        # "." has no name, and a link would be a second name of the same directory.
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
        """The file beside the directory that the writing process locks."""
        real = Path(os.path.realpath(self.path))
        return real.with_name(f".{real.name}.lock")

    @property
    def _written(self) -> list[Path]:
        """Files and folders that a run in progress writes or replaces."""
        inside = [self.checkpoints, self.policies, self.tensorboard]
        return [*inside, self.recipe, self.metrics, self.result, self.learning_curve]

    @property
    def log(self) -> Path:
        """The file beside the directory with the output of a sweep's worker."""
        return self.path.with_name(self.path.name + ".log")

    @property
    def holds_run(self) -> bool:
        """Whether a run was begun here."""
        return exists(self.recipe)

    @property
    def is_finished(self) -> bool:
        """Whether the run here has reached its end."""
        return exists(self.result)

    @property
    def is_occupied(self) -> bool:
        """Whether the folder has contents, of a run or not, or the path is a file."""
        if not is_folder(self.path):
            return exists(self.path)
        return not self._is_begun and any(self.path.iterdir())

    @property
    def _is_begun(self) -> bool:
        """Whether the folder holds only what a process killed in `begin` leaves behind."""
        empty = (self.checkpoints, self.policies)
        return all(
            entry in (self.machine, self.metrics)
            or entry.name.startswith(ASIDE)
            or (entry in empty and not any(entry.iterdir()))
            for entry in self.path.iterdir()
        )

    # Permission to write.

    def problems(self, *, resume: bool, overwrite: bool) -> list[str]:
        """The reasons why a run cannot be started in, or resumed from, this directory."""
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
        if reason := why_unwritable(self.path):
            return [f"run directory {self} cannot be written ({reason})"]
        return []

    @contextmanager
    def owned(self, *, wait: Callable[[str], object] | None = None) -> Iterator[list[str]]:
        """Inside, this process is the only one that writes here. Yields lines to show the user.

        `wait` is called with a line naming the process that is waited for; without `wait`, a
        directory in use raises DirectoryInUseError. An owner may enter again.
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

    # Writing: for the owner only.

    def begin(self, recipe: Recipe, *, machine: Mapping[str, Any]) -> None:
        """Delete what is here and begin an empty run.

        The new directory appears complete, by a rename, and all that --resume needs is then safe
        from a power cut. An existing empty folder, which may be a mount point, is filled instead,
        with the recipe last.
        """
        self.remove()
        new = self
        if not exists(self.path):
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
        """Replace the recipe by a longer one, so that the run can go on."""
        self.result.unlink(missing_ok=True)
        sync(self.path)
        write_text(self.recipe, recipe.to_json())

    def finish(self, result: Mapping[str, Any]) -> None:
        """Write result.json, which marks the run as finished."""
        write_text(self.result, json.dumps(result, indent=2) + "\n")

    def remove(self) -> None:
        """Delete the run, by a rename first, so that a kill leaves all of it or nothing.

        Where a rename is impossible, for a mount point or ".", the recipe is deleted last.
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
        """Delete policies newer than a checkpoint, and what a killed process left half written."""
        for parent in (self.path, self.checkpoints, self.policies):
            for left in entries(parent):
                if left.name.startswith(ASIDE):
                    remove(left)
        for policy in [*folders(self.policies), *folders(self.policies, _BEST)]:
            written = Moment.of(policy)
            if written is not None and written > moment:
                remove(policy)

    def best_policy(self, moment: Moment) -> Path:
        """The folder for a policy that was the best one when it was evaluated at this moment."""
        return self.policies / (_BEST + moment.name)

    def prune(self, *, checkpoints: int) -> None:
        """Delete all but the newest checkpoints and, of the best policies, the newest, the best."""
        for folder in [*folders(self.checkpoints)[checkpoints:], *self.best_policies[1:]]:
            remove(folder)

    # Reading: by any process, and from a directory of any origin.

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
        """The recipe. Raises RunDirectoryError if there is none, DamagedFileError if unreadable."""
        if not self.holds_run:
            raise RunDirectoryError(f"{self} holds no run (there is no recipe.json in it)")
        return read_recipe(self.recipe)

    def read_result(self) -> ResultFile:
        """The content of result.json. Raises DamagedFileError."""
        return read_file(self.result, lambda text: fields.read(ResultFile, text))

    def read_machine(self) -> MachineFile:
        """The content of machine.json; empty if the file is missing or damaged."""
        try:
            return read_file(self.machine, lambda text: fields.read(MachineFile, text))
        except DamagedFileError:
            return MachineFile()

    def records(self, kind: str) -> Iterator[dict[str, Any]]:
        """The records of one kind, `train` or `evaluation`, in metrics.jsonl, one by one.

        Raises DamagedFileError, which names the line, if any record cannot be read, and UsageError
        for another kind.
        """
        if kind not in (kinds := get_args(Kind)):
            raise UsageError(f"kind must be {' or '.join(map(repr, kinds))}, got {kind!r}")
        for record in self._scan_metrics():
            if isinstance(record, str):
                raise DamagedFileError(f"{self.metrics} cannot be read: {record}")
            if record["kind"] == kind:
                yield record

    def read_metrics(self, kind: str) -> list[dict[str, Any]]:
        """The list of `records`."""
        return list(self.records(kind))

    def _scan_metrics(self) -> Iterator[dict[str, Any] | str]:
        """Each record in turn, and for a line that cannot be read the reason why."""
        if not exists(self.metrics):
            return
        # A killed run may leave half a line at the end.
        for number, line in enumerate(read_lines(self.metrics, most=_LINE_BYTES), start=1):
            try:
                yield parse_record(line)
            except ValueError as error:
                yield f"line {number}: {error}"

    @property
    def logged_env_steps(self) -> int:
        """Env steps of the newest readable record; 0 if there is none."""
        with suppress(DamagedFileError):
            # The part after the last newline is an incomplete line, and the first line may be one.
            for line in reversed(read_end(self.metrics, most=_TAIL_BYTES).split(b"\n")[:-1]):
                with suppress(ValueError):
                    return int(parse_record(line)["env_steps"])
        return 0

    def drop_metrics_after(self, moment: Moment) -> list[str]:
        """Drop records later than `moment`; returns a message for every unreadable line."""
        damaged = []

        def kept() -> Iterator[str]:
            for record in self._scan_metrics():
                if isinstance(record, str):
                    damaged.append(f"{self.metrics}: {record}; left out")
                elif (
                    record["env_steps"] <= moment.env_steps and record["updates"] <= moment.updates
                ):
                    yield json.dumps(record) + "\n"

        write_parts(self.metrics, kept())
        return damaged


def default_run_dir(recipe: Recipe) -> Path:
    """`runs/TASK_seedN_DATE-TIME`, with a number appended if that exists already."""
    task = re.sub("[:/]", "_", recipe.task.name)
    name = f"{task}_seed{recipe.system.seed}_{time.strftime('%Y%m%d-%H%M%S')}"
    names = (name if number == 1 else f"{name}_{number}" for number in itertools.count(1))
    return next(path for path in map(Path("runs").joinpath, names) if not exists(path))


def folders(parent: Path, prefix: str = "") -> list[Path]:
    """Folders in `parent` that are named after moments of a run, the newest first."""
    named = (entry for entry in entries(parent) if entry.name.startswith(f"{prefix}step_"))
    found = [folder for folder in named if Moment.of(folder)]
    return sorted(found, key=lambda folder: folder.name, reverse=True)
