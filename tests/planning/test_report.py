"""The numbers in a report about plans: how many were asked for, and how long one takes."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.planning.grid import CELLS, GridValue, at, make_planner
from tests.planning.test_following import Recorder
from torch_crl.planning import report
from torch_crl.planning.report import Trial


def trial(**changes: Any) -> Trial:
    policy: Any = Recorder()
    options = {"num_envs": 2, "episode_length": 1000, "seed": 0, "env_timeout": 1.0}
    return Trial(planner=make_planner(), policy=policy, task="point_u_maze", **options, **changes)


def test_plans_are_counted_by_the_steps_that_were_done(monkeypatch: pytest.MonkeyPatch) -> None:
    def ending_early(policy: Any, *_: Any, on_step: Callable[[int], object], **__: Any) -> Any:
        controller = policy.controller(2)
        for step in range(1, 101):
            controller(at((1, 2), (1, 2)), torch.tensor([[3.0, 2.0], [3.0, 2.0]]))
            on_step(step)
        return {"success_any": 0.0, "time_at_goal_share": 0.0, "final_distance": 1.0}

    monkeypatch.setattr(report, "evaluate", ending_early)
    seen: list[int] = []
    row = trial().planned(0, seen.append)
    # A robot that gets no nearer asks at its first step and every 20 steps from then on.
    assert row["plans_in_1000_steps"] == 1000 * 5 / 100
    assert seen == [*range(1, 101)]


def test_a_plan_to_a_new_goal_is_told_from_another_one_to_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = 0

    class Counting(GridValue):
        def __call__(self, state_BS: Tensor, goal_BG: Tensor) -> Tensor:
            nonlocal rows
            rows += len(state_BS)
            return super().__call__(state_BS, goal_BG)

    def rows_of_each(call: Callable[[], object], calls: int) -> list[float]:
        totals = [rows]
        for _ in range(calls):
            call()
            totals.append(rows)
        return [float(after - before) for before, after in itertools.pairwise(totals)]

    tried = trial()
    value: Any = Counting()
    tried.planner.value = value
    monkeypatch.setattr(tried.policy, "plan", tried.policy, raising=False)
    # In place of milliseconds, the rows that go through the critic.
    monkeypatch.setattr(report, "wall_clock", rows_of_each)
    told = tried.milliseconds()
    # From the state to all nodes and to the goal; to a new goal also from all nodes and from it.
    assert told["plan_again_ms"] == len(CELLS) + 1
    assert told["plan_ms"] == 2 * (len(CELLS) + 1)
