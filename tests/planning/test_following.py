"""Following plans: when they are asked for, taken and given up, and that nobody waits for them."""

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.planning.grid import CELLS, at, make_planner
from torch_crl import load_policy
from torch_crl.errors import UsageError
from torch_crl.planning import following
from torch_crl.planning.following import (
    InBackground,
    Late,
    PlanningController,
    PlanningPolicy,
    Request,
)
from torch_crl.planning.planner import GOAL, START, Plan


class Recorder:
    """A policy that does nothing and remembers where it was sent."""

    goal_size, chunk = 2, 1

    def __init__(self) -> None:
        self.aims: list[list[list[float]]] = []

    def __call__(self, state: Tensor, goal: Tensor) -> Tensor:
        self.aims.append(goal.tolist())
        return torch.zeros(len(state), 2)


def make_controller(planning: Any, num_envs: int = 1) -> tuple[PlanningController, Recorder]:
    policy: Any = Recorder()
    return (
        PlanningController(policy, planning, num_envs=num_envs, goal_slice=slice(0, 2)),
        policy,
    )


def test_a_late_plan_is_used_exactly_so_many_steps_later() -> None:
    goal = torch.tensor([[3.0, 2.0]])
    for late in (0, 1, 3):
        controller, policy = make_controller(Late(make_planner(), late))
        for _ in range(6):
            controller(at((1, 2)), goal)
        first = [aim[0] != [3.0, 2.0] for aim in policy.aims].index(True)
        assert first == late
        assert controller.plans_taken == 1


def test_the_way_is_walked_from_sub_goal_to_sub_goal() -> None:
    controller, policy = make_controller(Late(make_planner(), 0))
    goal, here, visited = torch.tensor([[3.0, 2.0]]), (1, 2), []
    for _ in range(12):
        controller(at(here), goal)
        # The robot jumps to where it is sent.
        x, y = policy.aims[-1][0]
        here = round(x), round(y)
        visited.append(here)
    assert visited[-1] == (3, 2) and (2, 0) in visited
    assert controller.plans_taken == 1


def test_without_progress_another_way_is_taken() -> None:
    planner = make_planner()
    controller, policy = make_controller(Late(planner, 0))
    goal = torch.tensor([[3.0, 2.0]])
    # A robot that never moves: the first sub-goal of each new plan is another one.
    for _ in range(3 * (following.PATIENCE + 2)):
        controller(at((1, 2)), goal)
    aims = list(dict.fromkeys(tuple(aim[0]) for aim in policy.aims))
    assert controller.plans_taken == 4 and len(aims) == 4


def test_an_edge_between_nodes_that_is_not_passed_is_told_to_the_planner() -> None:
    asked: list[Request] = []

    class Told:
        def ask(self, requests: list[Request]) -> None:
            asked.extend(requests)

        def arrived(self, now: int) -> list[tuple[int, Plan]]:
            if len(asked) != 1 or now > 0:
                return []
            nodes = (3, 5, GOAL)
            places = torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
            return [(0, Plan(0, places, nodes, 0.5, 0.2, 4.0))]

    controller, policy = make_controller(Told())
    goal = torch.tensor([[4.0, 0.0]])
    # It gets to node 3 and not to node 5.
    for _ in range(following.PATIENCE + 2):
        controller(at((0, 0)), goal)
    assert policy.aims[-1] == [[2.0, 0.0]]
    assert [request.stuck_at for request in asked] == [None, (3, 5)]
    assert asked[1].avoid == frozenset()


def test_a_first_edge_that_is_not_passed_is_avoided_in_this_episode_only() -> None:
    asked: list[Request] = []

    class Told:
        def ask(self, requests: list[Request]) -> None:
            asked.extend(requests)

        def arrived(self, now: int) -> list[tuple[int, Plan]]:
            places = torch.tensor([[2.0, 0.0], [4.0, 0.0]])
            return [(0, Plan(0, places, (5, GOAL), 0.5, 0.2, 4.0))] if asked and not now else []

    controller, _ = make_controller(Told())
    goal = torch.tensor([[4.0, 0.0]])
    for _ in range(following.PATIENCE + 3):
        controller(at((0, 0)), goal)
    assert asked[-1].avoid == frozenset({(START, 5)})
    controller.reset(torch.tensor([True]))
    controller(at((0, 0)), goal)
    assert asked[-1].avoid == frozenset() and asked[-1].stuck_at is None


