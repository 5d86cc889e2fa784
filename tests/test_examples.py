"""The examples run as their first lines say, and what they say of themselves is true."""

import ast
import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.helpers import warm
from tests.helpers.paths import EXAMPLES


@pytest.mark.parametrize("name", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_example_runs(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"TORCH_CRL_EXAMPLE_STEPS": "9000"}
    result = warm.run(str(EXAMPLES / name), cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert "success_any" in result.stdout


def test_own_task_takes_about_thirty_lines() -> None:
    tree = ast.parse((EXAMPLES / "own_task.py").read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    model = next(node for node in tree.body if isinstance(node, ast.Assign))
    lines = sum((node.end_lineno or 0) - node.lineno + 1 for node in [model, *functions])
    assert lines <= 45


def test_the_notebook_runs_and_shows_a_curve_and_a_film(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_CRL_EXAMPLE_STEPS", "9000")
    # Its kernel works in the folder of the example's task, as that of a user does.
    shutil.copy(EXAMPLES / "own_task.py", tmp_path)
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": tmp_path}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert {"image/png", "image/gif"} <= set(shown)
    assert any("time_at_goal_share" in str(output.get("data")) for output in outputs)
