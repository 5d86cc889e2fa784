"""Towers from input to output on kernels against plain torch in fp64, and their code."""

import itertools
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from tests.kernels.check import DEVICE, assert_as_exact, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all, limits_of_compiler
from tests.kernels.test_tower import each_block, stack
from torch_crl.agent.compute import Compute
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.sizes import TowerSizes
from torch_crl.kernels.tower import (
    BLOCKS,
    PERSISTENT_MEMORY,
    Parts,
    Stack,
    default_gradient_scale,
    tower,
)

WHOLE = [
    # inputs and outputs of each tower, live rows, frozen rows
    pytest.param([(37, 64), (2, 20)], [35, 20], 18, id="two-towers-and-frozen"),
    pytest.param([(5, 70)], [3], 0, id="one-tower"),
    pytest.param([(64, 16)], [16], 16, id="whole-tiles"),
]


def parts_of(sizes: list[tuple[int, int]], layers: int, width: int) -> list[Parts]:
    """Towers as after some training, in fp64."""
    generator = Generator().manual_seed(width)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return [
        Parts(
            (
                normal(width, inputs) / (3 * inputs) ** 0.5,
                0.1 * normal(width),
                1 + 0.1 * normal(width),
                0.1 * normal(width),
            ),
            stack(layers, width, generator),
            (normal(outputs, width) / (3 * width) ** 0.5, 0.1 * normal(outputs)),
        )
        for inputs, outputs in sizes
    ]


def leaves(parts: Parts, dtype: torch.dtype, device: str, *, trained: bool = True) -> Parts:
    first, inner, last = (
        [parameter.to(device, dtype).requires_grad_(trained) for parameter in part]
        for part in parts
    )
    return Parts(tuple(first), Stack(*inner), tuple(last))  # type: ignore[arg-type]


def run_whole(
    sizes: list[tuple[int, int]],
    live: list[int],
    frozen: int,
    *,
    kernels: bool,
    dtype: torch.dtype = torch.float32,
    device: str = DEVICE,
    silent: bool = False,
    recompute: int = 0,
    block: str = "published",
) -> dict[str, Tensor]:
    """Outputs and all gradients; with `silent` the blocks pass rows on, and nothing is rounded."""
    from torch_crl.kernels.tower.whole import whole_towers

    towers = parts_of(sizes, 8, 128)
    if silent:
        # Then a LayerNorm gives 0, and so does a matmul, so that a block's output is its input.
        for tower in towers:
            for vectors in tower.stack[1:]:
                vectors.zero_()

    towers = [leaves(each, dtype, device) for each in towers]
    generator = Generator().manual_seed(1)
    counts = [*live, frozen] if frozen else live
    of_rows = [*sizes, sizes[0]]
    rows = [
        torch.randn(count, inputs, generator=generator, dtype=torch.float64)
        .to(device, dtype)
        .requires_grad_()
        for count, (inputs, _) in zip(counts, of_rows, strict=False)
    ]
    options: dict[str, Any] = {"activation": "swish", "branch_scale": 0.5, "precision": "fp16"}
    options["block"] = block
    scale = default_gradient_scale(rows, "fp16")
    if kernels:
        outputs = whole_towers(
            rows[: len(live)],
            towers,
            frozen=rows[-1] if frozen else None,
            gradient_scale=scale,
            recompute=recompute,
            **options,
        )
    else:
        precision = "fp32" if dtype == torch.float64 else "fp16"
        outputs = [
            plain_tower(x, tower, precision, scale, block)
            for x, tower in zip(rows, towers, strict=False)
        ]
        if frozen:
            first, inner, last = towers[0]
            constants = Parts(
                tuple(p.detach() for p in first),
                inner.detached(),
                tuple(p.detach() for p in last),
            )
            outputs.append(plain_tower(rows[-1], constants, precision, scale, block))
    upstream = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(device, dtype) / len(y)
        for y in outputs
    ]
    torch.autograd.backward(outputs, upstream)
    found = {f"y{index}": y.detach() for index, y in enumerate(outputs)}
    found |= {f"dx{index}": x.grad for index, x in enumerate(rows)}
    for index, (first, inner, last) in enumerate(towers):
        named = {"first": first, "inner": inner, "last": last}
        for name, parameters in named.items():
            for k, parameter in enumerate(parameters):
                found[f"d{name}{k} of {index}"] = parameter.grad
    return {name: value for name, value in found.items() if value is not None}


