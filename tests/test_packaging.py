"""What is published: a wheel that works without the repository, an archive that holds all of it."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers.commands import SMALL_FLAGS
from tests.helpers.packages import build
from tests.helpers.paths import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def test_a_wheel_works_beside_the_parents_packages(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(site)]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    # As where there is no numba, which would compile for functions in another folder.
    (site / "sitecustomize.py").write_text("import sys\n\nsys.modules['numba'] = None\n")

    def run(*arguments: str) -> str:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(site), "COLUMNS": "100"},
            check=True,
            timeout=200,
            capture_output=True,
            text=True,
        ).stdout

    files = run(
        "-c", "import torch_crl, torch_crl.kernels as k; print(torch_crl.__file__, k.__file__)"
    )
    assert all(path.startswith(str(site)) for path in files.split())
    command = ("-m", "torch_crl")
    run(*command, "train", "reacher", *SMALL_FLAGS, "--run-dir", "run")
    assert "time_at_goal" in run(*command, "eval", "run", "--num-envs", "2")
    assert "ant_big_maze" in run(*command, "envs")
    assert "eager" in run(*command, "bench", "--depths", "4", "--batch", "8", "--device", "cpu")
    assert "report.html" in run(*command, "study", "limits")


def test_a_wheel_holds_data_and_types_and_of_the_benchmarks_no_campaign(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    data = {
        f"torch_crl/study/data/{path.name}" for path in (ROOT / "torch_crl/study/data").iterdir()
    }
    assert data | {"torch_crl/py.typed", "torch_crl/benchmarks/scenarios.py"} <= packed
    assert not {"torch_crl/benchmarks/gpu.py", "torch_crl/benchmarks/peers/jax_crl.py"} & packed
    assert {name.split("/")[0] for name in packed} == {"torch_crl", "torch_crl-0.1.0.dist-info"}


def test_an_sdist_holds_what_git_does_and_passes_the_indexs_checks(tmp_path: Path) -> None:
    archive = build("sdist", tmp_path)
    with tarfile.open(archive) as opened:
        packed = {name.partition("/")[2] for name in opened.getnames()}
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    links = {"torch_crl/kernels", "torch_crl/benchmarks"}
    assert {name for name in listed if name} - links - {".gitignore"} <= packed
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", str(archive)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
