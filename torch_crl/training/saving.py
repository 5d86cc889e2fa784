"""Saving a run so that it can be resumed, and resuming it from what was saved."""

import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from torch_crl import __version__, fields
from torch_crl.distributed.equality import check_equal
from torch_crl.distributed.ranks import ALONE, LostRankError, RankError, Ranks
from torch_crl.fields import Count, CountOrZero, PositiveOrZero, StepsOrZero
from torch_crl.recipe.compute_choice import thread_count
from torch_crl.recipe.share import share
from torch_crl.runs.directory import Moment, RunDirectory, RunDirectoryError
from torch_crl.runs.policies import save_policy
from torch_crl.system import checkpoint
from torch_crl.system.checkpoint import CheckpointError
from torch_crl.system.files import exists
from torch_crl.training.reshard import columns_of_rank, is_of_rank
from torch_crl.training.run import Round, Run

# Two, since a crash may have damaged the newest one.
_KEPT_CHECKPOINTS = 2
FORMAT = 1
"""Format version of checkpoints; increase it when a run's state changes. Older ones are refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointMeta:
    """The metadata of a checkpoint that is read again when a run is resumed."""

    __pydantic_config__ = {"strict": True, "extra": "ignore", "allow_inf_nan": False}

    format: Literal[1]
    device: str
    computed: str = ""
    """Precision and kernels; empty in checkpoints of before these were saved."""
    threads: CountOrZero = 0
    """CPU threads of updates on the CPU; 0 elsewhere and in checkpoints of before."""
    ranks: Count = 1
    collections_done: StepsOrZero
    updates_done: StepsOrZero
    seconds: PositiveOrZero
    round: Round = field(default_factory=Round)


def moment_of(run: Run) -> Moment:
    """The current moment of a run."""
    return Moment(run.env_steps, run.updates_done)


def commit(run: Run, directory: RunDirectory, ranks: Ranks = ALONE) -> None:
    """Save the current state of the run: first the policy, then the checkpoint, which commits both.

    If the run is killed between the two, it resumes from the previous checkpoint and writes the
    same policy again. Raises CheckpointError or OSError, and keeps what was saved before;
    RunDirectoryError if the directory is gone; RanksDifferError if the ranks have come apart.
    """
    with ranks.together():
        if not directory.holds_run:
            raise RunDirectoryError(
                f"{directory} was removed or moved while the run went on; nothing can be saved any "
                "more"
            )
    moment, meta = moment_of(run), _provenance(run)
    policy, folder = directory.policies / moment.name, directory.checkpoints / moment.name
    if not ranks.is_alone:
        _save_parts(run, policy, folder, ranks)
    else:
        save_policy(run.policy, policy, meta)
        if run.resumable:
            tensors, counters = _state_of(run, ranks)
            checkpoint.save(folder, tensors, meta | counters)
    if ranks.is_first:
        directory.prune(checkpoints=_KEPT_CHECKPOINTS)


def _state_of(run: Run, ranks: Ranks) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The run's tensors, and the rest of it as metadata."""
    tensors, counters = run.state_dict()
    return tensors, counters | {"round": asdict(run.round), "threads": _threads(run, ranks)}


def _threads(run: Run, ranks: Ranks) -> int:
    """CPU threads of updates, whose number decides how sums are rounded; 0 on other devices."""
    return thread_count(share(run.recipe, ranks)) if run.device.type == "cpu" else 0


def _save_parts(run: Run, policy: Path, folder: Path, ranks: Ranks) -> None:
    """Save the policy and the checkpoint of several ranks, all of it or nothing."""
    with ranks.together():
        tensors, counters = _state_of(run, ranks)
    own = {name: tensor for name, tensor in tensors.items() if is_of_rank(name)}
    shared = {name: tensor for name, tensor in tensors.items() if not is_of_rank(name)}
    check_equal(shared, ranks)
    meta = _provenance(run) | counters | {"ranks": ranks.size}
    try:
        with ranks.together():
            if ranks.is_first:
                save_policy(run.policy, policy, _provenance(run))
            intact = exists(folder) and checkpoint.is_intact(folder, ranks.rank)
        if all(ranks.all_of(intact)):
            return
        with ranks.together():
            if ranks.is_first:
                checkpoint.begin(folder)
        with ranks.together():
            name = checkpoint.part_of_rank(ranks.rank)
            of_rank = checkpoint.write_part(folder, name, own)
        sums = ranks.all_of(of_rank)
        with ranks.together():
            if ranks.is_first:
                of_all = checkpoint.write_part(folder, checkpoint.TENSORS, shared)
                checkpoint.finish(folder, meta, tensors=of_all, ranks=sums)
    except LostRankError:
        raise
    except RankError as error:
        raise CheckpointError(str(error)) from error


def save_best(run: Run, directory: RunDirectory, evaluation: dict[str, float]) -> None:
    """Save the current policy as the best by evaluation. Raises CheckpointError or OSError."""
    meta = _provenance(run) | {"evaluation": evaluation}
    save_policy(run.policy, directory.best_policy(moment_of(run)), meta)


def best_so_far(directory: RunDirectory, metric: str) -> float:
    """The metric in the evaluation of the saved best policy; -inf if there is none."""
    for folder in directory.best_policies:
        with suppress(CheckpointError, KeyError, TypeError, ValueError):
            return float(checkpoint.load_meta(folder)["evaluation"][metric])
    return -math.inf


