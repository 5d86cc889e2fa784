"""One trial in a process of its own: `python -m torch_crl.sweep.worker RUN_DIR < recipe.json`.

All that is known of a trial lies in its run directory RUN, so that drivers and workers may be
killed at any moment. RUN.log beside it takes what the worker prints; whoever works in RUN holds a
lock on that file, which the kernel lets go when the process ends, however it ends.
"""

import fcntl
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch_crl.recipe import Recipe, differences


def is_finished(run_dir: Path) -> bool:
    """Whether training in this directory came to its end."""
    # The name is that of `metrics.RESULT_FILE`, whose imports a worker would wait for.
    return (run_dir / "result.json").exists()


def log_of(run_dir: Path) -> Path:
    """The file beside the run directory that takes what its worker prints."""
    return run_dir.with_name(run_dir.name + ".log")


def other_run_in(run_dir: Path, recipe: Recipe) -> str:
    """Why `recipe` cannot be trained in this directory; empty if it can."""
    path = run_dir / "recipe.json"
    if not path.exists():
        strange = run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir()))
        return f"{run_dir} holds something that is not a run; it is left alone" if strange else ""
    text = path.read_text()
    # A process that is killed while it writes the recipe leaves the beginning of it.
    if recipe.to_json().startswith(text):
        return ""
    try:
        changed = differences(Recipe.from_json(text), recipe)
    except ValueError as error:
        return f"{path} cannot be read ({error})"
    return f"{run_dir} holds a run of another recipe: {'; '.join(changed)}" if changed else ""


def work(recipe: Recipe, run_dir: Path, *, train: Callable[..., object] | None = None) -> None:
    """Bring the trial to its end: nothing if it is finished, else resume it or start it again.

    Waits while another process works in the directory. `train` is `torch_crl.train` if not given.
    Raises ValueError if the directory holds a run of another recipe, and what `train` raises.
    """
    with _alone_in(run_dir):
        if is_finished(run_dir):
            return
        if problem := other_run_in(run_dir, recipe):
            raise ValueError(problem)
        resume = _can_resume(recipe, run_dir)
        if not resume:
            _set_aside(run_dir)
        (train or _trainer())(recipe, run_dir, resume=resume)


def _trainer() -> Callable[..., object]:
    # Here, so that who only looks at run directories does not wait for its imports.
    from torch_crl.trainer import train

    return train


@contextmanager
def _alone_in(run_dir: Path) -> Iterator[None]:
    with log_of(run_dir).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the process that works in {run_dir}", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _can_resume(recipe: Recipe, run_dir: Path) -> bool:
    parent = run_dir / "checkpoints"
    # A baseline's library does not save all of its state.
    if recipe.by_library or not parent.exists():
        return False
    from torch_crl import checkpoint

    return bool(checkpoint.folders(parent))


def _set_aside(run_dir: Path) -> None:
    """Delete what an unfinished run left: by a rename, so that a kill leaves all of it or none."""
    aside = run_dir.with_name(f".deleting-{run_dir.name}")
    shutil.rmtree(aside, ignore_errors=True)
    if run_dir.exists():
        run_dir.rename(aside)
        shutil.rmtree(aside)


def main() -> None:
    """Read the recipe from standard input and train it in the directory that is named."""
    # For tasks named `module:function`, as in `torch-crl train`.
    sys.path.insert(0, "")
    try:
        work(Recipe.from_json(sys.stdin.read()), Path(sys.argv[1]))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
