"""The tower's Gluon kernels: their arithmetic on the CPU, and the code that they compile to."""

from typing import Any

import pytest
import torch
from torch import Generator

from tests.kernels.check import DEVICE, assert_as_exact, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all
from tests.kernels.gluon_model import Machine, SharedPart, runnable
from tests.kernels.test_tower import SIZES, argument_type, exact, run
from torch_crl.kernels.tower import kernel as in_shared
from torch_crl.kernels.tower_registers import kernel

# Read before the tests put something else in the kernels' place.
ARGUMENTS = {
    name: getattr(kernel, name).arg_names
    for name in ("tower_fwd_registers_kernel", "tower_bwd_registers_kernel")
}


@pytest.fixture(autouse=True)
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels are taken; without a GPU, as the Python that they are."""
    monkeypatch.setattr(in_shared, "WEIGHTS", "registers")
    if DEVICE == "cpu":
        for name in ("tower_fwd_registers_kernel", "tower_bwd_registers_kernel"):
            monkeypatch.setattr(kernel, name, runnable(kernel, name))


@pytest.mark.parametrize(("layers", "width", "live", "frozen"), SIZES)
def test_as_exact_as_plain_torch(layers: int, width: int, live: list[int], frozen: int) -> None:
    sizes = (layers, width, live, frozen)
    with poisoned():
        results = run(*sizes, implementation="persistent", precision="fp16")
    assert_as_exact(results, run(*sizes, precision="fp16"), exact(*sizes))


@pytest.mark.parametrize("activation", ["swish", "relu"])
def test_scaled_branches_and_recomputed_layers(activation: str) -> None:
    sizes = (12, 128, [6, 5], 4)
    options: dict[str, Any] = {"precision": "fp16", "branch_scale": 0.25, "activation": activation}
    kept = run(*sizes, implementation="persistent", **options)
    truth = exact(*sizes, branch_scale=0.25, activation=activation)
    if activation == "swish":
        assert_as_exact(kept, run(*sizes, **options), truth)
    recomputed = run(*sizes, implementation="persistent", recompute=8, **options)
    for name, value in kept.items():
        if DEVICE == "cpu" or not name.startswith("dweight"):
            assert value.equal(recomputed[name]), name


def test_packed_weights_hold_what_a_thread_needs_side_by_side() -> None:
    weights = [
        torch.randn(2, 128, 128, generator=Generator().manual_seed(t)).to(DEVICE) for t in (0, 1)
    ]
    packed = kernel.pack(weights, torch.float16)
    strided = [weight.mT.contiguous().mT for weight in weights]
    assert kernel.pack(strided, torch.float16).equal(packed)
    # Thread q of four has the columns 2 q and 2 q + 1 of every eight.
    order = [8 * s + 2 * q + e for q in range(4) for s in range(4) for e in range(2)]
    columns = [32 * block + column for block in range(4) for column in order]
    for tower, weight in enumerate(weights):
        assert packed[tower, 0].equal(weight.half()[:, :, columns])
        assert packed[tower, 1].equal(weight.half().mT[:, :, columns])


def test_the_model_finds_a_missing_barrier() -> None:
    machine = Machine()
    part = SharedPart(machine, torch.zeros(2, 2), machine.part())
    part.store(torch.ones(2, 2))
    with pytest.raises(AssertionError, match="read before"):
        part.load(None)
    machine.barrier()
    assert part.load(None).sum() == 4.0
    with pytest.raises(AssertionError, match="written before"):
        part.store(torch.zeros(2, 2))
    machine.barrier()
    part.store(torch.zeros(2, 2))


def test_compiles_and_spills_nothing() -> None:
    tile = in_shared.IN_REGISTERS
    wanted = {}
    for name in ("tower_fwd_registers_kernel", "tower_bwd_registers_kernel"):
        arguments = ARGUMENTS[name]
        for width, arch, narrow in [
            *((256, arch, "fp16") for arch in SHARED_MEMORY),
            (128, 90, "fp16"),
            (256, 90, "bf16"),
        ]:
            constants = {"SAVE": True, "RELU": False, "EPS": 1e-6, "BLOCK": 4, "D": width}
            constants |= {"BM": tile.rows, "BK": kernel.SLICE, "WARPS": tile.warps}
            constants = {each: value for each, value in constants.items() if each in arguments}
            types = {
                each: argument_type("p_weight" if each == "p_weight_t" else each, narrow)
                for each in arguments
                if each not in constants
            }
            job = Job(kernel.__name__, name, types, constants, tile.options, arch, gluon=True)
            wanted[f"{name}, width {width}, {narrow}, sm_{arch}"] = job
    for (name, _), used in zip(wanted.items(), compile_all(list(wanted.values())), strict=True):
        assert used.stack_bytes == 0, (name, used)
        assert used.shared_bytes <= 20_000, (name, used)
