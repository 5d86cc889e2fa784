"""Which implementation a run on the CPU gets, and why others are refused."""

import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.recipes import tiny
from torch_crl.agent.compute import Compute
from torch_crl.kernels import blas
from torch_crl.recipe import compute_choice
from torch_crl.recipe.compute_choice import choose_compute, compute_problems, thread_count
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe

ON_CPU = {"device": "cpu"}


def long(**system: object) -> Recipe:
    """The preset of `reacher`, whose 7,120 updates are worth compiled kernels."""
    return with_changes(preset("reacher"), system=ON_CPU | system)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compute_choice, "_import_error_of_numba", lambda: None)
    monkeypatch.setattr(blas, "address", lambda _: 1)


@pytest.mark.usefixtures("installed")
def test_long_runs_of_small_layers_get_the_compiled_kernels() -> None:
    assert thread_count(long()) == 1
    assert choose_compute(long()).tower == "numba"
    maze = with_changes(preset("point_u_maze"), system=ON_CPU)
    assert choose_compute(maze).tower == "numba" and thread_count(maze) == 1
    before = with_changes(long(), networks={"block": "pre_norm"})
    assert choose_compute(before).tower == "numba"
    for threads in (1, 2):
        wide = with_changes(long(torch_threads=threads), networks={"width": 512})
        assert choose_compute(wide).tower == "numba" and thread_count(wide) == threads
    assert str(choose_compute(long())) == (
        "fp32, towers: numba, other kernels: numba, no CUDA graph"
    )


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    "changes",
    [
        {"budget": {"env_steps": 40_000}},
        {"algorithm": {"algo": "sac"}},
        {"networks": {"block": "gated"}},
        {"networks": {"width": 512}, "algorithm": {"batch_size": 512}},
        {"system": {"recompute": 4}},
        {"system": {"precision": "tf32"}},
        {"system": {"tower": "reference"}},
    ],
)
def test_others_are_computed_in_plain_torch(
    changes: dict[str, dict[str, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute_choice.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(compute_choice, "usable_cpus", lambda: 4)
    assert choose_compute(with_changes(long(), **changes)).tower == "reference"


def test_without_numba_it_is_plain_torch_and_asking_for_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = ModuleNotFoundError("No module named 'numba'", name="numba")
    monkeypatch.setattr(compute_choice, "_import_error_of_numba", lambda: missing)
    monkeypatch.setattr(blas, "address", lambda name: None)
    assert choose_compute(long()).tower == "reference"
    assert compute_problems(long(tower="numba")) == [
        "--tower numba needs numba: pip install 'numba>=0.60'; 'reference' does not",
        f"--tower numba calls the BLAS of torch, and torch {torch.__version__} has none that "
        "others can call; 'reference' does not",
    ]


def test_a_numba_that_cannot_be_imported_is_as_good_as_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.5 or less')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "numba", raising=False)
    compute_choice._import_error_of_numba.cache_clear()
    try:
        assert choose_compute(long()).tower == "reference"
        (problem, *_) = compute_problems(long(tower="numba"))
    finally:
        compute_choice._import_error_of_numba.cache_clear()
    assert "needs numba that can be imported (Numba needs NumPy 2.5 or less): pip" in problem


@pytest.mark.usefixtures("installed")
def test_what_numba_does_not_have_is_refused_by_flag() -> None:
    recipe = tiny(
        networks={"block": "no_norm"},
        system={"tower": "numba", "precision": "tf32", "recompute": 4},
    )
    problems = "\n".join(compute_problems(recipe))
    for flag in ("--block published or pre_norm, got no_norm", "bf16, got tf32", "--recompute 4"):
        assert flag in problems, problems


@pytest.mark.usefixtures("installed")
def test_bf16_is_computed_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = with_changes(long(precision="bf16"), networks={"width": 1024})
    monkeypatch.setattr(blas, "multiplies_bf16", lambda: True)
    assert choose_compute(large).tower == "numba"
    monkeypatch.setattr(blas, "multiplies_bf16", lambda: False)
    assert choose_compute(large).tower == "reference"
    (problem,) = compute_problems(long(tower="numba", precision="bf16"))
    assert "AVX512_BF16 or AMX" in problem and "'reference' computes the same" in problem


@pytest.mark.parametrize(("width", "threads"), [(64, 1), (256, 4)])
def test_runs_on_a_gpu_have_the_threads_of_plain_torch(
    width: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu = Compute(tower="persistent", precision="fp16", cuda_graph=True)
    monkeypatch.setattr(compute_choice, "choose_compute", lambda _: on_gpu)
    monkeypatch.setattr(compute_choice.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(compute_choice, "usable_cpus", lambda: 4)
    assert thread_count(with_changes(long(), networks={"width": width})) == threads


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(("by_blas", "threads"), [(True, 2), (False, 1)])
def test_only_the_products_of_blas_are_shared_among_threads(
    by_blas: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = with_changes(long(tower="numba"), networks={"width": 256})
    monkeypatch.setattr(blas, "leaves_avx512_unused", lambda: not by_blas)
    monkeypatch.setattr(compute_choice.torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(compute_choice, "usable_cpus", lambda: 2)
    assert thread_count(large) == threads
