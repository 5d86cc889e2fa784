"""What is kept of runs is read like whole runs, and of finished runs only."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.run_directories import write_run
from torch_crl.benchmarks import kept_runs
from torch_crl.recipe.presets import preset
from torch_crl.runs.curves import read_curves


def test_kept_runs_have_the_curves_of_the_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, kept = tmp_path / "whole", tmp_path / "kept"
    write_run(whole / "one", preset("reacher"), [0.1, 0.5])
    write_run(whole / "unfinished", preset("reacher"), [0.1], finished=False)
    (whole / "one" / "checkpoints").mkdir()
    monkeypatch.setattr(sys, "argv", ["kept_runs", str(whole), str(kept)])
    kept_runs.main()
    assert capsys.readouterr().out.split() == [str(kept / "one")]
    assert {path.name for path in (kept / "one").iterdir()} == {
        "recipe.json",
        "metrics.jsonl",
        "result.json",
    }
    (ours,), (theirs, _) = read_curves(kept), read_curves(whole)
    assert ours.recipe == theirs.recipe and ours.finished
    assert ours.metrics.keys() == theirs.metrics.keys()
    for name in ours.metrics:
        np.testing.assert_array_equal(ours.metric(name), theirs.metric(name))
    assert '"train"' not in (kept / "one" / "metrics.jsonl").read_text()
    # What is kept already is not copied again.
    kept_runs.main()
    assert capsys.readouterr().out == ""