def test_a_plan_to_an_earlier_goal_is_not_taken() -> None:
    controller, policy = make_controller(Late(make_planner(), 2))
    controller(at((1, 2)), torch.tensor([[3.0, 2.0]]))
    for _ in range(2):
        controller(at((1, 2)), torch.tensor([[3.0, 4.0]]))
    # The plan of the first step has come; that for the new goal, asked for in the second, has not.
    assert policy.aims[-1] == [[3.0, 4.0]] and controller.plans_taken == 0
    controller(at((1, 2)), torch.tensor([[3.0, 4.0]]))
    assert policy.aims[-1] != [[3.0, 4.0]] and controller.plans_taken == 1


def test_a_plan_of_an_earlier_episode_is_not_taken_even_to_the_same_goal() -> None:
    controller, policy = make_controller(Late(make_planner(), 5))
    goal = torch.tensor([[3.0, 2.0]])
    for _ in range(2):
        controller(at((1, 2)), goal)
    controller.reset()
    for _ in range(5):
        controller(at((3, 4)), goal)
    assert controller.plans_taken == 0 and policy.aims[-1] == [[3.0, 2.0]]
    controller(at((3, 4)), goal)
    # The plan of step 2, for a robot at (3, 4): two steps to the goal.
    assert controller.plans_taken == 1 and policy.aims[-1] == [[3.0, 2.0]]


def test_what_was_avoided_is_forgotten_with_a_new_goal_and_after_progress() -> None:
    planner = make_planner()
    controller, policy = make_controller(Late(planner, 0))
    for _ in range(following.PATIENCE + 2):
        controller(at((0, 0)), torch.tensor([[2.0, 0.0]]))
    # It did not get there straight, and goes over a node now.
    assert policy.aims[-1] != [[2.0, 0.0]]
    controller(at((0, 0)), torch.tensor([[0.0, 2.0]]))
    assert policy.aims[-1] == [[0.0, 2.0]]
    followed = controller._followed
    followed.avoid[0] = frozenset({(START, 3), (4, GOAL)})
    controller(at((1, 2)), torch.tensor([[3.0, 2.0]]))
    assert followed.avoid[0] == frozenset()
    followed.avoid[0] = frozenset({(START, 3), (4, GOAL)})
    x, y = policy.aims[-1][0]
    controller(at((round(x), round(y))), torch.tensor([[3.0, 2.0]]))
    assert followed.avoid[0] == frozenset({(4, GOAL)})


