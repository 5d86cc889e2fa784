"""The ring and its hindsight goals, with data that says which env and step it came from."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor

from tests.helpers.largest_tensor import LargestTensor
from torch_crl.experience.replay import Replay, Transition, filled_up
from torch_crl.kernels.relabel import Ring, relabel, truncated_geometric
from torch_crl.recipe.costs import replay_bytes

# A state is (env, row, trajectory); the achieved goal is all of it.
GOAL_SLICE = (0, 3)


def transition(state: Tensor, trajectory: Tensor, unstable: Tensor | None = None) -> Transition:
    """The step from (env, row, trajectory) to (env, row + 1, trajectory)."""
    if unstable is None:
        unstable = torch.zeros(len(state), dtype=torch.bool)
    return Transition(
        state=state,
        action=state[:, 1:2] + 0.5 * state[:, :1],
        # Of no use where physics diverged.
        achieved=torch.where(unstable[:, None], torch.nan, state + torch.tensor([0, 1, 0])),
        trajectory=trajectory,
        unstable=unstable,
    )


def filled_replay(
    *,
    rows: int,
    num_envs: int,
    lengths: list[list[int]],
    steps: int,
    dtype: torch.dtype = torch.float32,
    diverging: int = 0,
    window: int = 0,
) -> Replay:
    """A replay after `steps` additions; env n runs through episodes of `lengths[n]`, repeated.

    Physics diverges at the end of every episode whose number is a multiple of `diverging`.
    """
    replay = Replay(
        rows=rows,
        num_envs=num_envs,
        state_size=3,
        action_size=1,
        goal_slice=GOAL_SLICE,
        window=window,
        dtype=dtype,
    )
    left = [0] * num_envs
    trajectory = [0] * num_envs
    for row in range(steps):
        for env in range(num_envs):
            if left[env] == 0:
                left[env] = lengths[env][trajectory[env] % len(lengths[env])]
                trajectory[env] += 1
            left[env] -= 1
        state = torch.tensor([[env, row, trajectory[env]] for env in range(num_envs)]).float()
        unstable = [
            diverging > 0 and left[env] == 0 and trajectory[env] % diverging == 0
            for env in range(num_envs)
        ]
        replay.add(transition(state, torch.tensor(trajectory), torch.tensor(unstable)))
    return replay


def futures(replay: Replay, goals: str) -> dict[tuple[int, int], list[int]]:
    """(env, row) to the times at which its trajectory had a goal later, by looking at every pair.

    `goals` is `achieved`, which were reached after the steps, or `state`.
    """

    def stored(name: str) -> list[list[float]]:
        return replay.storage[name][: replay.filled].reshape(-1, 3).tolist()

    found: dict[tuple[int, int], list[int]] = {}
    for env, row, trajectory in stored("state"):
        found[int(env), int(row)] = sorted(
            int(time)
            for other_env, time, other in stored(goals)
            if (other_env, other) == (env, trajectory) and time > row
        )
    return found


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(2, 12),
    lengths=st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=3), min_size=1, max_size=3),
    steps=st.integers(2, 40),
    discount=st.sampled_from([0.01, 0.5, 0.9, 0.999]),
    window=st.sampled_from([0, 2, 5]),
    diverging=st.sampled_from([0, 1, 2]),
    seed=st.integers(0, 1000),
)
def test_goals_come_from_the_future_of_the_same_episode(
    rows: int,
    lengths: list[list[int]],
    steps: int,
    discount: float,
    window: int,
    diverging: int,
    seed: int,
) -> None:
    replay = filled_replay(
        rows=rows,
        num_envs=len(lengths),
        lengths=lengths,
        steps=steps,
        diverging=diverging,
        window=window,
    )
    future = futures(replay, "state" if window else "achieved")
    batch = replay.sample(64, discount=discount, generator=Generator().manual_seed(seed))
    newest = steps - 1
    for state, action, goal in zip(
        batch["state"].tolist(), batch["action"].tolist(), batch["goal"].tolist(), strict=True
    ):
        env, row, trajectory = map(int, state)
        # Action and state come from the same step, and that step is in the ring.
        assert action == [row + 0.5 * env]
        assert steps - replay.filled <= row <= newest
        goal_env, goal_row, goal_trajectory = map(int, goal)
        assert (goal_env, goal_trajectory) == (env, trajectory)
        if window:
            assert row < newest
            # The window may end with the step itself.
            assert goal_row == row or goal_row in future[env, row]
            assert goal_row < row + window
        else:
            assert goal_row in (future[env, row] or [row])


@pytest.mark.parametrize("diverging", [0, 1, 2])
@pytest.mark.parametrize("lengths", [[1], [2], [3], [1, 4, 2], [50]])
@pytest.mark.parametrize("steps", [1, 5, 6, 7, 15])
def test_every_step_has_the_closed_form_law(steps: int, lengths: list[int], diverging: int) -> None:
    replay = filled_replay(rows=6, num_envs=1, lengths=[lengths], steps=steps, diverging=diverging)
    discount, grid = 0.7, 2000
    even = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    future = futures(replay, "achieved")
    if not diverging:
        # Whatever its length, up to the newest step and the end of its episode.
        assert all(future.values())
    oldest = steps - replay.filled
    for row in range(oldest, steps):
        uniform = torch.stack([even, 0.0 * even + (row - oldest + 0.5) / replay.filled, even, even])
        state, _, goal, *_ = relabel(
            uniform,
            torch.tensor(steps),
            Ring(**replay.tensors()),
            goal_slice=GOAL_SLICE,
            discount=discount,
            implementation="reference",
        )
        assert (state[:, 1] == row).all() and (goal[:, 2] == state[:, 2]).all()
        horizon = len(future[0, row])
        assert future[0, row] == list(range(row + 1, row + 1 + horizon))
        share = torch.bincount((goal - state)[:, 1].long()).double() / grid
        if horizon == 0:
            # The only episodes without: those whose physics diverged in this step.
            assert share.tolist() == [1.0]
            continue
        weights = discount ** torch.arange(1, horizon + 1, dtype=torch.float64)
        expected = torch.cat([torch.zeros(1), weights / weights.sum()])
        torch.testing.assert_close(share, expected, rtol=0.0, atol=2.0 / grid, check_dtype=False)


def test_ring_holds_the_newest_rows_at_every_position_of_the_wrap() -> None:
    for steps in range(1, 17):
        replay = filled_replay(rows=5, num_envs=2, lengths=[[3], [4]], steps=steps)
        kept = sorted({int(row) for row in replay.storage["state"][: replay.filled, 0, 1]})
        assert kept == list(range(max(0, steps - 5), steps))
        for slot in range(replay.filled):
            assert (
                replay.storage["state"][slot, :, 1].tolist()
                == [replay.storage["state"][slot, 0, 1]] * 2
            )


@pytest.mark.parametrize("diverging", [0, 2])
@pytest.mark.parametrize(("window", "newest"), [(0, 14), (1000, 13)])
def test_every_step_with_a_goal_is_drawn_and_every_goal(
    window: int, newest: int, diverging: int
) -> None:
    replay = filled_replay(
        rows=6,
        num_envs=3,
        lengths=[[4], [1], [9]],
        steps=15,
        diverging=diverging,
        window=window,
    )
    batch = replay.sample(8000, discount=0.9, generator=Generator().manual_seed(0))
    pairs = zip(batch["state"].tolist(), batch["goal"].tolist(), strict=True)
    drawn = {(int(env), int(row), int(time)) for (env, row, _), (_, time, _) in pairs}
    assert drawn == {
        (env, row, time)
        for (env, row), times in futures(replay, "state" if window else "achieved").items()
        for time in times or [row]
        if row <= newest
    }


def test_published_windows_draw_states_alone() -> None:
    # Env 0 is in the middle of an episode, env 1 has episodes of one step, which have no later
    # state. What was achieved after the steps is not looked at.
    replay = filled_replay(rows=8, num_envs=2, lengths=[[9], [1]], steps=6, window=6)
    replay.storage["achieved"].fill_(torch.nan)
    batch = replay.sample(500, discount=0.9, generator=Generator().manual_seed(0))
    ahead = (batch["goal"] - batch["state"])[:, 1]
    first = batch["state"][:, 0] == 0
    assert (ahead[first] >= 1).all() and (ahead[~first] == 0).all()
    assert batch["goal"][:, 1].max() == 5


@pytest.mark.parametrize("discount", [0.3, 0.9, 0.99])
@pytest.mark.parametrize("horizon", [1, 2, 7, 999])
def test_truncated_geometric_has_the_closed_form_distribution(
    horizon: int, discount: float
) -> None:
    # An even grid of uniforms hits each outcome in proportion to its probability.
    grid = 200_000
    uniform = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid
    steps = truncated_geometric(uniform, torch.full((grid,), horizon), discount=discount)
    counts = torch.bincount(steps, minlength=horizon + 1)
    assert counts[0] == 0 and len(counts) == horizon + 1
    weights = discount ** torch.arange(1, horizon + 1, dtype=torch.float64)
    torch.testing.assert_close(
        counts[1:].double() / grid, weights / weights.sum(), rtol=0.0, atol=2.0 / grid
    )


def test_truncated_geometric_at_its_edges() -> None:
    almost_one = torch.tensor([1.0 - 2.0**-53, 0.0], dtype=torch.float64)
    horizon = torch.tensor([5, 5])
    assert truncated_geometric(almost_one, horizon, discount=0.9).tolist() == [5, 1]
    assert truncated_geometric(almost_one, horizon * 0, discount=0.9).tolist() == [0, 0]
    # The reference's weights overflow in fp32 from this discount on.
    assert truncated_geometric(almost_one, horizon * 1000, discount=0.9).isfinite().all()


def test_sampled_goals_have_the_closed_form_distribution() -> None:
    discount = 0.8
    replay = filled_replay(rows=20, num_envs=1, lengths=[[100]], steps=20)
    batch = replay.sample(200_000, discount=discount, generator=Generator().manual_seed(3))
    ahead = (batch["goal"][:, 1] - batch["state"][:, 1]).long()
    row = batch["state"][:, 1].long()
    for start in (0, 10, 18):
        horizon = 20 - start
        share = torch.bincount(ahead[row == start], minlength=horizon + 1).double()
        share /= share.sum()
        weights = discount ** torch.arange(1, horizon + 1, dtype=torch.float64)
        expected = weights / weights.sum()
        draws = int((row == start).sum())
        sigma = (expected * (1 - expected) / draws).sqrt()
        assert share[0] == 0
        assert ((share[1:] - expected).abs() <= 5 * sigma + 1e-9).all()


@pytest.mark.parametrize(("window", "furthest"), [(5, 4), (0, 50)])
def test_window_ends_the_reach_of_goals(window: int, furthest: int) -> None:
    replay = filled_replay(rows=50, num_envs=1, lengths=[[1000]], steps=50, window=window)
    batch = replay.sample(20_000, discount=0.999, generator=Generator().manual_seed(0))
    assert (batch["goal"] - batch["state"])[:, 1].max() == furthest


@pytest.mark.parametrize("window", [0, 1000])
def test_sampling_makes_no_tensor_of_window_by_window(window: int) -> None:
    replay = filled_replay(rows=1000, num_envs=1, lengths=[[1000]], steps=1000, window=window)
    with LargestTensor() as watch:
        replay.sample(64, discount=0.99, generator=Generator().manual_seed(0))
    # Views of the storage pass by (3 numbers a row); nothing of 1000 x 1000 does.
    assert watch.numel <= 3 * 1000


@pytest.mark.parametrize(("dtype", "bytes_per_number"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_bytes_are_what_the_arithmetic_says(dtype: torch.dtype, bytes_per_number: int) -> None:
    sizes = {"rows": 100, "num_envs": 7, "state_size": 29, "action_size": 8}
    replay = Replay(**sizes, goal_slice=(1, 3), dtype=dtype)
    expected = replay_bytes(**sizes, goal_size=2, bytes_per_number=bytes_per_number)
    # 29 + 8 + 2 numbers and 2 int32 a step.
    num_bytes = sum(tensor.nbytes for tensor in replay.tensors().values())
    assert num_bytes == expected == 700 * (39 * bytes_per_number + 8)


def test_bfloat16_storage_returns_float32() -> None:
    replay = filled_replay(rows=8, num_envs=2, lengths=[[3], [5]], steps=11, dtype=torch.bfloat16)
    batch = replay.sample(16, discount=0.9, generator=Generator().manual_seed(0))
    assert {tensor.dtype for tensor in batch.values()} == {torch.float32}
    assert (batch["goal"][:, 0] == batch["state"][:, 0]).all()


def test_a_goal_needs_one_row_and_a_later_state_two() -> None:
    replay = filled_replay(rows=8, num_envs=2, lengths=[[3], [5]], steps=1)
    batch = replay.sample(4, discount=0.9, generator=Generator())
    assert (batch["goal"] - batch["state"]).tolist() == [[0.0, 1.0, 0.0]] * 4
    windowed = filled_replay(rows=8, num_envs=2, lengths=[[3], [5]], steps=1, window=5)
    with pytest.raises(ValueError, match="holds 1 rows; a goal needs 2"):
        windowed.sample(4, discount=0.9, generator=Generator())
    empty = filled_replay(rows=8, num_envs=2, lengths=[[3], [5]], steps=0)
    with pytest.raises(ValueError, match="holds 0 rows; a goal needs 1"):
        empty.sample(4, discount=0.9, generator=Generator())


def test_batches_and_memory_are_tables_for_whoever_likes_them() -> None:
    replay = filled_replay(rows=8, num_envs=2, lengths=[[3], [5]], steps=9)
    batch = replay.sample(16, discount=0.9, generator=Generator().manual_seed(0))
    drawn = replay.draw(16, discount=0.9, generator=Generator().manual_seed(0))
    assert batch.shape == (16,) and set(batch.keys()) == set(drawn)
    assert all(torch.equal(batch[name], drawn[name]) for name in drawn)
    assert replay.storage.shape == (8, 2)
    replay.storage["state"][0, 0] = 7.0
    assert (replay.state_dict()["state"][0, 0] == 7.0).all()


@pytest.mark.parametrize("steps", [3, 11])
def test_state_dict_round_trip_goes_on_the_same(steps: int) -> None:
    def fresh() -> Replay:
        return filled_replay(rows=8, num_envs=2, lengths=[[3], [5]], steps=steps)

    ours, theirs = fresh(), filled_replay(rows=8, num_envs=2, lengths=[[1], [2]], steps=5)
    saved: dict[str, Tensor] = {name: value.clone() for name, value in ours.state_dict().items()}
    theirs.load_state_dict(saved)
    for replay in (ours, theirs):
        for row in range(steps, steps + 9):
            state = torch.tensor([[0.0, row, 90.0], [1.0, row, 90.0]])
            replay.add(transition(state, torch.full((2,), 90)))
    draws = [
        replay.sample(64, discount=0.9, generator=Generator().manual_seed(5))
        for replay in (ours, theirs)
    ]
    assert (draws[0] == draws[1]).all()


def test_mean_of_an_untruncated_goal_distance() -> None:
    # Far from any end the mean is 1 / (1 - discount).
    uniform = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    steps = truncated_geometric(uniform, torch.full((100_000,), 10**6), discount=0.99)
    assert float(steps.double().mean()) == pytest.approx(100.0, rel=1e-3)
    assert math.isclose(float((steps == 1).double().mean()), 0.01, rel_tol=1e-3)


@pytest.mark.parametrize("steps", [5, 13])
@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("trajectory", -5, "never written"),
        ("last_row", 10**6, "never written"),
        ("last_row", -1, "behind the end of their trajectory"),
        ("last_row", None, ""),
    ],
)
def test_numbers_that_kernels_look_rows_up_by_are_checked(
    name: str, value: int | None, told: str, steps: int
) -> None:
    replay = filled_replay(rows=8, num_envs=2, lengths=[[3], [5]], steps=steps)
    tensors = {key: tensor.clone() for key, tensor in replay.state_dict().items()}
    if value is None:
        replay.check_rows(tensors)
        return
    tensors[name][:, 1] = value
    with pytest.raises(ValueError, match=told):
        replay.check_rows(tensors)


def test_a_collection_that_failed_is_forgotten() -> None:
    """Going back and adding the same rows again gives what was there without the detour."""

    def step(row: int, trajectory: int) -> Transition:
        state = torch.tensor([[0.0, row, trajectory], [1.0, row, trajectory]])
        numbers = torch.full((2,), trajectory)
        return Transition(state, state[:, :1], state, numbers, torch.zeros(2, dtype=torch.bool))

    ours, theirs = (
        filled_replay(rows=8, num_envs=2, lengths=[[3], [5]], steps=13) for _ in range(2)
    )
    for row in (13, 14):
        ours.add(step(row, 40 + row))
    ours.forget_after(13)
    for replay in (ours, theirs):
        for row in range(13, 18):
            replay.add(step(row, 90))
    draws = [
        replay.sample(64, discount=0.9, generator=Generator().manual_seed(5))
        for replay in (ours, theirs)
    ]
    assert (draws[0] == draws[1]).all()


@pytest.mark.parametrize("window", [0, 9])
def test_a_chunk_ends_with_its_trajectory(window: int) -> None:
    # Trajectories of 5 rows; the action of row r is r. The last of the ring is still running.
    replay = Replay(
        rows=12, num_envs=1, state_size=3, action_size=1, goal_slice=GOAL_SLICE, window=window
    )
    for row in range(13):
        replay.add(transition(torch.tensor([[0.0, row, row // 5]]), torch.tensor([row // 5])))
    batch = replay.sample(4000, discount=0.9, generator=Generator().manual_seed(0), chunk=3)
    assert batch["action"].shape == (4000, 3)
    found = {}
    for row, chunk, whole in zip(
        batch["state"][:, 1].tolist(),
        batch["action"].tolist(),
        batch["whole"].tolist(),
        strict=True,
    ):
        found.setdefault(row, set()).add((tuple(chunk), whole))
    if not window:
        assert found[5.0] == {((5.0, 6.0, 7.0), 1.0)} and found[7.0] == {((7.0, 8.0, 9.0), 1.0)}
        assert found[8.0] == {((8.0, 9.0, 0.0), 0.0)} and found[9.0] == {((9.0, 0.0, 0.0), 0.0)}
        assert found[10.0] == {((10.0, 11.0, 12.0), 1.0)} and found[12.0] == {
            ((12.0, 0.0, 0.0), 0.0)
        }
        assert set(found) == set(map(float, range(1, 13)))
    for row, chunks in found.items():
        for chunk, whole in chunks:
            inside = [action for action in chunk if action]
            assert inside == [row + offset for offset in range(len(inside))]
            assert int(row) // 5 == int(inside[-1]) // 5 and whole == (len(inside) == 3)


def test_with_failures_no_chunk_tells_that_its_trajectory_has_ended() -> None:
    # As above; trajectories 0 and 1 fail.
    replay = Replay(
        rows=12, num_envs=1, state_size=3, action_size=1, goal_slice=GOAL_SLICE, failures=True
    )
    for row in range(13):
        step = transition(torch.tensor([[0.0, row, row // 5]]), torch.tensor([row // 5]))
        replay.add(step._replace(failed=torch.tensor([row in (4, 9)])))
    batch = replay.sample(4000, discount=0.9, generator=Generator().manual_seed(0), chunk=3)
    later: dict[tuple[int, int], list[float]] = {}
    for row, chunk, whole in zip(
        batch["state"][:, 1].int().tolist(), batch["action"].tolist(), batch["whole"], strict=True
    ):
        own = min(3, (row // 5 + 1) * 5 - row, 13 - row)
        assert chunk[:own] == [row + offset for offset in range(own)] and whole == (own == 3)
        for place in range(own, 3):
            later.setdefault((own, place), []).append(chunk[place])
    # Whole chunks begin in rows 1, 2, 5, 6, 7 and 10.
    for (_, place), actions in later.items():
        values, counts = np.unique(actions, return_counts=True)
        assert values.tolist() == [place + first for first in (1, 2, 5, 6, 7, 10)]
        assert counts.min() > 0.7 * counts.mean()
    assert set(later) == {(1, 1), (1, 2), (2, 2)}


def test_chunks_without_a_whole_one_to_fill_them_up_stay_as_they_are() -> None:
    action = torch.tensor([[[1.0], [0.0], [0.0]], [[2.0], [3.0], [0.0]]])
    inside = torch.tensor([[True, False, False], [True, True, False]])
    assert torch.equal(filled_up(action, inside), action.flatten(1))
    action = torch.cat([action, torch.tensor([[[4.0], [5.0], [6.0]]])])
    inside = torch.cat([inside, torch.tensor([[True, True, True]])])
    assert filled_up(action, inside).tolist() == [[1, 5, 6], [2, 3, 6], [4, 5, 6]]
