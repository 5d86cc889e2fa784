"""The tower's kernels against plain torch in fp64, and the code that they compile to."""

import itertools
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.kernels.check import DEVICE, assert_as_exact, error, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all, limits_of_compiler
from torch_crl.agent.sizes import TowerSizes
from torch_crl.kernels.tower import BLOCKS, PERSISTENT_MEMORY, Stack, tower

needs_cuda = pytest.mark.skipif(DEVICE == "cpu", reason="no CUDA device")
SIZES = [
    # layers, width, live rows, frozen rows
    pytest.param(4, 128, [1], 0, id="one-row"),
    pytest.param(4, 256, [3], 0, id="three-rows"),
    pytest.param(8, 128, [63], 0, id="63-rows"),
    pytest.param(16, 128, [20, 5], 17, id="two-towers-and-frozen"),
    pytest.param(4, 128, [16, 16], 16, id="whole-tiles"),
    # Numbers of rows that the kernels for Hopper take; there are others for many rows.
    pytest.param(8, 256, [24, 8], 16, id="eights"),
    pytest.param(4, 256, [0], 16, id="eights-all-frozen"),
    pytest.param(8, 256, [512, 512], 512, id="sixteens", marks=needs_cuda),
]


each_block = pytest.mark.parametrize("block", BLOCKS)


