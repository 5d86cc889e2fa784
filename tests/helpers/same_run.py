"""Whether two runs came to the same end, to the bit."""

from pathlib import Path
from typing import Any

import torch

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
