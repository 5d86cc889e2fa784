"""The tower's kernels for Hopper: their arithmetic and their waiting on the CPU, and their code."""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import triton
from triton.experimental.gluon import language as gl

from tests.kernels.check import DEVICE, assert_as_exact, error, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all
from tests.kernels.hopper_model import Machine, as_python, runnable
from tests.kernels.test_tower import (
    argument_type,
    assert_equal_when_repeated,
    each_block,
    exact,
    run,
    stack,
)
from torch_crl.kernels.tower import BLOCKS, Stack, passes, tower
from torch_crl.kernels.tower.hopper import backward, forward, parts, pre_norm
from torch_crl.kernels.tower.hopper import tiles as tiles_module
from torch_crl.kernels.tower.hopper.tiles import (
    TILES,
    HopperTile,
    Tiles,
    choose_tiles,
    usable_tiles,
)

pytestmark = pytest.mark.skipif(DEVICE == "cuda", reason="a GPU runs the kernels themselves")
# Which of the threads goes first: those that compute, the one that copies, those that sum up.
ORDERS = [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
ROWS = {8: ([16, 8], 8), 16: ([16, 32], 16)}


@contextmanager
def modelled(
    tiles: Tiles, order: tuple[int, ...] = ORDERS[0], leave_out: str = ""
) -> Iterator[None]:
    """The kernels are taken, and run as the Python that they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "choose_tiles", lambda *_: tiles)
        for module, name in (
            (forward, "tower_fwd_hopper_kernel"),
            (backward, "tower_bwd_hopper_kernel"),
        ):
            model = runnable([parts, pre_norm, module], name, order, leave_out)
            patch.setattr(module, name, model)
        yield


def results(
    tiles: Tiles,
    *,
    order: Any = ORDERS[0],
    leave_out: str = "",
    rows: tuple[list[int], int] | None = None,
    **options: Any,
) -> Any:
    """Those of eight layers on the model."""
    sizes = (8, 256, *(rows or ROWS[tiles.forward.rows]))
    with poisoned(), modelled(tiles, order, leave_out):
        return run(*sizes, implementation="persistent", precision="fp16", **options)


def assert_right(found: Any, rows: int, **options: Any) -> None:
    sizes = (8, 256, *ROWS[rows])
    assert_as_exact(found, run(*sizes, precision="fp16", **options), exact(*sizes, **options))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("tiles", TILES[256], ids=lambda tiles: f"{tiles.forward.rows}-rows")
@each_block
def test_as_exact_as_plain_torch(tiles: Tiles, order: tuple[int, ...], block: str) -> None:
    assert_right(results(tiles, order=order, block=block), tiles.forward.rows, block=block)


@each_block
def test_scaled_branches(block: str) -> None:
    options = {"branch_scale": 0.25, "block": block}
    assert_right(results(TILES[256][0], **options), TILES[256][0].forward.rows, **options)


@each_block
def test_layers_that_are_applied_in_turn_are_those_written_out(block: str) -> None:
    with modelled(TILES[256][0]):
        assert_equal_when_repeated(block, 256, [8, 16], 8)


@each_block
def test_frozen_rows_alone(block: str) -> None:
    sizes, options = ([0], 16), {"precision": "fp16", "block": block}
    found = results(TILES[256][0], rows=sizes, block=block)
    assert_as_exact(found, run(8, 256, *sizes, **options), exact(8, 256, *sizes, block=block))


@each_block
def test_relu(block: str) -> None:
    # A kept value that rounds across zero flips a derivative, hence the wide margin.
    options = {"activation": "relu", "block": block}
    truth = exact(8, 256, *ROWS[8], **options)
    for name, value in results(TILES[256][0], **options).items():
        assert error(value, truth[name]) < (2e-3 if name == "y" else 0.1), name


@each_block
def test_recomputing_changes_no_bit(block: str) -> None:
    kept, recomputed = (results(TILES[256][0], recompute=layers, block=block) for layers in (0, 4))
    for name, value in kept.items():
        assert value.equal(recomputed[name]), name


@pytest.mark.parametrize(
    "line",
    [
        "mbarrier.wait(ready",
        "mbarrier.wait(freed",
        "mbarrier.wait(summed",
        "mbarrier.wait(values_arrived",
        "mbarrier.wait(arrived",
        "mbarrier.arrive(ready",
        "mbarrier.expect(",
        "tma.store_wait(",
        "fence_async_shared()",
    ],
)
@each_block
def test_nothing_that_waits_can_be_left_out(line: str, block: str) -> None:
    def wrong(order: tuple[int, ...]) -> bool:
        try:
            found = results(TILES[256][1], order=order, leave_out=line, block=block)
            assert_right(found, 16, block=block)
        except AssertionError:
            return True
        return False

    assert any(map(wrong, ORDERS))


def test_gradients_of_vectors_outside_of_the_range_of_fp16() -> None:
    # A large std makes dn large where dh is not.
    generator = torch.Generator().manual_seed(0)
    x, dy = (torch.randn(8, 256, generator=generator) for _ in range(2))

    def gradients(implementation: str) -> list[torch.Tensor]:
        leaves = stack(4, 256, torch.Generator().manual_seed(1))
        leaves = leaves._replace(weight_LDD=100 * leaves.weight_LDD)
        leaves = Stack(*(leaf.float().requires_grad_() for leaf in leaves))
        (y,) = tower(
            [x], [leaves], precision="fp16", implementation=implementation, gradient_scale=1.0
        )
        (y * 1e5 * dy).sum().backward()
        return [leaf.grad for leaf in leaves if leaf.grad is not None]

    with modelled(TILES[256][0]):
        found = gradients("persistent")
    for ours, plain in zip(found, gradients("reference"), strict=True):
        assert error(ours, plain.double()) < 5e-3


def test_sigmoids_that_share_a_reciprocal() -> None:
    sigmoid = as_python([parts], Machine(ORDERS[0]))["sigmoid"]
    x = torch.cat([torch.linspace(-150, 150, 4000), torch.tensor([torch.inf, -torch.inf])])
    truth = torch.sigmoid(x.double())
    assert ((sigmoid(x) - truth).abs() <= 4e-6 * truth + 1.1e-19).all()
    # Neighbours of what is no number keep theirs, and its own swish is none.
    x = torch.tensor([torch.nan, 1.0, -1.0, torch.nan])
    assert (x * sigmoid(x)).isnan().tolist() == [True, False, False, True]
    assert sigmoid(x)[1:3].tolist() == pytest.approx([0.7310586, 0.2689414])


@pytest.mark.parametrize("count", [8, 24, 16 * 132, 16 * 133])
def test_tiles_that_fit(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(tiles_module, "multiprocessors", lambda _: 132)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    chosen = choose_tiles(256, (count, 0, 0), device)
    assert chosen is not None
    assert chosen.forward.rows == chosen.backward.rows == (16 if count > 8 * 132 else 8)
    assert choose_tiles(256, (0, 0, 0), device) is None
    assert choose_tiles(256, (count + 4, 0, 0), device) is None
    assert choose_tiles(256, (16 * 132 + 8, 0, 0), device) is None
    assert choose_tiles(512, (count, 0, 0), device) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (10, 0))
    assert choose_tiles(256, (count, 0, 0), device) is None


def test_a_newer_triton_gets_the_kernels_in_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    tiles_module._is_tried.cache_clear()
    device, newest = torch.device("cuda"), tiles_module.NEWEST_TRITON
    for version in ("3.6.0", f"{newest[0]}.{newest[1]}.7+git"):
        monkeypatch.setattr(triton, "__version__", version)
        assert usable_tiles(256, (64, 0, 0), device)
    monkeypatch.setattr(triton, "__version__", f"{newest[0]}.{newest[1] + 1}rc1")
    with pytest.warns(UserWarning, match=r"known to work with Triton up to .* slower ones"):
        assert not usable_tiles(256, (64, 0, 0), device)
    # Told once, not at every launch.
    assert not usable_tiles(256, (64, 0, 0), device)


@pytest.mark.parametrize(
    "tile", [tile for pair in TILES.values() for tiles in pair for tile in tiles]
)
def test_a_program_waits_for_its_copies(tile: HopperTile) -> None:
    width = next(width for width, pairs in TILES.items() if tile in sum(pairs, ()))
    assert tile.slots < 2 * width // tile.chunk


def jobs() -> dict[str, Job]:
    """Both kernels of the larger width with every tile, and of the smaller with the larger one.

    That one is compiled with ReLU, and for a pass that keeps nothing; published blocks also with
    layers that are applied in turn.
    """
    found = {}
    sizes = [(128, -1, "bf16"), (256, 0, "fp16"), (256, -1, "fp16")]
    cases = [(*case, 0) for case in itertools.product(sizes, BLOCKS)]
    for (width, number, narrow), block, own in [*cases, (sizes[1], "published", 4)]:
        tiles = TILES[width][number]
        for module, name, tile in (
            (forward, "tower_fwd_hopper_kernel", tiles.forward),
            (backward, "tower_bwd_hopper_kernel", tiles.backward),
        ):
            arguments = getattr(module, name).arg_names
            blocks = {"d_weight": [width, tile.chunk], None: [tile.rows, width]}
            if module is backward:
                blocks["d_weight"].reverse()
            usual = width == 256
            constants = {"SAVE": usual, "RELU": not usual, "EPS": 1e-6, "BLOCK": 4, "D": width}
            constants |= {"OWN": own, "BM": tile.rows, "BK": tile.chunk, "SLOTS": tile.slots}
            constants |= {"WARPS": tile.warps, "PRE_NORM": block == "pre_norm"}
            constants = {each: value for each, value in constants.items() if each in arguments}
            types = {
                each: descriptor_type(narrow, blocks.get(each, blocks[None]))
                if each.startswith("d_")
                else argument_type(each, narrow)
                for each in arguments
                if each not in constants
            }
            options = {"num_warps": tile.warps}
            job = Job(module.__name__, name, types, constants, options, 90, gluon=True)
            found[f"{name}, {block}, {tile}, {narrow}, {own}"] = job
    return found


def descriptor_type(narrow: str, block: list[int]) -> str:
    dtype = {"fp16": gl.float16, "bf16": gl.bfloat16}[narrow]
    layout = gl.NVMMASharedLayout.get_default_for(block, dtype)
    return f"tensordesc<{narrow}{block},{layout!r}>"


def test_compiles_fits_and_spills_nothing() -> None:
    wanted = jobs()
    for (name, _), used in zip(wanted.items(), compile_all(list(wanted.values())), strict=True):
        assert used.stack_bytes == 0, (name, used)
        assert used.shared_bytes <= SHARED_MEMORY[90], (name, used)
        # What it is about: asynchronous products and copies by the copy engine.
        assert used.warpgroup_products and used.engine_copies, (name, used)