def plain_tower(x: Tensor, parts: Parts, precision: str, scale: float, block: str) -> Tensor:
    def normalised(x: Tensor) -> Tensor:
        return functional.layer_norm(x, bias.shape, ln_weight, ln_bias, 1e-6)

    weight, bias, ln_weight, ln_bias = parts.first
    x = functional.linear(x, weight, bias)
    if block == "published":
        x = functional.silu(normalised(x))
    options: dict[str, Any] = {"precision": precision, "gradient_scale": scale, "block": block}
    (x,) = tower([x], [parts.stack], branch_scale=0.5, **options)
    if block == "pre_norm":
        x = normalised(x)
    return functional.linear(x, *parts.last)


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize(("sizes", "live", "frozen"), WHOLE)
@each_block
def test_whole_towers_are_as_exact_as_plain_torch(
    sizes: list[tuple[int, int]], live: list[int], frozen: int, silent: bool, block: str
) -> None:
    arguments, options = (sizes, live, frozen), {"silent": silent, "block": block}
    with poisoned():
        ours = run_whole(*arguments, kernels=True, **options)
    plain = run_whole(*arguments, kernels=False, **options)
    truth = run_whole(*arguments, kernels=False, dtype=torch.float64, device="cpu", **options)
    assert ours.keys() == plain.keys()
    if silent:
        # The gradients inside are of rounded numbers.
        ours = {name: value for name, value in ours.items() if not name.startswith("dinner")}
    assert_as_exact(ours, plain, truth)


def test_an_output_that_no_loss_reads_gets_no_gradient() -> None:
    from torch_crl.kernels.tower.whole import whole_towers

    towers = [leaves(each, torch.float32, DEVICE) for each in parts_of([(5, 3), (2, 3)], 4, 128)]
    rows = [torch.randn(4, 5, device=DEVICE), torch.randn(4, 2, device=DEVICE)]
    options: dict[str, Any] = {"activation": "swish", "branch_scale": 1.0, "precision": "fp16"}
    options |= {"gradient_scale": 8.0, "recompute": 0, "frozen": None, "block": "pre_norm"}
    first, _ = whole_towers(rows, towers, **options)
    first.square().sum().backward()
    for read, unread in zip(towers[0].last, towers[1].last, strict=True):
        assert read.grad is not None and (read.grad != 0).any()
        assert unread.grad is not None and (unread.grad == 0).all()


@each_block
def test_recomputing_whole_towers_changes_no_bit(block: str) -> None:
    arguments = ([(5, 3), (2, 3)], [6, 5], 4)
    kept = run_whole(*arguments, kernels=True, block=block)
    for name, value in run_whole(*arguments, kernels=True, recompute=4, block=block).items():
        if DEVICE == "cpu" or not name.startswith("dinner0"):
            assert value.equal(kept[name]), name


@each_block
def test_without_parameters_to_train_only_rows_get_gradients(block: str) -> None:
    from torch_crl.kernels.tower.whole import whole_towers

    (exact,) = parts_of([(5, 3)], 4, 128)
    x = torch.randn(7, 5, device=DEVICE)
    options: dict[str, Any] = {"activation": "swish", "branch_scale": 1.0, "precision": "fp16"}
    options |= {"gradient_scale": 8.0, "recompute": 0, "frozen": None, "block": block}
    gradients = []
    for trained in (True, False):
        towers = [leaves(exact, torch.float32, DEVICE, trained=trained)]
        rows = x.clone().requires_grad_()
        (y,) = whole_towers([rows], towers, **options)
        y.square().sum().backward()
        gradients.append((y.detach(), rows.grad))
        with torch.no_grad():
            assert whole_towers([rows], towers, **options)[0].equal(y)
        assert (towers[0].first[0].grad is not None) == trained
    for with_training, without in zip(*gradients, strict=True):
        assert with_training is not None and without is not None
        assert with_training.equal(without)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"inputs": [torch.zeros(3, 6)]}, r"inputs \(3, 6\) do not fit a first layer \(128, 5\)"),
        ({"frozen": torch.zeros(3, 4)}, r"inputs \(3, 4\) do not fit"),
        (
            {"inputs": [torch.zeros(3, 5).double()]},
            "the kernels take fp32 tensors, got torch.float64",
        ),
        ({"recompute": 6}, "multiples of 4, got 8 and 6"),
        ({"precision": "fp32"}, "'norm_act' has fewer limits"),
        ({"block": "shared"}, "block must be one of"),
        ({"inputs": []}, "got 0 inputs and 1 towers"),
        ({"depth": 12}, "depth must be a multiple of the 8 layers, got 12"),
        (
            {"depth": 16, "recompute": 4},
            "multiples of the 8 layers that are applied in turn, got 16",
        ),
    ],
)
def test_what_does_not_fit_is_told(change: dict[str, Any], told: str) -> None:
    from torch_crl.kernels.tower.whole import whole_towers

    towers = [leaves(parts_of([(5, 3)], 8, 128)[0], torch.float32, "cpu")]
    options: dict[str, Any] = {"activation": "swish", "branch_scale": 1.0, "precision": "fp16"}
    options |= {"gradient_scale": 8.0, "recompute": 0, "frozen": None, "block": "published"}
    arguments = {"inputs": [torch.zeros(3, 5)], "towers": towers} | options | change
    with pytest.raises(ValueError, match=told):
        whole_towers(**arguments)


