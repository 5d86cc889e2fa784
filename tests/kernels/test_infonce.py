"""`pair_scores` in Triton against its definition in fp64: interpreted without a GPU, real with one.

And its kernels compiled for the GPUs that we care about, which needs none.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.largest_tensor import LargestTensor
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all, limits_of_compiler
from torch_crl.agent.losses import CONTRASTIVE_LOSSES, critic_loss
from torch_crl.kernels.infonce import ENERGIES, pair_scores

kernel = pytest.importorskip("torch_crl.kernels.infonce.kernel", reason="triton is not installed")
op = pytest.importorskip("torch_crl.kernels.infonce.op", reason="triton is not installed")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DIFFERENTIABLE = ("diagonal_B", "row_logsumexp_B", "column_logsumexp_B", "row_softplus_B")
FP32 = torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def allocated(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of what was made by torch.empty, which is full of NaN: all of it must be written."""
    sizes: list[int] = []

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, **kwargs: Any) -> Tensor:
            tensor = make(*args, **kwargs)
            sizes.append(tensor.numel())
            return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor

        return wrapped

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(Tensor, "new_empty", poisoned(Tensor.new_empty))
    return sizes


def draw(batch: int, size: int, *, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    phi, psi = (torch.randn(batch, size, generator=generator) * scale for _ in range(2))
    return phi.to(DEVICE), psi.to(DEVICE)


def run(
    phi: Tensor,
    psi: Tensor,
    *,
    energy: str,
    implementation: str,
    dtype: torch.dtype = torch.float32,
    columns: bool = True,
    softplus: bool = True,
    row_mask_B: Tensor | None = None,
    group_C: Tensor | None = None,
    first: int = 0,
) -> dict[str, Tensor]:
    """All scores, and the gradients of their sum with random weights, in fp64."""
    phi, psi = (x.detach().to(dtype).requires_grad_() for x in (phi, psi))
    scores = pair_scores(
        phi,
        psi,
        energy=energy,
        columns=columns,
        softplus=softplus,
        row_mask_B=row_mask_B,
        group_C=group_C,
        first=first,
        implementation=implementation,  # type: ignore[arg-type]
    )
    assert scores.goals == len(psi)
    fields = {name: x for name, x in scores._asdict().items() if isinstance(x, Tensor)}
    assert ("column_logsumexp_B" in fields, "row_softplus_B" in fields) == (columns, softplus)
    generator = torch.Generator().manual_seed(3)
    weights = {name: torch.randn(len(phi), generator=generator) for name in DIFFERENTIABLE}
    outputs = [name for name in DIFFERENTIABLE if name in fields]
    assert {name for name, x in fields.items() if x.requires_grad} == set(outputs)
    torch.autograd.backward(
        [fields[name] for name in outputs], [weights[name].to(phi) for name in outputs]
    )
    assert phi.grad is not None and psi.grad is not None
    fields |= {"phi_grad": phi.grad, "psi_grad": psi.grad}
    return {name: x.detach().double() for name, x in fields.items()}


def assert_as_good_as_fp32(phi: Tensor, psi: Tensor, *, scale: float = 1.0, **options: Any) -> None:
    """The kernel may be twice as far from fp64 as the definition in fp32 is, and some rounding.

    `scale` is the size of the numbers that are added up on the way, where it is above the result.
    Where the two kernels add up each energy in orders of their own, the weights of the gradient are
    off by the rounding of energies.
    """
    of_scores, of_gradients = 0.0, 0.0
    if orders_differ(phi.shape[1]):
        of_scores, of_gradients = rounding(phi, psi, options["energy"])
    ours = run(phi, psi, implementation="triton", **options)
    plain = run(phi, psi, implementation="reference", **options)
    exact = run(phi, psi, implementation="reference", dtype=torch.float64, **options)
    assert ours.keys() == exact.keys()
    for name, expected in exact.items():
        finite = expected.isfinite()
        assert torch.equal(ours[name][~finite], expected[~finite]), name
        if not finite.any():
            continue
        error, allowed = (
            (got[name] - expected)[finite].abs().max().item() for got in (ours, plain)
        )
        largest = max(scale, expected[finite].abs().max().item())
        rounded = 4 + (of_gradients if name.endswith("grad") else of_scores)
        assert error <= 2 * allowed + rounded * FP32 * largest, (name, error, allowed)


@functools.cache
def orders_differ(size: int) -> bool:
    """Whether a dot product depends on the shapes of the matrices that it is part of.

    So it is on a GPU, for kernels that are compiled apart, and under the interpreter on processors
    for which NumPy's BLAS has several kernels.
    """
    if DEVICE == "cuda":
        return True
    x, y = (np.random.default_rng(k).standard_normal((64, size)) for k in range(2))
    x, y = x.astype(np.float32), y.astype(np.float32)
    return not (np.array_equal(x @ y.T, (y @ x.T).T) and np.array_equal(x[:8] @ y.T, (x @ y.T)[:8]))


def rounding(phi: Tensor, psi: Tensor, energy: str) -> tuple[float, float]:
    """By how many units of fp32's last place energies are off, and gradients for that reason.

    Distances come from |x|^2 + |y|^2 - 2 x.y, and their directions are as far off as they are.
    """
    x, y = (points.double() for points in (phi, psi))
    if energy in ("dot", "cosine"):
        size = (x.norm(dim=-1).max() * y.norm(dim=-1).max()).item()
        return size, size
    squares = sum((points - y.mean(0)).square().sum(-1).max().item() for points in (x, y))
    if energy == "l2":
        return squares, squares
    closest = ENERGIES[energy].pairwise(x, y).abs().min().item()
    of_norm = squares / (2 * closest)
    return of_norm, of_norm / min(1.0, closest)


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("batch", [1, 3, 63, 128])
@pytest.mark.parametrize("energy", ENERGIES)
def test_scores_and_gradients(energy: str, batch: int, size: int) -> None:
    assert_as_good_as_fp32(*draw(batch, size), energy=energy)


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("energy", ["norm", "dot"])
def test_scores_that_were_not_asked_for(energy: str, columns: bool, softplus: bool) -> None:
    # R of several slices, the last of them ragged.
    assert_as_good_as_fp32(*draw(40, 100), energy=energy, columns=columns, softplus=softplus)


@pytest.mark.parametrize(("multiprocessors", "splits"), [(1, 1), (132, 3)])
@pytest.mark.parametrize("energy", ["norm", "dot"])
def test_more_columns_than_one_step_takes(
    monkeypatch: pytest.MonkeyPatch, energy: str, multiprocessors: int, splits: int
) -> None:
    monkeypatch.setattr(kernel, "multiprocessors", lambda device: multiprocessors)
    launch = kernel.choose_launch(40)
    batch = 2 * launch.BN + 14
    assert kernel.split(batch, launch, 34, torch.device("cpu"))[0] == splits
    assert_as_good_as_fp32(*draw(batch, 40), energy=energy)


def test_every_split_has_columns() -> None:
    launch = kernel.choose_launch(64)
    for batch, programs in itertools.product((1, 128, 512, 640, 1000, 4096), (1, 25, 32, 66, 500)):
        splits, chunk = kernel.split(batch, launch, programs, torch.device("cpu"))
        assert (splits - 1) * chunk < batch <= splits * chunk
        assert splits == 1 or splits * programs <= 132


@pytest.mark.parametrize("softplus", [False, True])
@pytest.mark.parametrize(("rows", "goals", "first"), [(20, 300, 0), (20, 300, 137), (17, 51, 34)])
@pytest.mark.parametrize("energy", ENERGIES)
def test_more_goals_than_rows(
    energy: str, rows: int, goals: int, first: int, softplus: bool
) -> None:
    phi, psi = draw(goals, 40)
    options: dict[str, Any] = {"energy": energy, "columns": False, "softplus": softplus}
    assert_as_good_as_fp32(phi[:rows], psi, first=first, **options)
    # The same rows of the square problem have these scores.
    some = run(phi[:rows], psi, first=first, implementation="reference", **options)
    square = torch.zeros_like(phi)
    square[first : first + rows] = phi[:rows]
    whole = run(square, psi, implementation="reference", **options)
    for name in ("diagonal_B", "row_logsumexp_B", "row_rival_B", "row_sum_B"):
        of_rows = whole[name][first : first + rows]
        torch.testing.assert_close(some[name], of_rows, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("energy", ["norm", "dot"])
@pytest.mark.parametrize("kept", [0, 1, 100])
def test_columns_leave_out_the_rows_outside_of_a_mask(kept: int, energy: str) -> None:
    phi, psi = draw(140, 8)
    mask = torch.zeros(140, device=DEVICE)
    mask[torch.randperm(140, generator=torch.Generator().manual_seed(0))[:kept]] = 1.0
    scores = {
        name: run(phi, psi, energy=energy, implementation=name, row_mask_B=mask)
        for name in ("reference", "triton")
    }
    for name, value in scores["triton"].items():
        assert value.isfinite().all(), name
        torch.testing.assert_close(value, scores["reference"][name], rtol=1e-5, atol=1e-5)
    if kept:
        # The rows outside of the mask might as well not be there.
        energies = ENERGIES[energy].pairwise(phi[mask > 0].double(), psi.double())
        torch.testing.assert_close(
            scores["triton"]["column_logsumexp_B"].double(),
            energies.logsumexp(0),
            rtol=1e-5,
            atol=1e-5,
        )


def groups(goals: int, count: int) -> Tensor:
    return torch.randint(count, (goals,), generator=torch.Generator().manual_seed(1)).to(DEVICE)


@pytest.mark.parametrize(
    ("rows", "goals", "first", "count"),
    [(40, 40, 0, 1), (40, 40, 0, 1000), (140, 140, 0, 3), (20, 300, 137, 3)],
)
@pytest.mark.parametrize("energy", ["norm", "dot"])
def test_scores_and_gradients_with_groups(
    energy: str, rows: int, goals: int, first: int, count: int
) -> None:
    phi, psi = draw(goals, 12)
    mask = (torch.arange(rows) % 4 != 1).float().to(DEVICE)
    square = rows == goals
    assert_as_good_as_fp32(
        phi[:rows],
        psi,
        energy=energy,
        columns=square,
        row_mask_B=mask if square else None,
        group_C=groups(goals, count),
        first=first,
    )


@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("first", [0, 5])
def test_goals_of_a_group_are_no_negatives_of_each_other(first: int, energy: str) -> None:
    phi, psi = (points.double() for points in draw(20, 6))
    rows, group = phi[first : first + 9], groups(20, 3)
    columns = first == 0
    rows = phi if columns else rows
    scores = pair_scores(
        rows,
        psi,
        energy=energy,
        columns=columns,
        softplus=True,
        group_C=group,
        first=first,
        implementation="reference",
    )
    energies = ENERGIES[energy].pairwise(rows, psi)
    for i in range(len(rows)):
        own = first + i
        rivals = [j for j in range(20) if group[j] != group[own]]
        kept = energies[i, [own, *rivals]]
        assert torch.isclose(scores.row_logsumexp_B[i], kept.logsumexp(0))
        assert torch.isclose(scores.row_rival_B[i], kept[1:].max())
        assert scores.row_softplus_B is not None
        assert torch.isclose(scores.row_softplus_B[i], torch.nn.functional.softplus(kept).sum())
        assert torch.isclose(scores.row_sum_B[i], energies[i].sum())
        if columns:
            assert scores.column_logsumexp_B is not None
            of_column = energies[[own, *rivals], i].logsumexp(0)
            assert torch.isclose(scores.column_logsumexp_B[i], of_column)


@pytest.mark.parametrize("energy", ENERGIES)
def test_equal_rows(energy: str) -> None:
    phi, _ = draw(20, 8)
    phi[1] = phi[0]
    # At distance zero, the gradient of the norm is a difference of numbers of this size.
    steep = 1000.0 * phi.abs().max().item() if energy == "norm" else 1.0
    assert_as_good_as_fp32(phi, phi.clone(), energy=energy, scale=steep)
    constant = torch.full((5, 8), 3.0, device=DEVICE)
    grads = run(constant, constant.clone(), energy=energy, implementation="triton")
    if energy in ("norm", "l2"):
        assert grads["phi_grad"].abs().max() == 0.0
        assert grads["psi_grad"].abs().max() == 0.0


@pytest.mark.parametrize("energy", ENERGIES)
def test_large_energies(energy: str) -> None:
    # Of thousands for "l2" and "dot": their exponentials overflow and vanish. Such energies are up
    # to 0.002 apart in fp32, and on a GPU the two kernels add them up in different orders.
    phi, psi = draw(33, 16, scale=30.0)
    largest = ENERGIES[energy].pairwise(phi, psi).abs().max() * phi.abs().max()
    scale = largest.item() if energy in ("l2", "dot") else 1.0
    assert_as_good_as_fp32(phi, psi, energy=energy, scale=scale)


@pytest.mark.parametrize("energy", ["norm", "l2"])
def test_distances_far_from_the_origin(energy: str) -> None:
    phi, psi = (x + 1000.0 for x in draw(33, 16))
    assert_as_good_as_fp32(phi, psi, energy=energy)


@pytest.mark.parametrize("value", [-80.0, -20.0, -10.0, 0.0, 10.0, 100.0])
def test_softplus_keeps_its_digits(value: float) -> None:
    phi, psi = torch.tensor([[value]], device=DEVICE), torch.ones(1, 1, device=DEVICE)
    ours = run(phi, psi, energy="dot", implementation="triton")
    exact = run(phi, psi, energy="dot", implementation="reference", dtype=torch.float64)
    # exp is computed to about 1e-5 of the result at the end of its range.
    torch.testing.assert_close(ours["row_softplus_B"], exact["row_softplus_B"], rtol=2e-5, atol=0.0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_is_not_swallowed() -> None:
    phi, psi = draw(20, 8)
    phi[3, 2] = torch.nan
    scores = run(phi, psi, energy="norm", implementation="triton")
    assert scores["row_logsumexp_B"].isnan().nonzero().flatten().tolist() == [3]
    assert scores["column_logsumexp_B"].isnan().all()
    assert scores["phi_grad"][3].isnan().all()


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_critic_loss_of_either_implementation(name: str) -> None:
    phi, psi = draw(12, 5)
    kind = CONTRASTIVE_LOSSES[name]

    def loss_of(implementation: str) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        x = phi.clone().requires_grad_()
        scores = pair_scores(
            x,
            psi,
            energy="norm",
            columns=kind.columns,
            softplus=kind.softplus,
            implementation=implementation,  # type: ignore[arg-type]
        )
        loss, aux = critic_loss(scores, contrastive_loss=name, logsumexp_penalty=0.1)
        loss.backward()
        assert x.grad is not None
        return loss.detach(), aux, x.grad

    torch.testing.assert_close(loss_of("triton"), loss_of("reference"), rtol=1e-5, atol=1e-6)


def test_strided_inputs_and_bitwise_repeatable() -> None:
    phi, psi = draw(40, 24)
    strided = phi.T.contiguous().T, torch.cat([psi, psi], 1)[:, 24:]
    assert not any(x.is_contiguous() for x in strided)
    first, second, third = (
        run(*pair, energy="norm", implementation="triton")
        for pair in ((phi, psi), (phi, psi), strided)
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]) and torch.equal(value, third[name]), name


def test_an_output_that_is_not_written_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Idle:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            return lambda *args, **kwargs: None

    monkeypatch.setattr(op, "infonce_fwd_kernel", Idle())
    scores = pair_scores(
        *draw(3, 2), energy="dot", columns=True, softplus=True, implementation="triton"
    )
    assert all(x.isnan().all() for x in scores[:6])


def test_no_matrix_of_pairs_is_made(monkeypatch: pytest.MonkeyPatch, allocated: list[int]) -> None:
    # As for large batches, whose programs outnumber the multiprocessors and are not split.
    monkeypatch.setattr(kernel, "multiprocessors", lambda device: 1)
    batch, size = 128, 8
    phi, psi = draw(batch, size)
    with LargestTensor() as watch:
        # The launchers themselves: inside an op, nothing can be watched.
        scores = op.infonce_fwd(phi, psi, None, None, 0, "norm", True, True)
        kept = scores[1], scores[2], scores[6]
        op.infonce_bwd(phi, psi, None, None, *kept, *scores[:4], 0, "norm", True, True)
        run(phi, psi, energy="cosine", implementation="triton")
    # Under the interpreter, the largest is its copy of both gradients, counted in bytes.
    assert batch * size <= max(watch.numel, *allocated) <= 8 * batch * size < batch * batch


@pytest.mark.parametrize("columns", [False, True])
@pytest.mark.parametrize("energy", ["norm", "dot"])
def test_registration(
    monkeypatch: pytest.MonkeyPatch, allocated: list[int], energy: str, columns: bool
) -> None:
    # opcheck compares outputs of several runs, and NaN is not equal to itself.
    monkeypatch.undo()
    phi, psi = (x.requires_grad_() for x in draw(5, 3))
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0], device=DEVICE) if columns else None
    group = groups(5, 3) if columns else None
    args = (phi, psi, mask, group, 0, energy, columns, not columns)
    torch.library.opcheck(torch.ops.torch_crl.pair_scores, args)
    upstream = torch.ones(5, device=DEVICE)
    offset = phi.detach().mean(0)
    rest = (mask, group, upstream, upstream, offset, *[upstream] * 4, *args[4:])
    backward = torch.ops.torch_crl.pair_scores_backward
    torch.library.opcheck(backward, (phi.detach(), psi.detach(), *rest))


