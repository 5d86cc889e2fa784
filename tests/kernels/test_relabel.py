"""Relabelling in one kernel: the very numbers of the definition, whatever the ring looks like."""

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.kernels.check import DEVICE, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all
from torch_crl.experience.replay import Replay, Transition
from torch_crl.kernels.relabel import (
    RelabeledBatch,
    Ring,
    multiple_ahead,
    relabel,
    truncated_geometric,
)

NEXT_TO_ONE = 1.0 - 2.0**-53


def filled(
    *,
    rows: int,
    num_envs: int,
    written: int,
    ends: float,
    state_size: int = 4,
    action_size: int = 2,
    goal_slice: tuple[int, int] = (0, 2),
    window: int = 0,
    dtype: torch.dtype = torch.float32,
) -> tuple[Ring, Tensor]:
    """A ring after `written` rows whose trajectories end at every step with probability `ends`.

    At some of these ends physics diverged.
    """
    replay = Replay(
        rows=rows,
        num_envs=num_envs,
        state_size=state_size,
        action_size=action_size,
        goal_slice=goal_slice,
        window=window,
        dtype=dtype,
    )
    generator = Generator().manual_seed(written)
    trajectory = torch.zeros(num_envs, dtype=torch.int64)
    for _ in range(written):
        state, action, achieved = (
            torch.randn(num_envs, size, generator=generator)
            for size in (state_size, action_size, goal_slice[1] - goal_slice[0])
        )
        ended, unstable = torch.rand(2, num_envs, generator=generator)
        unstable = (ended < ends) & (unstable < 0.3)
        replay.add(Transition(state, action, achieved, trajectory, unstable))
        trajectory += ended < ends
    ring = Ring(**{name: x.to(DEVICE) for name, x in replay.tensors().items()})
    return ring, torch.tensor(written, device=DEVICE)


def uniforms(batch: int, *, seed: int = 0) -> Tensor:
    generator = Generator().manual_seed(seed)
    return torch.rand(4, batch, generator=generator, dtype=torch.float64).to(DEVICE)


def ends_of_the_range() -> Tensor:
    """Every combination of numbers beside 0 and 1."""
    ends = torch.tensor([0.0, 2.0**-53, 0.5, NEXT_TO_ONE], dtype=torch.float64, device=DEVICE)
    return torch.cartesian_prod(*[ends] * 4).T


@pytest.fixture
def many_samples_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter's time goes by programs."""
    from torch_crl.kernels.relabel import kernel

    monkeypatch.setattr(kernel, "_MOST_SAMPLES", 128)


def assert_same(uniform: Tensor, position: Tensor, ring: Ring, **options: Any) -> None:
    with poisoned():
        ours = relabel(uniform, position, ring, implementation="triton", **options)
    theirs = relabel(uniform, position, ring, implementation="reference", **options)
    for name, x, y in zip(RelabeledBatch._fields, ours, theirs, strict=True):
        assert x.dtype == y.dtype and x.is_contiguous()
        assert torch.equal(x, y), name