def test_a_block_without_kernels_stays_in_plain_torch() -> None:
    x = torch.randn(4, 5, generator=Generator().manual_seed(0)).to(DEVICE)
    outputs = []
    for implementation in ("persistent", "reference"):
        sizes = TowerSizes(input_size=5, output_size=3, width=128, depth=4, block="no_skip")
        compute = Compute(tower=implementation, precision="fp16")  # type: ignore[arg-type]
        network = ResidualTower(sizes, generator=Generator().manual_seed(1), compute=compute)
        outputs.append(network.to(DEVICE)(x).detach())
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_torch_library_sees_the_ends_with_all_that_they_promise() -> None:
    from torch_crl.kernels.tower_ends import op as ends

    first, _, last = (
        [p.to(DEVICE, torch.float32).requires_grad_() for p in part]
        for part in parts_of([(5, 3)], 4, 128)[0]
    )
    rows = [torch.randn(n, 5, device=DEVICE, requires_grad=True) for n in (6, 2)]
    inner = torch.randn(8, 128, device=DEVICE, requires_grad=True)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    for block, norm in (("published", []), ("pre_norm", first[2:])):
        torch.library.opcheck(ends.embed, (rows, first, block, "swish", True), test_utils=checks)
        torch.library.opcheck(ends.head, (inner, last, norm, [6, 2]), test_utils=checks)


def end_jobs() -> dict[str, Job]:
    from torch_crl.kernels.tower import passes, rows
    from torch_crl.kernels.tower_ends import kernel as ends_kernel
    from torch_crl.kernels.tower_ends import op as ends

    sizes: dict[str, Any] = {
        "RELU": False,
        "EPS": 1e-6,
        "SAVE": True,
        "BM": 16,
        "BP": passes.SUMMED,
    }
    of_kernel = {
        "embed_fwd_kernel": ({"BK": 32}, 8),
        "embed_bwd_kernel": ({}, 8),
        "embed_gradients_kernel": (ends._GRADIENT, 4),
        "head_fwd_kernel": ({"BO": 64, "BK": 64}, 8),
        "head_bwd_kernel": ({"BO": 32} | ends._GRADIENT, 8),
        "sums_kernel": ({}, 4),
    }
    found = {}
    generations = [*((256, arch) for arch in SHARED_MEMORY), (128, 90)]
    cases = itertools.product(generations, of_kernel.items(), BLOCKS)
    for (width, arch), (name, (own, warps)), block in cases:
        module = rows if name == "sums_kernel" else ends_kernel
        arguments = getattr(module, name).arg_names
        is_pre_norm = {"LINEAR": block == "pre_norm", "NORM": block == "pre_norm"}
        if block == "pre_norm" and not set(is_pre_norm) & set(arguments):
            continue
        all_constants = sizes | own | is_pre_norm | {"D": width}
        constants = {k: v for k, v in all_constants.items() if k in arguments}
        types = {
            each: "*fp32" if each.startswith("p_") else "i32"
            for each in arguments
            if each not in constants
        }
        job = Job(module.__name__, name, types, constants, {"num_warps": warps}, arch)
        found[f"{name}, {block}, width {width}, sm_{arch}"] = job
    return found


KEPT_ASIDE = {"head_bwd_kernel, pre_norm, width 256, sm_80": 8}
"""Bytes of the stack outside of loops."""


@limits_of_compiler
def test_ends_compile_and_spill_nothing() -> None:
    wanted = end_jobs()
    for (name, job), used in zip(wanted.items(), compile_all(list(wanted.values())), strict=True):
        assert used.stack_bytes == KEPT_ASIDE.get(name, 0), (name, used)
        assert used.spills_in_loop == 0, (name, used)
        assert used.shared_bytes <= PERSISTENT_MEMORY[job.constants["D"]], (name, used)
