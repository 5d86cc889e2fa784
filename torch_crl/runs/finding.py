"""Finds run directories: at a path, around a policy folder, below a folder, or in the zoo."""

import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

from torch_crl.errors import UsageError
from torch_crl.runs.directory import RunDirectory, RunDirectoryError
from torch_crl.system.files import entries, exists, is_folder

ZOO = "zoo:"
"""`zoo:NAME` stands for the run directory of a policy that comes with the package."""


def zoo_folder() -> Path:
    """Where the run directories of the zoo are."""
    return Path(str(resources.files("torch_crl.zoo")))


def zoo_names() -> list[str]:
    """Names of all policies of the zoo."""
    return sorted(path.parent.name for path in zoo_folder().glob("*/recipe.json"))


def located(path: str | Path) -> Path:
    """The path, or the folder of `zoo:NAME`. Raises UsageError for a name that does not exist."""
    text = str(path)
    if not text.startswith(ZOO):
        return Path(path)
    name = text.removeprefix(ZOO)
    if name not in zoo_names():
        known = ", ".join(ZOO + each for each in zoo_names())
        raise UsageError(f"{text} does not exist; the policies of the zoo are {known}")
    return zoo_folder() / name


def is_in_zoo(directory: RunDirectory) -> bool:
    """Whether a run directory is one of the zoo."""
    return Path(os.path.realpath(directory.path)).parent == Path(os.path.realpath(zoo_folder()))


def output_folder(directory: RunDirectory, name: str) -> Path:
    """Where a command writes by default: in the run, or for the zoo in zoo/NAME here.

    Not below runs/, where `compare` looks for runs that were trained.
    """
    if is_in_zoo(directory):
        return Path("zoo", directory.path.name, name)
    return directory.path / name


def run_directory_of(path: Path) -> RunDirectory:
    """The run directory at this path or `zoo:NAME`, or the one that contains this policy folder.

    Raises RunDirectoryError if the path is neither, UsageError for an unknown name of the zoo.
    """
    # Unlike `Path.resolve`, this does not fail on links that form a circle.
    path = Path(os.path.realpath(os.path.expanduser(located(path))))
    for folder in (path, path.parent, path.parent.parent):
        if exists(folder / "recipe.json"):
            return RunDirectory(folder)
    raise RunDirectoryError(f"{path} is no run directory (there is no recipe.json in it)")


def find_run_directories(folder: Path) -> Iterator[Path]:
    """All run directories at any level of a folder. A link may be one, but no other link is
    followed, since it may lead back to a folder above.
    """
    if exists(folder / "recipe.json"):
        yield folder
    else:
        for below in entries(folder):
            if below.is_symlink() and not exists(below / "recipe.json"):
                continue
            if is_folder(below) and not below.name.startswith("."):
                yield from find_run_directories(below)
