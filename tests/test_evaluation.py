"""Evaluation metrics, with policies whose episodes are known in advance."""

import pytest
import torch
from torch import Tensor

from tests.goal_envs import register
from torch_crl.envs.registry import make_task
from torch_crl.evaluation import evaluate


def hold_still(state: Tensor, goal: Tensor) -> Tensor:
    return torch.zeros(len(state), 2)


def stay(state: Tensor, goal: Tensor) -> Tensor:
    """What the Gymnasium puck understands as 0."""
    return torch.tensor([[1.0 / 3.0, -1.0]]).expand(len(state), 2)


def go_to_goal(state: Tensor, goal: Tensor) -> Tensor:
    """A damped spring to the goal."""
    return (3.0 * (goal - state[:, :2]) - 2.0 * state[:, 2:]).clamp(-1, 1)


def test_a_puck_that_holds_still_keeps_its_distance() -> None:
    metrics = evaluate(hold_still, "own_task:make", num_envs=256, episode_length=20, seed=3)
    generator = torch.Generator().manual_seed(3)
    distance = make_task("own_task:make").sample_start(256, generator).goal_NG.norm(dim=-1)
    close = (distance < 0.2).float().mean().item()
    assert metrics["final_distance"] == pytest.approx(distance.mean().item(), rel=1e-5)
    assert metrics["mean_distance"] == pytest.approx(distance.mean().item(), rel=1e-5)
    assert metrics["success_any"] == pytest.approx(close)
    assert metrics["time_at_goal"] == pytest.approx(20 * close)
    assert metrics["time_at_goal_share"] == pytest.approx(close)
    assert metrics["episode_length"] == 20


def test_a_puck_that_goes_there_stays() -> None:
    steps: list[int] = []
    metrics = evaluate(
        go_to_goal, "own_task:make", num_envs=64, episode_length=200, seed=0, on_step=steps.append
    )
    assert metrics["success_any"] == 1.0
    assert metrics["final_distance"] < 0.01
    assert 100 < metrics["time_at_goal"] < 200
    assert steps == list(range(1, 201))


def test_an_episode_counts_until_it_first_ends() -> None:
    # Full torque throws ants over within some steps; what follows the first fall is not counted.
    def thrash(state: Tensor, goal: Tensor) -> Tensor:
        return torch.sin(torch.arange(8.0) + 40.0 * state[:, 2:3]).sign()

    long, longer = (
        evaluate(thrash, "ant", num_envs=32, episode_length=length, seed=1) for length in (300, 400)
    )
    assert long["episode_length"] < 300
    for name in set(long) - {"time_at_goal_share"}:
        assert long[name] == longer[name]
    assert {"time_at_goal_easy", "time_at_goal"} <= set(long)


def test_shares_are_of_an_envs_own_time_limit() -> None:
    name = register("OwnLimit", own_limit=5)
    metrics = evaluate(stay, name, num_envs=32, episode_length=20, seed=2, num_threads=1)
    assert metrics["episode_length"] == 5
    assert metrics["time_at_goal"] == 5 * metrics["success_any"] > 0
    assert metrics["time_at_goal_share"] == pytest.approx(metrics["success_any"])


def test_an_episode_that_terminates_loses_the_rest_of_its_time() -> None:
    # Pucks that go far to the right fail after some steps.
    name = register("Puck")
    metrics = evaluate(
        lambda state, goal: torch.tensor([[1.0, -1.0]]).expand(len(state), 2),
        name,
        num_envs=32,
        episode_length=20,
        seed=2,
        num_threads=1,
    )
    assert metrics["episode_length"] < 15 and metrics["time_at_goal"] > 0
    assert metrics["time_at_goal_share"] == pytest.approx(metrics["time_at_goal"] / 20)


def test_equal_seeds_give_equal_numbers_at_any_thread_count() -> None:
    results = [
        evaluate(
            go_to_goal, "own_task:make", num_envs=8, episode_length=30, seed=5, num_threads=threads
        )
        for threads in (1, 2)
    ]
    assert results[0] == results[1]
    other = evaluate(go_to_goal, "own_task:make", num_envs=8, episode_length=30, seed=6)
    assert other != results[0]
