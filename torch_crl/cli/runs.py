"""What the commands need to know of a run directory."""

from pathlib import Path

from torch_crl.cli.errors import UsageError
from torch_crl.recipe import Recipe


def read_recipe(run_dir: Path) -> Recipe:
    """The recipe of the run. Raises UsageError if there is none that can be read."""
    path = run_dir / "recipe.json"
    if not path.exists():
        raise UsageError(f"{run_dir} holds no run (there is no recipe.json in it)")
    try:
        return Recipe.from_json(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def run_directory_of(path: Path) -> Path:
    """The run directory itself, or the one that a policy folder belongs to."""
    path = path.resolve()
    for folder in (path, *path.parents):
        if (folder / "recipe.json").exists():
            return folder
    raise UsageError(f"{path} is no run directory (there is no recipe.json in it)")