def restore(
    run: Run, directory: RunDirectory, ranks: Ranks = ALONE, *, reshard: bool = False
) -> list[str]:
    """Load the newest readable checkpoint; returns lines to show the user.

    Everything of later moments in the directory is removed: the run will write it again. A
    checkpoint of another number of ranks is refused, or divided anew with `reshard`.
    """
    moment, notes = _restored(run, directory, ranks, reshard=reshard)
    with ranks.together():
        if ranks.is_first:
            directory.go_back_to(moment)
            # The previous process may have been killed while it removed old checkpoints.
            directory.prune(checkpoints=_KEPT_CHECKPOINTS)
            notes += directory.drop_metrics_after(moment)
    return notes


def _restored(
    run: Run, directory: RunDirectory, ranks: Ranks, *, reshard: bool
) -> tuple[Moment, list[str]]:
    """The moment of the checkpoint that was loaded, or one before all, and lines to show."""
    saved = ranks.of_first(lambda: directory.saved_checkpoints)
    # A run that was killed before its first checkpoint has one policy at most. More are all that is
    # left of a longer one, whose checkpoints were removed or found no room.
    if not saved and (directory.is_finished or len(directory.saved_policies) > 1):
        raise CheckpointError(
            f"{directory.checkpoints} holds no checkpoint to go on from; the policies of this run "
            "can be evaluated, and --overwrite starts it again"
        )
    if not saved:
        return Moment(-1, -1), ["no checkpoint was written before; starting from the beginning"]
    most_bytes = 4 * (run.recipe.replay_bytes + run.recipe.update_cost.training_bytes) + (1 << 30)
    folder, tensors, meta, failures = checkpoint.load_newest(
        saved, most_bytes=most_bytes, rank=ranks.rank, ranks=ranks.size, of_all=ranks.all_of
    )
    if "teacher" in meta:
        raise CheckpointError(
            f"{folder} is of a policy that was made of another one; the command that made it, "
            "distil or prune, goes on with it if it is given again"
        )
    if "format" not in meta:
        raise CheckpointError(
            f"{folder} was written by an earlier version of torch_crl and cannot be resumed by "
            "this one; it can be evaluated and compared, and --overwrite starts it again"
        )
    if not reshard and meta.get("ranks", 1) != ranks.size:
        raise CheckpointError(_of_other_ranks(folder, meta.get("ranks", 1), ranks))
    with ranks.together():
        try:
            counters = fields.read(CheckpointMeta, json.dumps(meta))
            if counters.ranks != ranks.size:
                tensors = columns_of_rank(
                    folder,
                    tensors,
                    run,
                    ranks,
                    written_by=counters.ranks,
                    updates=counters.updates_done,
                )
            _load(run, tensors, counters)
            if Moment.of(folder) != moment_of(run):
                raise ValueError(f"it is of {moment_of(run).name}, and its name says otherwise")
        except (ValueError, KeyError, RuntimeError, IndexError, TypeError) as error:
            raise CheckpointError(f"{folder} does not fit this run: {error}") from error
    skipped = [f"passed over: {failure}" for failure in failures]
    resumed = f"resumed from {folder}: {run.env_steps:,} steps, {run.updates_done:,} updates"
    before = _computed(counters.computed or run.description, counters.threads)
    now = _computed(run.description, _threads(run, ranks) if counters.threads else 0)
    if before != now:
        resumed += (
            f"; computed until now as {before}, from here on as {now}: results differ by rounding "
            "from those of an undisturbed run"
        )
    if counters.ranks != ranks.size:
        resumed += (
            f"; its envs, of {counters.ranks} ranks, are now those of {ranks.size}, with new "
            "streams of random numbers"
        )
    if run.recipe.system.collectors:
        resumed += "; its collectors begin fresh episodes"
    if not run.env.saves_state:
        resumed += f"; {run.recipe.task.name} cannot be saved and begins fresh episodes"
    if run.updates_done >= run.recipe.total_updates:
        resumed += "; the run is finished; a larger --env-steps lets it go on"
    return moment_of(run), [*skipped, resumed]


def _computed(description: str, threads: int) -> str:
    return f"{description}, CPU threads: {threads}" if threads else description


def _of_other_ranks(folder: Path, written_by: int, ranks: Ranks) -> str:
    def told(count: int) -> str:
        return f"{count} ranks" if count > 1 else "one process"

    return (
        f"{folder} was written by {told(written_by)}, and this is {told(ranks.size)}: start as "
        "many, or divide its envs anew with --reshard"
    )


def _load(run: Run, tensors: dict[str, torch.Tensor], meta: CheckpointMeta) -> None:
    if meta.device != run.device.type:
        raise CheckpointError(
            f"it was written on {meta.device} and this run is on {run.device.type}; random numbers "
            "differ between them, so a run can be resumed only on the kind of device it began on"
        )
    collections, updates = meta.collections_done, meta.updates_done
    recipe = run.recipe
    trained = max(0, collections - recipe.prefill_collections)
    due = trained * recipe.updates_per_collection
    if trained > recipe.collections or not 0 <= due - updates <= recipe.updates_per_collection:
        raise ValueError(
            f"a run of its recipe never has {collections} collections and {updates} updates"
        )
    if meta.round.sums and not meta.round.updates:
        raise ValueError("it has losses of no updates")
    run.check_state(tensors, collections_done=collections, updates_done=updates)
    run.load_state_dict(tensors, asdict(meta))
    run.round = meta.round


def _provenance(run: Run) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "task": run.env.spec.name,
        "env_steps": run.env_steps,
        "updates": run.updates_done,
        "torch_crl": __version__,
        "torch": torch.__version__,
        "device": run.device.type,
        "computed": run.description,
    }