def fails(match: str, phi: Tensor, psi: Tensor, **options: Any) -> None:
    settings: dict[str, Any] = {"energy": "norm", "implementation": "triton"}
    with pytest.raises(ValueError, match=match):
        pair_scores(phi, psi, **settings | options)


def test_errors_say_what_was_given_and_what_is_allowed() -> None:
    phi, psi = draw(4, 3)
    fails(r"phi \(4, 3\) and psi \(4, 2\) must be \[B, R\]", phi, psi[:, :2])
    fails(r"4 rows from column 0 on have no goal each among 2", phi, psi[:2])
    fails(r"2 rows from column 3 on have no goal each among 4", phi[:2], psi, first=3)
    fails("as many rows as goals, got 2 and 4", phi[:2], psi, columns=True)
    fails(r"phi \(3,\) and psi \(3,\)", phi[0], psi[0])
    fails(r"phi \(0, 3\)", phi[:0], psi[:0])
    fails(r"'l1' is unknown; choose one of norm, l2, dot, cosine", phi, psi, energy="l1")
    wrong = "'cuda' is unknown; choose one of reference, numba, triton"
    fails(wrong, phi, psi, implementation="cuda")
    fails("phi is torch.float64; .* takes torch.float32", phi.double(), psi.double())
    fails("psi is torch.float16; .* takes torch.float32", phi, psi.half())
    fails("psi is on meta", phi, psi.to("meta"))
    huge = torch.ones(1, device=DEVICE).expand(2**20, 2**10)
    fails(r"fewer than 2\^30", huge, huge)


