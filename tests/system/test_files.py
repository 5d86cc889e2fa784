"""Looking for a file: what cannot be seen is not taken for missing."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from torch_crl.cli.main import main
from torch_crl.cli.output import check_folder
from torch_crl.errors import UsageError
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import load_policy
from torch_crl.sweep.results import write
from torch_crl.system.checkpoint import CheckpointError
from torch_crl.system.files import entries, exists, is_folder, why_unwritable


def test_what_is_there(tmp_path: Path) -> None:
    file, circle, dangling = tmp_path / "file", tmp_path / "circle", tmp_path / "dangling"
    file.write_text("")
    circle.symlink_to(circle)
    dangling.symlink_to(tmp_path / "gone")
    (tmp_path / "link").symlink_to(tmp_path)
    assert [exists(path) for path in (tmp_path, file, tmp_path / "link")] == [True] * 3
    absent = (tmp_path / "gone", tmp_path / "gone" / "x", file / "x", circle, dangling)
    assert not any(exists(path) or is_folder(path) or entries(path) for path in absent)
    assert [is_folder(path) for path in (tmp_path, file, tmp_path / "link")] == [True, False, True]
    assert set(entries(tmp_path)) == {file, circle, dangling, tmp_path / "link"}
    nameless = tmp_path / "a\0b"
    assert not (entries(file) or exists(nameless) or is_folder(nameless) or entries(nameless))
    with pytest.raises(OSError, match="name too long"):
        exists(tmp_path / ("x" * 300))


@pytest.fixture
def unseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run on a network file system that does not answer."""
    folder = tmp_path / "far"
    for part in ("checkpoints", "policies"):
        (folder / "run" / part / "step_000000000100").mkdir(parents=True)
    (folder / "run" / "recipe.json").write_text("{}")
    stat, scan, names = os.stat, os.scandir, os.listdir

    def not_answered(path: Any) -> None:
        if str(path).startswith(f"{folder}/"):
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    def no_stat(path: Any, *rest: Any, **options: Any) -> os.stat_result:
        if options.get("follow_symlinks", True):
            not_answered(path)
        return stat(path, *rest, **options)

    def no_scan(path: Any = ".") -> Any:
        not_answered(path)
        return scan(path)

    def no_names(path: Any = ".") -> Any:
        not_answered(path)
        return names(path)

    monkeypatch.setattr(os, "listdir", no_names)
    monkeypatch.setattr(os, "stat", no_stat)
    monkeypatch.setattr(os, "scandir", no_scan)
    return folder


def test_a_run_that_cannot_be_seen_is_not_taken_for_none(unseen: Path) -> None:
    run = RunDirectory(unseen / "run")
    for look in (
        lambda: run.holds_run,
        lambda: run.is_finished,
        lambda: run.is_occupied,
        lambda: run.saved_checkpoints,
        lambda: run.best_policies,
        run.remove,
    ):
        with pytest.raises(OSError, match="Stale file handle"):
            look()


def test_records_of_runs_that_cannot_be_seen_are_kept(unseen: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps({"trials": [{"trial": "far/run"}, {"trial": "gone"}]}))
    write([{"trial": "new"}], results)
    kept = [each["trial"] for each in json.loads(results.read_text())["trials"]]
    assert kept == ["new", "far/run"]


def test_a_file_in_place_of_policies_is_a_run_without_any(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}")
    (tmp_path / "policies").write_text("")
    with pytest.raises(CheckpointError, match="holds neither a policy nor a run"):
        load_policy(tmp_path)


def test_a_command_says_that_it_could_not_look(
    unseen: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(unseen / "run")]) == 1
    assert "Stale file handle" in capsys.readouterr().err


def test_a_folder_that_cannot_be_seen_cannot_be_written(unseen: Path, tmp_path: Path) -> None:
    assert why_unwritable(tmp_path / "new" / "folder") == ""
    (tmp_path / "file").write_text("")
    assert why_unwritable(tmp_path / "file" / "x") == f"Not a directory: {tmp_path / 'file'}"
    with pytest.raises(UsageError, match=r"--out .*/x cannot be written \(Stale file handle: "):
        check_folder("--out", unseen / "x")
    (problem,) = RunDirectory(tmp_path / "file" / "x").problems(resume=False, overwrite=False)
    assert "cannot be written (Not a directory: " in problem