@pytest.mark.parametrize("window", [0, 2, 7, 1000])
@pytest.mark.parametrize("discount", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("ends", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("written", [2, 17, 30, 31, 997])
@pytest.mark.usefixtures("many_samples_a_program")
def test_every_ring_gives_the_same_batches(
    written: int, ends: float, discount: float, window: int
) -> None:
    options: dict[str, Any] = {"goal_slice": (1, 3), "window": window}
    ring, position = filled(rows=30, num_envs=3, written=written, ends=ends, **options)
    options["discount"] = discount
    uniform = torch.cat([uniforms(256, seed=written), ends_of_the_range()], 1)
    assert_same(uniform, position, ring, **options)


@pytest.mark.parametrize("window", [0, 7])
@pytest.mark.parametrize("ends", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("chunk", [2, 3, 8])
@pytest.mark.usefixtures("many_samples_a_program")
def test_chunks_are_the_same(chunk: int, ends: float, window: int) -> None:
    options: dict[str, Any] = {"goal_slice": (1, 3), "window": window}
    for written in (2, 31):
        ring, position = filled(rows=30, num_envs=3, written=written, ends=ends, **options)
        assert_same(uniforms(256), position, ring, discount=0.9, chunk=chunk, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("state_size", "action_size", "goal_slice"),
    [
        (1, 1, (0, 1)),
        (29, 17, (0, 2)),
        (29, 1, (13, 29)),
        (268, 17, (0, 3)),
        (268, 1, (200, 268)),
        (5, 300, (1, 4)),
    ],
)
def test_sizes(
    state_size: int, action_size: int, goal_slice: tuple[int, int], dtype: torch.dtype
) -> None:
    ring, position = filled(
        rows=12,
        num_envs=5,
        written=40,
        ends=0.1,
        state_size=state_size,
        action_size=action_size,
        goal_slice=goal_slice,
        dtype=dtype,
    )
    assert_same(uniforms(77), position, ring, goal_slice=goal_slice, discount=0.9)


@pytest.mark.parametrize("num_envs", [1, 512])
@pytest.mark.parametrize("batch", [1, 5])
def test_few_samples_of_few_or_many_envs(batch: int, num_envs: int) -> None:
    for written in (1, 4):
        ring, position = filled(rows=3, num_envs=num_envs, written=written, ends=0.3)
        assert_same(uniforms(batch), position, ring, goal_slice=(0, 2), discount=0.9)


def one_trajectory(rows: int) -> Ring:
    """States are the numbers of their rows, and goals those after: they tell how far they are."""
    state = torch.arange(rows, dtype=torch.float32, device=DEVICE).view(rows, 1, 1)
    numbers = torch.zeros(rows, 1, dtype=torch.int32, device=DEVICE)
    return Ring(state, state, state + 1, numbers, torch.full_like(numbers, rows - 1))


@pytest.mark.parametrize("discount", [1e-4, 0.3, 0.5, 0.9, 0.99, 0.999, 1.0 - 1e-7])
@pytest.mark.usefixtures("many_samples_a_program")
def test_steps_are_those_of_the_definition(discount: float) -> None:
    rows = 2000
    ring = one_trajectory(rows)
    size = 8192
    uniform = uniforms(2 * size).cpu()
    # An even grid, none of whose numbers is the edge of a step, zero, and the neighbours of one.
    uniform[2, :size] = (torch.arange(size, dtype=torch.float64) + 1 / 3) / size
    uniform[2, 50] = 0.0
    uniform[2, :50] = NEXT_TO_ONE - torch.arange(50, dtype=torch.float64) * 2.0**-53
    options: dict[str, Any] = {"goal_slice": (0, 1), "discount": discount}
    position = torch.tensor(rows, device=DEVICE)
    drawn, _, goal, *_ = relabel(
        uniform.to(DEVICE), position, ring, implementation="triton", **options
    )
    row = drawn[:, 0].cpu().long()
    expected = truncated_geometric(uniform[2], rows - row, discount=discount)
    assert torch.equal(goal[:, 0].cpu().long() - row, expected)


@pytest.mark.parametrize("discount", [0.9, 0.99, 0.999])
def test_draws_beside_a_step_fall_on_either_side_of_it(discount: float) -> None:
    # At the very number where k steps become k + 1, rounding decides, here and in the definition.
    # Of numbers that differ from it by a millionth of a millionth, none may be on the wrong side.
    horizon, k = 1000, torch.arange(1, 200, dtype=torch.float64)
    mass = -math.expm1(horizon * math.log(discount))
    edge = -torch.expm1(k * math.log(discount)) / mass
    inside = edge < 1.0 - 1e-9
    edge, k = edge[inside], k[inside]
    ring = one_trajectory(horizon)
    for factor, steps in ((1.0 - 1e-12, k), (1.0 + 1e-12, k + 1)):
        uniform = torch.zeros(4, len(k), dtype=torch.float64)
        uniform[2] = edge * factor
        goal = relabel(
            uniform.to(DEVICE),
            torch.tensor(horizon, device=DEVICE),
            ring,
            goal_slice=(0, 1),
            discount=discount,
            implementation="triton",
        )[2]
        assert torch.equal(goal[:, 0].cpu().double(), steps)


def test_nan_in_the_ring_is_not_swallowed() -> None:
    ring, position = filled(rows=8, num_envs=1, written=8, ends=0.0)
    ring.state[3] = torch.nan
    ring.achieved[5] = torch.nan
    for window in (0, 8):
        options: dict[str, Any] = {"goal_slice": (0, 2), "discount": 0.5, "window": window}
        found = [
            [
                x.isnan()
                for x in relabel(uniforms(64), position, ring, implementation=name, **options)
            ]
            for name in ("triton", "reference")
        ]
        assert found[0][0].any() and found[0][2].any()
        assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


@pytest.mark.parametrize("window", [0, 5])
def test_replay_draws_with_either(window: int) -> None:
    batches = []
    for implementation in ("reference", "triton"):
        replay = Replay(
            rows=20,
            num_envs=2,
            state_size=6,
            action_size=3,
            goal_slice=(2, 4),
            window=window,
            device=DEVICE,
            implementation=implementation,
        )
        for row in range(33):
            state = torch.arange(12.0).view(2, 6) + 100 * row
            trajectory, unstable = (
                torch.tensor([row // 7, row // 4]),
                torch.tensor([False, row == 31]),
            )
            replay.add(Transition(state, state[:, :3], -state[:, 2:4], trajectory, unstable))
        generator = Generator(DEVICE).manual_seed(0)
        batches.append(replay.sample(300, discount=0.9, generator=generator))
    assert (batches[0] == batches[1]).all()


def test_torch_library_sees_one_op() -> None:
    from torch_crl.kernels.relabel import kernel

    ring, position = filled(rows=5, num_envs=2, written=9, ends=0.3)
    for window, chunk in ((0, 1), (3, 2)):
        arguments = (uniforms(3), position, *ring, 1, 3, 0.9, window, chunk)
        torch.library.opcheck(kernel.relabel_forward, arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"uniform_4B": torch.rand(3, 5).double()}, r"uniform is \(3, 5\) .* must be \[4, B\]"),
        ({"uniform_4B": torch.rand(4, 5)}, "of torch.float32; .* of torch.float64"),
        ({"goal_slice": (2, 9)}, r"the goal is \[2:9\] of a state of 4 numbers"),
        ({"goal_slice": (2, 2)}, "at least one"),
        ({"goal_slice": (1, 4)}, r"achieved goals have 2 numbers; the goal \[1:4\] .* has 3"),
        ({"implementation": "fast"}, "'fast' is unknown; choose one of reference, numba, triton"),
        ({"chunk": 0}, "chunk must be at least 1, got 0"),
        ({"position": torch.tensor(9, device="meta")}, "position is on meta"),
        ({"uniform_4B": torch.rand(5, 4).double().T}, r"uniform .* strides \(1, 4\)"),
    ],
)
def test_what_does_not_fit_is_told(arguments: dict[str, Any], told: str) -> None:
    ring, position = filled(rows=5, num_envs=2, written=9, ends=0.3)
    good = {"uniform_4B": uniforms(5), "position": position, "ring": ring, "goal_slice": (0, 2)}
    good |= {"discount": 0.9, "implementation": "triton"}
    moved = {
        name: x.to(DEVICE) if isinstance(x, Tensor) and x.device.type == "cpu" else x
        for name, x in (good | arguments).items()
    }
    with pytest.raises(ValueError, match=told):
        relabel(**moved)


def test_compiles_without_spills() -> None:
    from torch_crl.kernels.relabel import kernel

    jobs = []
    for state_size, action_size, storage, window, chunk in (
        (1, 1, "*fp32", 0, 1),
        (29, 8, "*fp32", 0, 3),
        (29, 8, "*bf16", 1000, 1),
        (268, 17, "*fp32", 1000, 5),
        (268, 17, "*bf16", 0, 1),
    ):
        constants = kernel.constants_of(
            rows=20_000,
            num_envs=512,
            state_size=state_size,
            action_size=action_size,
            goal_slice=(0, 1),
            discount=0.99,
            window=window,
            chunk=chunk,
        )
        types = {name: "*fp32" for name in kernel.relabel_kernel.arg_names if name not in constants}
        types |= {"p_uniform": "*fp64", "p_position": "*i64", "B": "i32"}
        types |= dict.fromkeys(("p_state", "p_action", "p_achieved"), storage)
        types |= dict.fromkeys(("p_trajectory", "p_last_row"), "*i32")
        types |= dict.fromkeys(("p_batch_column", "p_batch_row", "p_batch_last"), "*i64")
        options = {"num_warps": kernel.NUM_WARPS, "enable_fp_fusion": False}
        jobs += [
            Job(kernel.__name__, "relabel_kernel", types, constants, options, arch)
            for arch in SHARED_MEMORY
        ]
    for job, used in zip(jobs, compile_all(jobs), strict=True):
        assert used.stack_bytes == 0, (job, used)
        assert used.shared_bytes <= SHARED_MEMORY[job.arch], (job, used)


@pytest.mark.parametrize("every", [1, 3, 7])
@pytest.mark.parametrize(("row", "last"), [(0, 40), (5, 23), (6, 6), (10, 11), (13, 13), (20, 19)])
def test_every_kth_row_ahead_has_the_law_of_all_rows_given_that_it_is_one(
    every: int, row: int, last: int
) -> None:
    draws, discount = 20_000, 0.9
    uniform = (torch.arange(draws, dtype=torch.float64) + 0.5) / draws
    found, is_ahead = multiple_ahead(
        uniform,
        torch.full((draws,), row),
        torch.full((draws,), last),
        every=every,
        discount=discount,
    )
    weights = {later: discount**later for later in range(row + 1, last + 1) if later % every == 0}
    assert bool(is_ahead.all()) == bool(is_ahead.any()) == bool(weights)
    if not weights:
        assert (found == row // every * every).all()
        return
    total = sum(weights.values())
    shares = {int(later): float((found == later).double().mean()) for later in found.unique()}
    assert shares.keys() <= weights.keys()
    for later, weight in weights.items():
        assert shares.get(later, 0.0) == pytest.approx(weight / total, abs=2 / draws)