def stack(layers: int, width: int, generator: Generator) -> Stack:
    """Parameters as after some training: no bias is 0 and no LayerNorm weight 1."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Stack(
        normal(layers, width, width) / (3 * width) ** 0.5,
        0.1 * normal(layers, width),
        1 + 0.1 * normal(layers, width),
        0.1 * normal(layers, width),
    )


def run(
    layers: int,
    width: int,
    live: list[int],
    frozen: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: str = DEVICE,
    **options: Any,
) -> dict[str, Tensor]:
    """y and all gradients for a random upstream gradient; equal numbers for equal sizes."""
    generator = Generator().manual_seed(layers * width)
    stacks = [stack(layers, width, generator) for _ in live]
    rows = sum(live) + frozen
    x, upstream = (
        torch.randn(rows, width, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    stacks = [
        Stack(*(part.to(device, dtype).requires_grad_() for part in stack)) for stack in stacks
    ]
    x = x.to(device, dtype).requires_grad_()
    *parts, rest = x.split([*live, frozen])
    y = torch.cat(tower(parts, stacks, frozen=rest if frozen else None, **options))
    y.backward(upstream.to(device, dtype) / rows)
    results = {"y": y.detach(), "dx": x.grad}
    for index, parameters in enumerate(stacks):
        for name, parameter in parameters._asdict().items():
            results[f"d{name}{index}"] = parameter.grad
    return {name: value for name, value in results.items() if value is not None}


def exact(*sizes: Any, **options: Any) -> dict[str, Tensor]:
    return run(*sizes, dtype=torch.float64, device="cpu", **options)


# The interpreter multiplies the bit patterns of bf16 numbers, so bf16 needs a GPU.
@pytest.mark.parametrize("precision", ["fp16", pytest.param("bf16", marks=needs_cuda)])
@pytest.mark.parametrize(("layers", "width", "live", "frozen"), SIZES)
@each_block
def test_persistent_kernel_is_as_exact_as_plain_torch(
    layers: int, width: int, live: list[int], frozen: int, precision: str, block: str
) -> None:
    sizes, options = (layers, width, live, frozen), {"precision": precision, "block": block}
    with poisoned():
        results = run(*sizes, implementation="persistent", **options)
    assert_as_exact(results, run(*sizes, **options), exact(*sizes, block=block))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("width", [96, 128])
@each_block
def test_a_kernel_a_layer_is_as_exact_as_plain_torch(
    width: int, precision: str, block: str
) -> None:
    sizes, options = (8, width, [5, 3], 2), {"precision": precision, "block": block}
    results = run(*sizes, implementation="norm_act", **options)
    assert_as_exact(results, run(*sizes, **options), exact(*sizes, block=block))


@pytest.mark.parametrize("implementation", ["persistent", "norm_act"])
@each_block
def test_scaled_branches(implementation: str, block: str) -> None:
    sizes, options = (8, 128, [6, 5], 4), {"block": block, "branch_scale": 0.25}
    results = run(*sizes, implementation=implementation, precision="fp16", **options)
    truth = exact(*sizes, **options)
    assert_as_exact(results, run(*sizes, precision="fp16", **options), truth)
    assert error(truth["y"], exact(*sizes, block=block)["y"]) > 0.1


@pytest.mark.parametrize("implementation", ["persistent", "norm_act"])
@each_block
def test_relu(implementation: str, block: str) -> None:
    # A saved value that rounds across zero flips a derivative, so few values and a wide margin.
    sizes, options = (4, 128, [2], 0), {"activation": "relu", "block": block}
    results = run(*sizes, implementation=implementation, precision="fp16", **options)
    truth = exact(*sizes, **options)
    assert error(results["y"], truth["y"]) < 1e-3
    assert all(error(results[name], truth[name]) < 5e-2 for name in truth)


@pytest.mark.parametrize("implementation", ["reference", "norm_act", "persistent"])
@each_block
def test_recomputing_changes_no_bit(implementation: str, block: str) -> None:
    sizes = (12, 128, [5, 3], 2)
    options = {"implementation": implementation, "precision": "fp16", "block": block}
    kept, recomputed = run(*sizes, **options), run(*sizes, recompute=8, **options)
    for name, value in kept.items():
        if DEVICE == "cuda" and implementation == "norm_act":
            # Sums over a row have another order in a kernel that keeps nothing, so that some inputs
            # of matmuls are rounded to another fp16 number.
            assert error(recomputed[name], value.cpu().double()) < 1e-3, name
        elif DEVICE == "cuda" and name.startswith("dweight"):
            # cuBLAS may take another order of sums for another number of layers.
            torch.testing.assert_close(recomputed[name], value, rtol=1e-6, atol=1e-7)
        else:
            assert value.equal(recomputed[name]), name


def test_frozen_rows_give_the_parameters_no_gradient() -> None:
    layers, width = 4, 128
    generator = Generator().manual_seed(0)
    parameters = Stack(
        *(part.to(DEVICE, torch.float32) for part in stack(layers, width, generator))
    )
    x = torch.randn(24, width, generator=generator).to(DEVICE)
    for implementation in ("reference", "persistent"):
        gradients = []
        for frozen in (16, 0):
            leaves = Stack(*(part.clone().requires_grad_() for part in parameters))
            rows = x[: 8 + frozen].clone().requires_grad_()
            parts = tower(
                [rows[:8]],
                [leaves],
                frozen=rows[8:] if frozen else None,
                precision="fp16",
                implementation=implementation,
                gradient_scale=8.0,
            )
            torch.cat(parts).square().sum().backward()
            assert rows.grad is not None and (rows.grad != 0).any(1).all()
            gradients.append([leaf.grad for leaf in leaves])
        for with_frozen, without in zip(*gradients, strict=True):
            assert with_frozen is not None and without is not None
            torch.testing.assert_close(with_frozen, without, rtol=1e-6, atol=1e-7)


def test_small_gradients_survive_fp16_by_their_scale() -> None:
    # Gradients of 1e-8 are below fp16's smallest number, 6e-8.
    generator = Generator().manual_seed(0)
    parameters = stack(4, 128, generator)
    for scale, lost in ((1.0, True), (2.0**20, False)):
        for implementation in ("reference", "persistent"):
            leaves = Stack(*(p.to(DEVICE, torch.float32).requires_grad_() for p in parameters))
            x = torch.randn(4, 128, generator=Generator().manual_seed(1)).to(DEVICE)
            (y,) = tower(
                [x],
                [leaves],
                precision="fp16",
                implementation=implementation,
                gradient_scale=scale,
            )
            (y.sum() * 1e-8).backward()
            assert leaves.weight_LDD.grad is not None
            assert (leaves.weight_LDD.grad.norm() == 0) == lost


def test_nothing_is_kept_without_gradients() -> None:
    generator = Generator().manual_seed(0)
    parameters = Stack(*(p.to(DEVICE, torch.float32) for p in stack(4, 128, generator)))
    x = torch.randn(5, 128, generator=generator).to(DEVICE)
    (y,) = tower([x], [parameters], implementation="persistent", precision="fp16")
    (plain,) = tower([x], [parameters], implementation="reference", precision="fp16")
    assert not y.requires_grad
    assert error(y, plain.cpu().double()) < 1e-4


def repeated_or_written_out(
    block: str, width: int, live: list[int], frozen: int, *, recompute: int, written_out: bool
) -> dict[str, Tensor]:
    """Outputs and gradients of four layers that are applied three times in turn."""
    from torch_crl.kernels.tower.op import tower_rows

    generator = Generator().manual_seed(3)
    stacks = [
        Stack(*(p.to(DEVICE, torch.float32).requires_grad_() for p in stack(4, width, generator)))
        for _ in live
    ]
    x, dy = (
        torch.randn(sum(live) + frozen, width, generator=generator).to(DEVICE) for _ in range(2)
    )
    x.requires_grad_()
    given = stacks
    if written_out:
        given = [Stack(*(p.repeat(3, *[1] * (p.dim() - 1)) for p in each)) for each in stacks]
    y = tower_rows(
        x,
        given,
        live,
        block=block,
        activation="swish",
        branch_scale=0.5,
        precision="fp16",
        gradient_scale=64.0,
        recompute=recompute,
        depth=12,
    )
    (y * dy).sum().backward()
    gradients = {
        f"{name} of {tower}": leaf.grad
        for tower, each in enumerate(stacks)
        for name, leaf in each._asdict().items()
    }
    return {"y": y.detach(), "dx": x.grad, **gradients}  # type: ignore[dict-item]


def assert_equal_when_repeated(block: str, width: int, live: list[int], frozen: int) -> None:
    truth = repeated_or_written_out(block, width, live, frozen, recompute=0, written_out=True)
    for recompute in (0, 8):
        with poisoned():
            found = repeated_or_written_out(
                block, width, live, frozen, recompute=recompute, written_out=False
            )
        for name, value in found.items():
            # Only the sums over layers may be in another order.
            assert error(value, truth[name].cpu().double()) < (1e-6 if "of" in name else 1e-30), (
                name
            )


@each_block
def test_layers_that_are_applied_in_turn_are_those_written_out(block: str) -> None:
    assert_equal_when_repeated(block, 128, [5, 19], 3)


@pytest.mark.parametrize("live", [6, 0])
@each_block
def test_what_the_kernels_keep_is_what_a_plan_counts(block: Any, live: int) -> None:
    from torch_crl.kernels.tower.passes import Layers, empty_kept

    def bytes_of(depth: int) -> tuple[int, int]:
        """As counted, and as kept with the gradients of the matmuls."""
        weight16 = torch.empty(1, depth, 128, 128, dtype=torch.float16)
        vectors = [[torch.empty(depth, 128)] * 3]
        layers = Layers(weight16, vectors, depth, (live, 0, 6 - live), block, False, 1)
        kept = empty_kept(torch.empty(6, 128), layers)
        sizes = TowerSizes(input_size=3, depth=depth, width=128, output_size=2, block=block)
        counted = sizes.saved_bytes(trained=live > 0, fused=True, recompute=0)
        return 6 * counted, sum(each.nbytes for each in (*kept, kept[0]))

    (counted, kept), (counted_deeper, kept_deeper) = bytes_of(4), bytes_of(8)
    assert counted_deeper - counted == kept_deeper - kept


def test_torch_library_sees_one_op_with_all_that_it_promises() -> None:
    from torch_crl.kernels.tower import op

    generator = Generator().manual_seed(0)
    parameters = [p.to(DEVICE, torch.float32) for p in stack(4, 128, generator)]
    x = torch.randn(5, 128, generator=generator).to(DEVICE)
    for leaf in (x, *parameters):
        leaf.requires_grad_()
    for recompute, block in itertools.product((0, 4), BLOCKS):
        depth = 8 if recompute else 4
        options = (depth, [3], 2, block, "swish", 0.5, recompute, 4.0, True)
        torch.library.opcheck(
            op.tower_forward,
            (x, parameters[:1], parameters[0].detach().half()[None], parameters[1:], *options),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"implementation": "fast"}, "implementation must be one of"),
        ({"block": "hyperspherical"}, r"block must be one of \('published', 'pre_norm'\)"),
        ({"precision": "fp8"}, "precision must be one of"),
        ({"implementation": "persistent", "precision": "fp32"}, "'norm_act' has fewer limits"),
        ({"rows": [torch.zeros(5, 64)]}, r"rows must be \[B, 128\], got \[\(5, 64\)\]"),
        ({"recompute": 3}, "multiples of 4"),
        ({"rows": [torch.zeros(2, 128)] * 2}, "stacks and rows for each; got 1 and 2"),
    ],
)
def test_what_does_not_fit_is_told(change: dict[str, Any], told: str) -> None:
    parameters = Stack(*(p.float() for p in stack(4, 128, Generator().manual_seed(0))))
    with pytest.raises(ValueError, match=told):
        tower(**({"rows": [torch.zeros(5, 128)], "stacks": [parameters]} | change))


def jobs(kernel_name: str) -> dict[str, Job]:
    """Every tile and generation in fp16, one in bf16, and one with layers applied in turn."""
    from torch_crl.kernels.tower import pre_norm, published
    from torch_crl.kernels.tower.passes import TILES

    module = pre_norm if kernel_name.startswith("pre_norm") else published
    arguments = getattr(module, kernel_name).arg_names
    found = {}
    sizes = list(itertools.product(TILES, (0, 1), SHARED_MEMORY, ["fp16"]))
    cases = [(*size, 0) for size in sizes] + [(256, 0, 90, "bf16", 0), (256, 0, 90, "fp16", 4)]
    for width, tile, arch, narrow, own in cases:
        chosen = TILES[width][tile]
        rows, stages = chosen.rows, chosen.stages
        constants = {"SAVE": True, "RELU": False, "EPS": 1e-6, "BLOCK": 4, "OWN": own}
        constants |= {"D": width, "BM": rows, "STAGES": stages}
        constants = {name: value for name, value in constants.items() if name in arguments}
        types = {name: argument_type(name, narrow) for name in arguments if name not in constants}
        options = chosen.options | {"num_stages": stages}
        job = Job(module.__name__, kernel_name, types, constants, options, arch)
        name = f"width {width}, {rows} rows, {narrow}, sm_{arch}"
        found[name + (", in turn" if own else "")] = job
    return found


def argument_type(name: str, narrow: str) -> str:
    if name in ("p_weight", "p_input", "p_xhat", "p_kept", "p_dh"):
        return f"*{narrow}"
    if name.startswith("p_"):
        return "*fp32"
    return "fp32" if name in ("scale", "branch_scale") else "i32"


# Of 1,900 instructions; on a generation that is checked and not tuned for.
LARGEST = "width 256, 32 rows, fp16, sm_100"
KNOWN_SPILLS = {
    ("tower_bwd_kernel", LARGEST): 3,
    ("pre_norm_fwd_kernel", LARGEST): 5,
    ("pre_norm_bwd_kernel", LARGEST): 15,
}


@limits_of_compiler
@pytest.mark.parametrize(
    "kernel_name",
    ["tower_fwd_kernel", "tower_bwd_kernel", "pre_norm_fwd_kernel", "pre_norm_bwd_kernel"],
)
def test_every_tile_compiles_fits_and_spills_nothing_in_its_loop(kernel_name: str) -> None:
    wanted = jobs(kernel_name)
    for (name, job), used in zip(wanted.items(), compile_all(list(wanted.values())), strict=True):
        assert used.spills_in_loop <= KNOWN_SPILLS.get((kernel_name, name), 0), (name, used)
        # What the loop does not use may wait in memory until the end.
        assert used.stack_bytes <= (96 if name == LARGEST else 64), (name, used)
        assert used.shared_bytes <= SHARED_MEMORY[job.arch], (name, used)
        assert used.shared_bytes <= PERSISTENT_MEMORY[job.constants["D"]], (name, used)
        # Weights that go to shared memory by two bytes are what an unseen alignment looks like.
        assert used.wide_copies, (name, used)
