"""Whether two runs came to the same end, to the bit."""

from pathlib import Path
from typing import Any

import pytest
import torch

from torch_crl import train
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.system import checkpoint


def final_tensors(run_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    _, tensors, meta, _ = checkpoint.load_newest(RunDirectory(run_dir).saved_checkpoints)
    # Wall-clock is the one thing that two runs may differ in.
    return tensors, {name: value for name, value in meta.items() if name != "seconds"}


def assert_same_run(ours: Path, theirs: Path) -> None:
    (tensors, meta), (other_tensors, other_meta) = final_tensors(ours), final_tensors(theirs)
    assert meta == other_meta
    assert set(tensors) == set(other_tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, other_tensors[name]), name
    wall_clock = {"seconds", "collected_steps_per_second", "updates_per_second"}
    wall_clock |= {"collect_seconds_median", "collect_seconds_slowest"}
    for kind in ("evaluation", "train"):
        records = [
            [
                {key: value for key, value in record.items() if key not in wall_clock}
                for record in log
            ]
            for log in (
                RunDirectory(ours).read_metrics(kind),
                RunDirectory(theirs).read_metrics(kind),
            )
        ]
        assert records[0] == records[1]


class StoppedError(Exception):
    """Ends a run at its first evaluation."""


def assert_resumes(recipe: Recipe, folder: Path) -> None:
    """A run that is interrupted and resumed, in `parts`, ends as one that is not, in `whole`."""
    train(recipe, folder / "whole", show=False)

    def stop(evaluated: object) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        train(recipe, folder / "parts", show=False, callback=stop)
    train(recipe, folder / "parts", show=False, resume=True)
    assert_same_run(folder / "whole", folder / "parts")
