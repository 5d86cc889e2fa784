"""Evaluation metrics, with policies whose episodes are known in advance."""

import re
from dataclasses import replace

import own_task
import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.goal_envs import register
from torch_crl.envs.registry import make_task
from torch_crl.envs.task import Start, Task
from torch_crl.errors import UsageError
from torch_crl.training.evaluation import evaluate


def hold_still(state: Tensor, goal: Tensor) -> Tensor:
    return torch.zeros(len(state), 2)


def stay(state: Tensor, goal: Tensor) -> Tensor:
    """What the Gymnasium puck understands as 0."""
    return torch.tensor([[1.0 / 3.0, -1.0]]).expand(len(state), 2)


def go_to_goal(state: Tensor, goal: Tensor) -> Tensor:
    """A damped spring to the goal."""
    return (3.0 * (goal - state[:, :2]) - 2.0 * state[:, 2:]).clamp(-1, 1)


CELLS: list[tuple[float, float]] = []
"""The goals of `make_maze`, dealt out to the envs in turns."""


def make_maze() -> Task:
    """The puck at (0, 0), whose goals are cells; each commanded with some rounding."""

    def sample_start(num_envs: int, generator: Generator) -> Start:
        start = task.sample_start(num_envs, generator)
        goal = torch.tensor(CELLS).repeat(num_envs // len(CELLS) + 1, 1)[:num_envs]
        rounding = 1e-7 * torch.rand(goal.shape, generator=generator) - 5e-8
        return start._replace(goal_NG=goal + rounding)

    task = own_task.make()
    spec = replace(task.spec, name="tests.training.test_evaluation:make_maze")
    return replace(task, spec=spec, sample_start=sample_start)


def success_by_goal(policy: object, **options: int) -> dict[str, float]:
    metrics = evaluate(policy, "tests.training.test_evaluation:make_maze", **options)  # type: ignore[arg-type]
    return {name: value for name, value in metrics.items() if name.startswith("success_at")}


def test_success_is_told_by_goal_where_goals_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tests.training.test_evaluation.CELLS", [(0.5, -0.75), (0.125, 0.0), (-0.5, 0.5)]
    )

    def first_half_goes(state: Tensor, goal: Tensor) -> Tensor:
        action = go_to_goal(state, goal)
        action[6:] = 0.0
        return action

    # Of the twelve episodes four have each goal; two of those go there. The puck lies within the
    # radius of (0.125, 0) from the start.
    found = success_by_goal(first_half_goes, num_envs=12, episode_length=100)
    expected = {"success_at_-0.5_0.5": 0.5, "success_at_0.125_0": 1.0, "success_at_0.5_-0.75": 0.5}
    assert found == expected and list(found) == list(expected)


@pytest.mark.parametrize(("goals", "envs", "told"), [(16, 17, 16), (17, 40, 0), (3, 3, 0)])
def test_success_by_goal_needs_few_goals_that_episodes_share(
    goals: int, envs: int, told: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [(0.5, 0.01 * n) for n in range(goals)]
    monkeypatch.setattr("tests.training.test_evaluation.CELLS", cells)
    assert len(success_by_goal(hold_still, num_envs=envs, episode_length=2)) == told


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


@pytest.mark.parametrize("wrong", [{"num_envs": 0}, {"num_envs": -2}, {"episode_length": 0}])
def test_no_env_and_no_step_are_refused_by_name(wrong: dict[str, int]) -> None:
    ((name, count),) = wrong.items()
    with pytest.raises(UsageError, match=f"{name} must be at least 1, got {count}"):
        evaluate(hold_still, "own_task:make", **{"num_envs": 2, "episode_length": 5, **wrong})


@pytest.mark.parametrize(
    ("action", "given"),
    [(torch.zeros(2, 3), "[2, 3]"), (torch.zeros(2).numpy(), "ndarray"), (None, "NoneType")],
)
def test_a_policy_that_returns_no_action_is_told(action: object, given: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"tensor of shape [2, 2], got {given}")):
        evaluate(lambda state, goal: action, "own_task:make", num_envs=2, episode_length=5)  # type: ignore[arg-type, return-value]
