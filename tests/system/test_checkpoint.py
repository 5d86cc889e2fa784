"""Checkpoint folders: atomic, checked, and what happens when the disk or a bit fails."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torch_crl.runs.directory import Moment, RunDirectory, folders
from torch_crl.system import checkpoint
from torch_crl.system.checkpoint import CheckpointError

TENSORS = {"a/x": torch.arange(1000.0), "b": torch.tensor(7, dtype=torch.int32)}
META = {"updates": 3, "note": "text"}


def written(folder: Path) -> Path:
    checkpoint.save(folder, TENSORS, META)
    return folder


def test_round_trip(tmp_path: Path) -> None:
    tensors, meta = checkpoint.load(written(tmp_path / "step_1"))
    assert meta == META
    assert set(tensors) == set(TENSORS)
    assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.META])
def test_every_flipped_bit_is_noticed(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path / "step_1")
    intact = (folder / name).read_bytes()
    for position in range(0, len(intact), max(1, len(intact) // 60)):
        damaged = bytearray(intact)
        damaged[position] ^= 0x10
        if name == checkpoint.META and _means_the_same(intact, bytes(damaged)):
            continue
        (folder / name).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="is damaged"):
            checkpoint.load(folder)


def _means_the_same(intact: bytes, damaged: bytes) -> bool:
    """A changed blank between JSON tokens."""
    try:
        return bool(json.loads(intact) == json.loads(damaged))
    except ValueError:
        return False


@pytest.mark.parametrize("name", [checkpoint.TENSORS, checkpoint.META])
@pytest.mark.parametrize("keep", [0, 10, -1])
def test_truncated_files_are_noticed(tmp_path: Path, name: str, keep: int) -> None:
    folder = written(tmp_path / "step_1")
    content = (folder / name).read_bytes().rstrip()
    (folder / name).write_bytes(content[:keep])
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(folder)


def test_newest_good_one_is_loaded_and_the_bad_one_named(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save((tmp_path / Moment(step, 0).name), TENSORS, {"step": step})
    ((tmp_path / Moment(3, 0).name) / checkpoint.TENSORS).write_bytes(b"")
    folder, _, meta, failures = checkpoint.load_newest(folders(tmp_path))
    assert meta == {"step": 2} and folder == (tmp_path / Moment(2, 0).name)
    assert len(failures) == 1 and "step_000000000003" in str(failures[0])


def test_no_readable_checkpoint_lists_why(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        checkpoint.load_newest(folders(tmp_path))
    folder = written(tmp_path / Moment(1, 0).name)
    (folder / checkpoint.META).unlink()
    with pytest.raises(
        CheckpointError, match=r"step_000000000001_update_000000000 is damaged: .*No such file"
    ):
        checkpoint.load_newest(folders(tmp_path))


def test_half_written_folders_are_never_seen_and_are_removed(tmp_path: Path) -> None:
    parent = RunDirectory(tmp_path).checkpoints
    written(parent / Moment(1, 0).name)
    aside = parent / ".writing-step_000000000002_update_000000000"
    aside.mkdir()
    (aside / checkpoint.META).write_text("{")
    assert checkpoint.load_newest(folders(parent))[0] == parent / Moment(1, 0).name
    RunDirectory(tmp_path).go_back_to(Moment(1, 0))
    assert not aside.exists()


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (5, 40, 300):
        checkpoint.save(run.checkpoints / Moment(step, 0).name, TENSORS, META)
        checkpoint.save(run.best_policy(Moment(step, 0)), TENSORS, META)
    run.prune(checkpoints=2)
    assert [Moment.of(path) for path in run.saved_checkpoints] == [(300, 0), (40, 0)]
    assert run.best_policies == [run.best_policy(Moment(300, 0))]


def test_a_name_stands_for_one_moment(tmp_path: Path) -> None:
    folder = written(tmp_path / "step_1")
    checkpoint.save(folder, TENSORS, {"other": 1})
    assert checkpoint.load(folder)[1] == META
    (folder / checkpoint.TENSORS).write_bytes(b"damaged")
    checkpoint.save(folder, TENSORS, {"other": 1})
    assert checkpoint.load(folder)[1] == {"other": 1}


def test_full_disk_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    folder = written(tmp_path / "step_1")
    # The operating system refuses files above 4 kB in a process of its own: a disk that is full.
    program = """
import resource, sys, torch
from pathlib import Path
from torch_crl.system import checkpoint
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
checkpoint.save(Path(sys.argv[1]), {"x": torch.zeros(100_000)}, {})
"""
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "step_2")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert "CheckpointError: could not write the checkpoint" in result.stderr
    assert checkpoint.load(folder)[1] == META
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
