"""What happens before a run's first step: it is checked, built, and its directory is found."""

import os
import time
from contextlib import suppress
from pathlib import Path

from torch_crl.distributed.ranks import ALONE, Ranks
from torch_crl.errors import UsageError
from torch_crl.recipe import checks
from torch_crl.recipe.goal_checks import filled_from, with_encoder
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe, differences, extended
from torch_crl.recipe.share import share, share_problems
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.weights_and_biases import missing_wandb
from torch_crl.system.devices import resolve_device
from torch_crl.training.building import build_run
from torch_crl.training.collecting_process import policy_problems
from torch_crl.training.run import Run

# File systems over a network may show a new file late.
_SECONDS_UNTIL_SEEN = 5.0


def find_problems(
    recipe: Recipe,
    directory: RunDirectory,
    *,
    resume: bool,
    overwrite: bool,
    wandb: str = "",
    ranks: Ranks = ALONE,
) -> Recipe:
    """The recipe that `train` would run; for a resumed run it may be longer than the saved one.

    Raises RecipeError if the run could not start. Nothing is built or written.
    """
    problems = directory.problems(resume=resume, overwrite=overwrite)
    if resume and not problems:
        saved = directory.read_recipe()
        if saved.by_library:
            problems = [
                f"--resume: a run of {saved.algorithm.algo} keeps no checkpoints to go on from; "
                "--overwrite starts it again"
            ]
        elif recipe.budget.env_steps < saved.budget.env_steps:
            problems = [
                f"--resume can make a run longer and not shorter: --env-steps is "
                f"{saved.budget.env_steps}, got {recipe.budget.env_steps}"
            ]
        else:
            recipe = filled_from(recipe, saved)
            longer = extended(saved, recipe.budget.env_steps)
            asked = with_changes(
                recipe,
                budget={
                    name: getattr(longer.budget, name)
                    for name in ("evaluations", "checkpoints")
                    if getattr(recipe.budget, name) == getattr(saved.budget, name)
                },
            )
            changed = "; ".join(differences(longer, asked))
            if changed:
                problems = [f"--resume keeps the recipe of the run; asked to change {changed}"]
            recipe = asked
    problems += missing_wandb() if wandb else []
    problems += share_problems(recipe, ranks) + policy_problems(recipe)
    checks.check(
        recipe, run_problems=problems, of_device=lambda recipe: _of_one_device(recipe, ranks)
    )
    return with_encoder(recipe)


def _appears(file: Path, text: str) -> bool:
    """Whether a file has this text, now or as soon as a network's file system shows it."""
    deadline = time.monotonic() + _SECONDS_UNTIL_SEEN
    while True:
        with suppress(OSError):
            if file.read_text() == text:
                return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)


def _of_one_device(recipe: Recipe, ranks: Ranks) -> Recipe:
    """The part of a recipe on one GPU; on CPUs the ranks of a machine share its memory."""
    on_gpu = resolve_device(recipe.system.device).type == "cuda"
    return share(recipe, ranks) if on_gpu else recipe


def build(recipe: Recipe, ranks: Ranks = ALONE) -> Run:
    """The run at its beginning, of an algorithm of ours or of Stable-Baselines3."""
    if recipe.by_library:
        # Imported here, because the library is an extra and takes a second to import.
        from torch_crl.baselines.run import build_baseline

        return build_baseline(recipe)
    return build_run(recipe, ranks=ranks)


def check_seen_by_all(directory: RunDirectory, ranks: Ranks) -> None:
    """Raise UsageError unless all ranks see the same place for the run directory."""
    if ranks.is_alone:
        return
    place: Path = directory.lock.with_suffix(".ranks")

    def leave_token() -> str:
        token = os.urandom(8).hex()
        place.write_text(token)
        return token

    token = ranks.of_first(leave_token)
    try:
        seen = _appears(place, token)
        blind = [rank for rank, sees in enumerate(ranks.all_of(seen)) if not sees]
    finally:
        if ranks.is_first:
            place.unlink(missing_ok=True)
    with ranks.together():
        if blind and ranks.is_first:
            raise UsageError(
                f"rank {', '.join(map(str, blind))} does not see what rank 0 writes beside the run "
                f"directory {directory}; name one with --run-dir that all machines share"
            )