def test_a_plan_is_followed_from_the_last_sub_goal_within_reach_on() -> None:
    places = torch.tensor([[0.0, 0.0], [1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])

    class Told:
        def ask(self, requests: list[Request]) -> None:
            del requests

        def arrived(self, now: int) -> list[tuple[int, Plan]]:
            return [] if now else [(0, Plan(0, places, (3, 5, 6, GOAL), 0.5, 0.2, 4.0))]

    controller, policy = make_controller(Told())
    controller(torch.tensor([[1.2, 0.1, 0.0, 0.0]]), torch.tensor([[4.0, 0.0]]))
    assert policy.aims[-1] == [[2.0, 0.0]]


def test_a_robot_at_its_goal_is_left_there() -> None:
    planner = make_planner()
    planner.reach = 1.0
    for away, plans in ((0.4, 1), (0.6, 2)):
        controller, policy = make_controller(Late(planner, 0))
        # The radius of success of point mazes is 0.5.
        for _ in range(following.PATIENCE + 3):
            controller(torch.tensor([[2.0 + away, 0.0, 0.0, 0.0]]), torch.tensor([[2.0, 0.0]]))
        assert controller.plans_taken == plans
        assert (policy.aims[-1] == [[2.0, 0.0]]) == (plans == 1)


def test_controllers_do_not_share_which_edges_failed() -> None:
    policy = PlanningPolicy(make_planner(), policy=Recorder())  # type: ignore[arg-type]
    first, second = policy.controller(), policy.controller()
    graphs = [each.planning.planner.graph for each in (first, second)]  # type: ignore[attr-defined]
    for _ in range(3):
        graphs[0].failed(0, 1)
    assert graphs[0].dropped == [(0, 1)]
    assert graphs[1].dropped == [] and policy.planner.graph.dropped == []


def test_every_episode_has_a_plan_of_its_own() -> None:
    controller, policy = make_controller(Late(make_planner(), 0), num_envs=3)
    goal = torch.tensor([[3.0, 2.0], [0.0, 1.0], [1.0, 2.0]])
    controller(at((1, 2), (0, 0), (3, 2)), goal)
    first, second, third = policy.aims[-1]
    assert second == [0.0, 1.0]
    assert first[0] < 3 and third[0] > 1 and first != third
    controller.reset(torch.tensor([True, False, False]))
    controller(at((3, 4), (0, 0), (3, 2)), torch.tensor([[3.0, 2.0], [0.0, 1.0], [1.0, 2.0]]))
    assert policy.aims[-1][0] == [3.0, 2.0] and policy.aims[-1][2] == third


def test_a_busy_planner_is_not_waited_for_and_the_newest_state_wins() -> None:
    planner, gate, begun = make_planner(), threading.Event(), threading.Event()
    asked: list[list[float]] = []
    plan = planner.plan

    def slow(state_NS: Tensor, goal_NG: Tensor, **options: Any) -> list[Plan]:
        begun.set()
        assert gate.wait(20)
        asked.append(state_NS[0, :2].tolist())
        return plan(state_NS, goal_NG, **options)

    planner.plan = slow  # type: ignore[method-assign]
    background = InBackground(planner)
    goal = torch.tensor([3.0, 2.0])

    def request(cell: tuple[int, int]) -> Request:
        return Request(0, at(cell)[0], goal, frozenset(), None, 2)

    controller, policy = make_controller(background)
    # The thread is held; the controller goes on, with the goal itself.
    controller(at((1, 2)), goal[None])
    assert begun.wait(20)
    controller(at((1, 2)), goal[None])
    assert policy.aims == [[[3.0, 2.0]]] * 2
    for cell in ((0, 0), (0, 1), (0, 2)):
        background.ask([request(cell)])
    gate.set()
    found: list[tuple[int, Plan]] = []
    while len(found) < 2:
        found += background.arrived(3)
    background.close()
    assert asked == [[1.0, 2.0], [0.0, 2.0]]
    assert CELLS[found[1][1].nodes[0]] != (0, 2)


def test_an_error_of_the_planner_reaches_the_caller() -> None:
    planner = make_planner()

    def broken(*_: Any, **__: Any) -> list[Plan]:
        raise RuntimeError("no way")

    planner.plan = broken  # type: ignore[method-assign]
    background = InBackground(planner)
    controller, _ = make_controller(background)
    try:
        for _ in range(1000):
            controller(at((1, 2)), torch.tensor([[3.0, 2.0]]))
            threading.Event().wait(0.001)
    except RuntimeError as error:
        assert str(error) == "no way"
    else:
        raise AssertionError("the error was lost")
    finally:
        background.close()


def test_an_old_plan_is_given_up() -> None:
    controller, policy = make_controller(Late(make_planner(), 0))
    goal = torch.tensor([[3.0, 2.0]])
    controller(at((1, 2)), goal)
    assert policy.aims[-1] != [[3.0, 2.0]]
    controller.planning = Late(make_planner(), 10**6)
    controller.now += following.MAX_AGE + 1
    controller(at((1, 2)), goal)
    assert policy.aims[-1] == [[3.0, 2.0]]


def test_one_robot_gives_a_state_and_gets_an_action() -> None:
    controller, policy = make_controller(Late(make_planner()))
    for state, goal in (
        (at((1, 2))[0], torch.tensor([3.0, 2.0])),
        (at((1, 2))[0].numpy(), torch.tensor([3.0, 2.0]).numpy()),
    ):
        action = controller(state, goal)
        assert action.shape == (2,) and type(action) is type(state)
    assert policy.aims[0] == policy.aims[1] != [[3.0, 2.0]]


def test_a_policy_of_another_task_is_refused() -> None:
    planner = make_planner()
    planner.value.policy = load_policy("zoo:point_u_maze")
    PlanningPolicy(planner, policy=load_policy("zoo:point_hardest_maze"))
    told = r"have \(10, 3, 2\) numbers, those of the planner \(4, 2, 2\)"
    with pytest.raises(UsageError, match=told):
        PlanningPolicy(planner, policy=load_policy("zoo:reacher"))
