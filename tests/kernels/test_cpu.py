"""The kernels for one CPU core against plain torch in fp64. Compiling them takes some seconds."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_same_run
from tests.kernels.check import assert_as_exact, error, poisoned
from tests.kernels.test_relabel import ends_of_the_range, filled, uniforms
from torch_crl.agent.compute import Compute, Tower
from torch_crl.agent.losses import CONTRASTIVE_LOSSES, critic_loss
from torch_crl.agent.networks import ResidualTower, run_towers
from torch_crl.agent.sizes import TowerSizes
from torch_crl.kernels.blas import multiplies_bf16
from torch_crl.kernels.infonce import ENERGIES, pair_scores
from torch_crl.kernels.relabel import RelabeledBatch, Ring, relabel
from torch_crl.kernels.squashed_gaussian import squashed_gaussian
from torch_crl.recipe import compute_choice
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.system import checkpoint
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun
from torch_crl.training.trainer import train

pytest.importorskip("numba", reason="numba is not installed")

INPUT, OUTPUT = 5, 3
Results = dict[str, Tensor]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def results(outputs: dict[str, Tensor], leaves: dict[str, Tensor]) -> Results:
    """The outputs, and the gradients of the leaves for random upstream gradients."""
    live = [output for output in outputs.values() if output.requires_grad]
    upstream = [normal(*each.shape, seed=i).to(each.dtype) for i, each in enumerate(live)]
    torch.autograd.backward(live, upstream)
    found = {name: output.detach() for name, output in outputs.items()}
    gradients = {f"d{name}": x.grad for name, x in leaves.items() if x.grad is not None}
    return found | gradients


def assert_exact(run: Callable[[Tower, torch.dtype], Results], *, floor: float = 1e-13) -> None:
    truth, plain = (run("reference", dtype) for dtype in (torch.float64, torch.float32))
    with poisoned():
        fp64, fp32 = (run("numba", dtype) for dtype in (torch.float64, torch.float32))
    assert fp32.keys() == fp64.keys() == truth.keys()
    assert_as_exact(fp32, plain, truth)
    assert_as_exact(fp64, truth, truth, floor=floor)


def made_towers(
    sizes: TowerSizes, tower: Tower, dtype: torch.dtype, precision: str = "fp32"
) -> list[ResidualTower]:
    """Two towers as after some training: no bias is 0 and no LayerNorm weight is 1."""
    compute = Compute(tower=tower, precision=precision)
    made = []
    for seed in (1, 2):
        each = ResidualTower(sizes, generator=Generator().manual_seed(seed), compute=compute).to(
            dtype
        )
        with torch.no_grad():
            for index, parameter in enumerate(each.parameters()):
                parameter += 0.1 * normal(*parameter.shape, seed=10 * seed + index)
        made.append(each)
    return made


@pytest.mark.parametrize("block", ["published", "pre_norm"])
@pytest.mark.parametrize("activation", ["swish", "relu"])
@pytest.mark.parametrize(("depth", "width", "rows"), [(4, 16, 1), (8, 12, 7), (4, 64, 33)])
def test_towers_are_as_exact_as_plain_torch(
    depth: int, width: int, rows: int, activation: Any, block: Any
) -> None:
    sizes = TowerSizes(
        input_size=INPUT,
        output_size=OUTPUT,
        depth=depth,
        width=width,
        activation=activation,
        block=block,
        branch_scale=0.7,
    )

    def run(tower: Tower, dtype: torch.dtype) -> Results:
        return passed(made_towers(sizes, tower, dtype), rows)

    assert_exact(run)


def passed(towers: list[ResidualTower], rows: int) -> Results:
    """What two towers make of random rows, some of them frozen, and the gradients."""
    dtype = towers[0].weight.dtype
    x, y, frozen = (
        normal(rows + index, INPUT, seed=index).to(dtype).requires_grad_() for index in range(3)
    )
    outputs = run_towers([x, y], towers, frozen=frozen)
    leaves = {"x": x, "y": y, "frozen": frozen}
    for index, each in enumerate(towers):
        leaves |= {f"{name} {index}": p for name, p in each.named_parameters()}
    return results({f"output {i}": each for i, each in enumerate(outputs)}, leaves)


@pytest.mark.skipif(not multiplies_bf16(), reason="this processor does not multiply bf16")
@pytest.mark.parametrize("block", ["published", "pre_norm"])
@pytest.mark.parametrize(("depth", "width", "rows"), [(4, 16, 1), (8, 12, 7), (4, 64, 33)])
def test_towers_in_bf16_are_those_of_plain_torch(
    depth: int, width: int, rows: int, block: Any
) -> None:
    sizes = TowerSizes(input_size=INPUT, output_size=OUTPUT, depth=depth, width=width, block=block)
    truth = passed(made_towers(sizes, "reference", torch.float64, "bf16"), rows)
    plain = passed(made_towers(sizes, "reference", torch.float32, "bf16"), rows)
    exact = passed(made_towers(sizes, "reference", torch.float64), rows)
    ours = passed(made_towers(sizes, "numba", torch.float32, "bf16"), rows)
    # A number that is nearly between two of bf16 is rounded either way, here and in plain torch.
    assert_as_exact(ours, plain, truth, floor=5e-4)
    # It is rounded at all.
    assert error(ours["output 0"], exact["output 0"]) > 5e-4


@pytest.mark.parametrize("bits", [0x3F808000, 0x3F818000, 0x3F808001, 0x7F800001, 0xFF7FFFFF])
def test_numbers_are_rounded_to_bf16_as_torch_does(bits: int) -> None:
    from torch_crl.kernels.cpu import entry, to_bf16

    numbers = torch.tensor([[bits - 2**32 if bits >= 2**31 else bits]], dtype=torch.int32)
    x = numbers.view(torch.float32)
    found = torch.empty(1, 1, dtype=torch.uint16)
    entry(to_bf16)(x.numpy(), found.numpy())
    theirs, ours = x.bfloat16().item(), found.view(torch.bfloat16).item()
    assert ours == theirs or (ours != ours and theirs != theirs)


@pytest.mark.parametrize("block", ["published", "shared"])
def test_a_frozen_tower_has_no_gradient_but_that_of_its_input(block: Any) -> None:
    sizes = TowerSizes(input_size=INPUT, output_size=OUTPUT, depth=8, width=8, block=block)
    found = {}
    for kind in ("reference", "numba"):
        tower, _ = made_towers(sizes, kind, torch.float64)
        x = normal(2, 3, INPUT, seed=0).requires_grad_()
        tower(x, frozen=True).sum().backward()
        assert all(parameter.grad is None for parameter in tower.parameters())
        found[kind] = x.grad
    torch.testing.assert_close(found["numba"], found["reference"])


def test_parameters_that_move_are_found_again() -> None:
    sizes = TowerSizes(input_size=INPUT, output_size=OUTPUT, depth=4, width=8)
    tower, _ = made_towers(sizes, "numba", torch.float32)
    x = normal(4, INPUT, seed=0)
    before = tower(x.float())
    torch.testing.assert_close(tower.double()(x).float(), before, rtol=1e-5, atol=1e-5)
    tower.output_bias = torch.nn.Parameter(torch.full((OUTPUT,), 100.0, dtype=torch.float64))
    assert (tower(x) > 50).all()


def test_two_passes_before_their_backward_do_not_share_memory() -> None:
    sizes = TowerSizes(input_size=INPUT, output_size=OUTPUT, depth=4, width=8)
    gradients = []
    for kind in ("reference", "numba"):
        tower, _ = made_towers(sizes, kind, torch.float64)
        first, second = (tower(normal(6, INPUT, seed=seed)).square().sum() for seed in (0, 1))
        first.backward(retain_graph=True)
        second.backward()
        first.backward()
        gradients.append([parameter.grad for parameter in tower.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])


@torch.no_grad()
def test_memory_does_not_grow_with_the_numbers_of_rows_that_are_met() -> None:
    from torch_crl.kernels.tower.cpu import Space

    sizes = TowerSizes(input_size=INPUT, output_size=OUTPUT, depth=4, width=8)
    reference, _ = made_towers(sizes, "reference", torch.float32)
    tower, _ = made_towers(sizes, "numba", torch.float32)
    for rows in (*range(1, 30), 3000):
        x = normal(rows, INPUT, seed=rows).float()
        torch.testing.assert_close(tower(x), reference(x), rtol=1e-4, atol=1e-4)
    kept = [key for key, unused in Space._unused.items() for _ in unused]
    assert len(kept) <= 8 and max(rows for _, rows, *_ in kept) == 1024


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("batch", [1, 3, 40])
@pytest.mark.parametrize("energy", ENERGIES)
def test_scores_are_as_exact_as_plain_torch(
    energy: str, batch: int, masked: bool, grouped: bool
) -> None:
    def run(tower: Tower, dtype: torch.dtype) -> Results:
        phi, psi = (normal(batch, 7, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
        mask = (torch.arange(batch) % 3 != 1).to(dtype)
        scores = pair_scores(
            phi,
            psi,
            energy=energy,
            columns=True,
            softplus=True,
            row_mask_B=mask if masked else None,
            group_C=torch.arange(batch) % 5 if grouped else None,
            implementation=Compute(tower=tower).other_kernels,
        )
        found = {name: x for name, x in scores._asdict().items() if isinstance(x, Tensor)}
        # The best rival of a single pair is none.
        if batch == 1:
            assert found.pop("row_rival_B").item() == -torch.inf
        return results(found, {"phi": phi, "psi": psi})

    assert_exact(run)


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_the_critics_loss_reads_only_what_it_asked_for(name: str) -> None:
    kind = CONTRASTIVE_LOSSES[name]

    def run(tower: Tower, dtype: torch.dtype) -> Results:
        phi, psi = (normal(20, 7, seed=seed).to(dtype).requires_grad_() for seed in (0, 1))
        scores = pair_scores(
            phi,
            psi,
            energy="norm",
            columns=kind.columns,
            softplus=kind.softplus,
            implementation=Compute(tower=tower).other_kernels,
        )
        loss, metrics = critic_loss(scores, contrastive_loss=name, logsumexp_penalty=0.1)
        return results({"loss": loss, **metrics}, {"phi": phi, "psi": psi})

    assert_exact(run)


def test_actions_and_densities_are_as_exact_as_plain_torch() -> None:
    def run(tower: Tower, dtype: torch.dtype) -> Results:
        output = (2 * normal(50, 6, seed=0)).to(dtype).requires_grad_()
        action, log_prob = squashed_gaussian(
            output,
            normal(50, 3, seed=1).to(dtype),
            implementation=Compute(tower=tower).other_kernels,
        )
        return results({"action": action, "log_prob": log_prob}, {"output": output})

    # 1 - action^2, of which the logarithm is taken, loses digits in the definition.
    assert_exact(run, floor=1e-11)


@pytest.mark.parametrize("where", ["phi", "weight", "bias"])
def test_nan_is_not_swallowed(where: str) -> None:
    sizes = TowerSizes(input_size=INPUT, output_size=OUTPUT, depth=4, width=8, activation="relu")
    tower, _ = made_towers(sizes, "numba", torch.float32)
    x = normal(6, INPUT, seed=0).float()
    if where == "phi":
        phi = x.clone()
        phi[2, 1] = torch.nan
        scores = pair_scores(phi, x, energy="norm", implementation="numba")
        assert scores.row_logsumexp_B.isnan().tolist() == [i == 2 for i in range(6)]
        return
    with torch.no_grad():
        getattr(tower, where)[1, 0] = torch.nan
    assert tower(x).isnan().all()


def test_code_of_other_sources_is_not_the_code_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch_crl.kernels.tower.cpu import backward_tower

    sizes = TowerSizes(input_size=INPUT, output_size=OUTPUT, depth=4, width=8)
    passed(made_towers(sizes, "numba", torch.float32), 3)
    on_disk = backward_tower._cache._cache_file
    assert on_disk._load_index()
    monkeypatch.setattr(on_disk, "_source_stamp", "other sources")
    assert not on_disk._load_index()


def test_the_first_compilation_is_told_and_code_from_the_disk_is_not() -> None:
    from numba import njit

    from torch_crl.kernels.cpu import entry, to_bf16, when_compiling

    def convert() -> None:
        entry(to_bf16)(np.ones((1, 1), np.float32), np.empty((1, 1), np.uint16))

    def compiled(module: str) -> None:
        def more(x: int) -> int:
            return x + 1

        more.__module__ = module
        assert njit(more)(1) == 2

    convert()
    told: list[str] = []
    with when_compiling(lambda: told.append("compiling")):
        convert()
        compiled("a_task_of_a_user")
        assert not told
        for _ in range(2):
            compiled("torch_crl.kernels.of_this_test")
    assert told == ["compiling"]


@pytest.mark.parametrize("lacks", ["folder", "room"])
def test_without_a_place_for_its_code_a_kernel_is_compiled_all_the_same(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba.core import caching, dispatcher

    from torch_crl.kernels.cpu import entry, products

    def fails(*_: Any) -> None:
        if lacks == "folder":
            raise RuntimeError("cannot cache function: no locator available")
        raise OSError("no space left on device")

    if lacks == "folder":
        monkeypatch.setattr(dispatcher, "FunctionCache", fails)
    else:
        monkeypatch.setattr(caching.FunctionCache, "save_overload", fails)
    assert entry(products(lambda x: x + 1))(1) == 2


def test_towers_of_other_blocks_are_refused() -> None:
    sizes = TowerSizes(
        input_size=INPUT, output_size=OUTPUT, depth=4, width=8, block="hyperspherical"
    )
    tower, _ = made_towers(sizes, "numba", torch.float32)
    with pytest.raises(ValueError, match="published, shared, pre_norm, got 'hyperspherical'"):
        tower(normal(2, INPUT, seed=0).float())


def test_what_the_kernels_do_not_take() -> None:
    tower, _ = made_towers(
        TowerSizes(input_size=INPUT, output_size=OUTPUT, depth=4, width=8), "numba", torch.float32
    )
    with pytest.raises(ValueError, match=r"got torch\.float32 on cpu, torch\.float64 on cpu"):
        tower(normal(2, INPUT, seed=0))
    with pytest.raises(ValueError, match="sizes of the operands of a product do not match"):
        tower(normal(2, INPUT + 1, seed=0).float())
    with pytest.raises(ValueError, match="implementation='reference'"):
        pair_scores(*torch.ones(2, 3, 4).half(), energy="dot", implementation="numba")


@pytest.mark.parametrize("window", [0, 2, 7, 1000])
@pytest.mark.parametrize("ends", [0.0, 0.2, 1.0])
def test_batches_of_a_replay_are_the_very_ones_of_plain_torch(ends: float, window: int) -> None:
    for written, chunk, discount in product([2, 17, 30, 31, 997], [1, 3], [0.01, 0.5, 0.99]):
        options: dict[str, Any] = {"goal_slice": (1, 3), "window": window}
        ring, position = filled(rows=30, num_envs=3, written=written, ends=ends, **options)
        options |= {"discount": discount, "chunk": chunk}
        uniform = torch.cat([uniforms(256, seed=written), ends_of_the_range()], 1).cpu()
        ring, position = Ring(*(each.cpu() for each in ring)), position.cpu()
        with poisoned():
            ours, theirs = (
                relabel(uniform, position, ring, implementation=by, **options)
                for by in ("numba", "reference")
            )
        for name, x, y in zip(RelabeledBatch._fields, ours, theirs, strict=True):
            assert torch.equal(x, y) and x.dtype == y.dtype, (name, written, chunk, discount)


def trained(recipe: Recipe) -> tuple[CrlRun, list[dict[str, float]]]:
    run = build_run(recipe)
    for _ in range(4):
        run.collect()
    return run, [{name: float(x) for name, x in run.update().items()} for _ in range(3)]


@pytest.mark.parametrize("objective", ["crl", "safe", "survival", "chrono"])
def test_updates_of_every_objective_equal_those_in_plain_torch(objective: str) -> None:
    of = "ant" if objective == "safe" else "reacher"
    recipe = tiny(of, algorithm={"objective": objective})
    plain, compiled = (
        trained(with_changes(recipe, system={"tower": tower}))[1]
        for tower in ("reference", "numba")
    )
    for ours, theirs in zip(compiled, plain, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-2, abs=1e-2)


def test_equal_runs_are_equal_in_every_bit() -> None:
    recipe = tiny(algorithm={"chunk": 3, "actor_goals": "mixed"}, system={"tower": "numba"})
    (first, _), (second, _) = trained(recipe), trained(recipe)
    theirs = second.named_parameters()
    for name, parameter in first.named_parameters().items():
        assert torch.equal(parameter, theirs[name]), name


def test_resuming_is_exact_and_other_kernels_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(compute_choice, "_UPDATES_WORTH_NUMBA", 0)
    recipe = tiny(budget={"checkpoints": 12, "evaluations": 1})
    train(recipe, tmp_path / "whole", show=False)
    train(recipe, tmp_path / "parts", show=False)
    (newest, *_) = RunDirectory(tmp_path / "parts").saved_checkpoints
    (newest / checkpoint.TENSORS).write_bytes(b"not a safetensors file")
    train(recipe, tmp_path / "parts", resume=True)
    assert "differ by rounding" not in "".join(capsys.readouterr())
    assert_same_run(tmp_path / "whole", tmp_path / "parts")

    monkeypatch.setattr(compute_choice, "_UPDATES_WORTH_NUMBA", 10**9)
    train(recipe, tmp_path / "parts", resume=True)
    told = "".join(capsys.readouterr())
    assert "computed until now as fp32, towers: numba" in told
    assert "from here on as fp32, towers: reference" in told


def test_results_do_not_depend_on_what_was_compiled_or_loaded_before(tmp_path: Path) -> None:
    """Equal runs are equal to the bit whether or not the first of them had to compile."""

    def digest(*arguments: str) -> str:
        command = [sys.executable, "-m", "tests.kernels.calls_of_loops", *arguments]
        options: Any = {"capture_output": True, "text": True, "check": True}
        environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
        return subprocess.run(command, env=environment, **options).stdout

    compiled, loaded, loaded_after_others = digest(), digest(), digest("alone")
    assert compiled == loaded == loaded_after_others


def test_exponential_and_tangent_are_exact_to_two_units_in_the_last_place() -> None:
    from numba import njit

    from torch_crl.kernels.cpu import exp_minus, tanh

    @njit
    def of_all(x: Any, exponentials: Any, tangents: Any) -> None:
        for i in range(len(x)):
            exponentials[i] = exp_minus(x[i])
            tangents[i] = tanh(x[i])

    small = torch.logspace(-30, 1.9, 100_000, dtype=torch.float64)
    x = torch.cat([small, -small, torch.linspace(-87.9, 86.9, 400_001)]).float()
    found = torch.empty(2, len(x))
    of_all(*(each.numpy() for each in (x, *found)))
    exact = torch.stack([torch.exp(-x.double()), torch.tanh(x.double())])
    unit = torch.finfo(torch.float32).eps * exact.abs()
    assert ((found - exact).abs() <= 2 * unit).all()

    ends = torch.tensor([torch.nan, torch.inf, -torch.inf])
    found = torch.empty(2, 3)
    of_all(*(each.numpy() for each in (ends, *found)))
    assert found[:, 0].isnan().all()
    assert found[0, 1] < 2e-38 and found[0, 2] > 1e38
    assert found[1, 1:].tolist() == [1.0, -1.0]


def test_slopes_of_swish_near_zero_are_exact() -> None:
    # They are read off swish(z) / z, of which z must be that of the forward pass to the bit.
    from torch_crl.kernels.cpu import entry
    from torch_crl.kernels.norm_act import cpu as norm_act

    forward_rows, backward_rows = map(entry, (norm_act.forward_rows, norm_act.backward_rows))
    rows, width = 16, 48
    x, dout = normal(rows, width, seed=0).float(), normal(rows, width, seed=1).float()
    before, weight = torch.zeros(width), normal(width, seed=2).float()
    normed, roots, out = x.clone(), torch.empty(rows), torch.empty(rows, width)

    def forward(bias: Tensor) -> None:
        normed.copy_(x)
        tensors = (normed, before, weight, bias, x)
        forward_rows(
            *(each.numpy() for each in tensors),
            False,
            False,
            np.float32(1.0),
            roots.numpy(),
            out.numpy(),
        )

    forward(torch.zeros(width))
    # Each column is nearly zero, or zero, in one row.
    bias = -(normed * weight)[torch.arange(width) % rows, torch.arange(width)]
    bias[::3] = torch.nextafter(bias[::3], torch.tensor(torch.inf))
    forward(bias)
    assert (out.abs() < 1e-6).sum() >= width
    found = [torch.empty(rows, 2), torch.empty(rows, width), *torch.empty(3, width)]
    sums, dx, dbefore, dweight, dbias = (each.numpy() for each in found)
    tensors = (dout, normed, weight, bias, out)
    backward_rows(
        *(each.numpy() for each in tensors), False, False, np.float32(1.0), roots.numpy(), rows,
        sums, dx, dbefore, dweight, dbias,
    )  # fmt: skip

    leaves = [each.double().requires_grad_() for each in (x, before, weight, bias)]
    shifted = leaves[0] + leaves[1]
    exact = torch.nn.functional.layer_norm(shifted, (width,), leaves[2], leaves[3], eps=1e-6)
    gradients = torch.autograd.grad(torch.nn.functional.silu(exact), leaves, dout.double())
    for ours, theirs in zip((dx, dbefore, dweight, dbias), gradients, strict=True):
        scale = theirs.abs().max()
        assert (torch.from_numpy(ours).double() - theirs).abs().max() < 2e-6 * scale
