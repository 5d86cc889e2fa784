"""One trial in a process of its own: `python -m torch_crl.sweep.worker RUN_DIR < recipe.json`.

The run directory holds all that is known of a trial, so that drivers and workers may be killed at
any moment. What the worker prints goes to a file beside that directory.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from torch_crl.envs.trust import allow_tasks
from torch_crl.errors import TorchCrlError, exit_status
from torch_crl.recipe.record import Recipe, differences
from torch_crl.runs.directory import RunDirectory, RunDirectoryError
from torch_crl.system.files import DamagedFileError
from torch_crl.system.garbage import collect_seldom
from torch_crl.system.terminal import print_line


def is_finished(run_dir: Path) -> bool:
    """Whether training in this directory came to its end."""
    return RunDirectory(run_dir).is_finished


def log_of(run_dir: Path) -> Path:
    """The file beside the run directory to which its worker's output goes."""
    return RunDirectory(run_dir).log


def other_run_in(run_dir: Path, recipe: Recipe) -> str:
    """Why `recipe` cannot be trained in this directory; empty if it can."""
    directory = RunDirectory(run_dir)
    if not directory.holds_run:
        strange = directory.is_occupied
        return f"{run_dir} holds something that is not a run; it is left alone" if strange else ""
    # Imported here, so that a trial which begins or is finished does not wait for encoders.
    from torch_crl.recipe.goal_checks import filled_from

    try:
        saved = directory.read_recipe()
        changed = differences(saved, filled_from(recipe, saved))
    except DamagedFileError as error:
        return str(error)
    return f"{run_dir} holds a run of another recipe: {'; '.join(changed)}" if changed else ""


def work(recipe: Recipe, run_dir: Path, *, train: Callable[..., object] | None = None) -> None:
    """Train the trial to its end: do nothing if it is finished, else resume or restart it.

    Waits while another process works in the directory. `train` is `torch_crl.train` if not given.
    Raises RunDirectoryError if the directory holds a run of another recipe, and what `train`
    raises.
    """
    directory = RunDirectory(run_dir)
    with directory.owned(wait=partial(print_line, stderr=True)):
        if directory.is_finished:
            return
        if problem := other_run_in(run_dir, recipe):
            raise RunDirectoryError(problem)
        # A baseline is started again: its library does not save all of its state.
        resume = bool(directory.saved_checkpoints) and not recipe.by_library
        if not resume:
            directory.remove()
        (train or _trainer())(recipe, directory, resume=resume)


def _trainer() -> Callable[..., object]:
    # Imported here, so that code which only reads run directories does not wait for its imports.
    from torch_crl.training.trainer import train

    return train


def main() -> None:
    """Read the recipe from standard input and train it in the directory that is named."""
    collect_seldom()
    try:
        recipe = Recipe.from_json(sys.stdin.read())
        # The user who started the sweep has typed these names.
        allow_tasks(recipe.own_code, typed=recipe.own_code)
        work(recipe, Path(sys.argv[1]))
    except (TorchCrlError, OSError, KeyboardInterrupt) as error:
        print_line(f"{type(error).__name__}: {error}", stderr=True)
        sys.exit(exit_status(error))


if __name__ == "__main__":
    main()