def test_interpreter_is_not_a_silent_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "_INTERPRETED", False)
    phi, psi = draw(4, 3)
    fails("phi is on cpu; .* takes tensors of one CUDA device", phi.cpu(), psi.cpu())


def jobs_of(size: int, energy: str, arch: int, *, grouped: bool) -> list[Job]:
    launch = kernel.choose_launch(size)
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    options["maxnreg"] = kernel.REGISTERS
    constants = {"R": size, "ENERGY": energy, "COLUMNS": True, "SOFTPLUS": True}
    constants |= {"MASKED": grouped, "GROUPED": grouped}
    constants |= {name: getattr(launch, name) for name in ("BM", "BN", "BK", "BR")}
    jobs = []
    for name in ("infonce_fwd_kernel", "infonce_bwd_kernel"):
        arguments = getattr(kernel, name).arg_names
        of_kernel = {key: value for key, value in constants.items() if key in arguments}
        types = {argument: "*fp32" for argument in arguments if argument not in of_kernel}
        types |= dict.fromkeys(("B", "C", "first", "chunk"), "i32") | {"p_group": "*i64"}
        jobs.append(Job(kernel.__name__, name, types, of_kernel, options, arch))
    return jobs


def join_job() -> Job:
    arguments = kernel.infonce_join_kernel.arg_names
    constants = {"COLUMNS": True, "SOFTPLUS": True, "BB": op.JOINED}
    types = {each: "*fp32" for each in arguments if each.startswith("p_")}
    types |= {"B": "i32", "splits": "i32"}
    options = {"num_warps": 4}
    return Job(kernel.__name__, "infonce_join_kernel", types, constants, options, 90)


@limits_of_compiler
def test_compiles_without_spills() -> None:
    # On each architecture the norm with groups needs the most registers, and all need equal memory.
    cases = [(arch, "norm", True) for arch in SHARED_MEMORY]
    cases += [(90, "norm", False), (90, "dot", False)]
    jobs = [
        job
        for arch, energy, grouped in cases
        for size in (32, 64, 512)
        for job in jobs_of(size, energy, arch, grouped=grouped)
    ]
    jobs.append(join_job())
    for job, used in zip(jobs, compile_all(jobs), strict=True):
        assert used.stack_bytes == 0, (job, used)
        assert used.shared_bytes <= SHARED_MEMORY[job.arch], (job, used)
