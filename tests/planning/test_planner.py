"""Plans on a grid with known distances, and planners of trained runs."""

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.recipes import TINY, tiny
from tests.planning.grid import CELLS, STEPS, at, make_planner
from torch_crl import evaluate, train
from torch_crl.envs.registry import task_spec
from torch_crl.errors import UsageError
from torch_crl.kernels.infonce import ENERGIES
from torch_crl.planning.following import PlanningPolicy
from torch_crl.planning.goal_value import GoalValue, TrainedRun, load_trained_run
from torch_crl.planning.planner import (
    GOAL,
    START,
    GraphPlanner,
    Plan,
    build_planner,
    load_planner,
)
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.runs.directory import RunDirectory
from torch_crl.system import checkpoint

TINY_CLONING = TINY | {"networks": {"width": 8}}


def test_a_plan_goes_around_the_wall() -> None:
    (plan,) = make_planner().plan(at((1, 2)), torch.tensor([[3.0, 2.0]]))
    # Straight through the wall it would be 2 cells, and the critic says 4 steps; around it are 10.
    assert STEPS[1, 2][3, 2] == 10
    assert plan.steps == 10 and plan.nodes[-1] == GOAL
    way = [(1, 2), *[(round(x), round(y)) for x, y in plan.subgoals_KG.tolist()]]
    assert way[-1] == (3, 2) and (2, 0) in way
    assert sum(STEPS[begin][end] for begin, end in itertools.pairwise(way)) == 10
    assert all(STEPS[begin][end] <= 3 for begin, end in itertools.pairwise(way))


def test_a_near_goal_is_gone_to_directly() -> None:
    (plan,) = make_planner().plan(at((0, 0)), torch.tensor([[2.0, 0.0]]))
    assert plan.nodes == (GOAL,) and plan.steps == 2
    assert plan.subgoals_KG.tolist() == [[2.0, 0.0]]


def test_an_unreachable_goal_is_told_and_walked_to() -> None:
    cells = [cell for cell in CELLS if cell[0] < 2]
    planner = make_planner(cells=cells, longest=1.0)
    # Without the nodes of the upper right no way is known; only the lonely goal's own node is near.
    planner.node_MS = torch.cat([planner.node_MS, at((4, 2))])
    planner.length_MM = torch.full((len(cells) + 1,) * 2, math.inf)
    planner.length_MM[:-1, :-1] = make_planner(cells=cells).length_MM
    planner.at_node_M = torch.zeros(len(cells) + 1)
    planner.__post_init__()
    (plan,) = planner.plan(at((0, 1)), torch.tensor([[4.0, 2.0]]))
    assert plan.nodes == (GOAL,) and plan.steps == math.inf
    assert plan.subgoals_KG.tolist() == [[4.0, 2.0]]


def test_edges_to_avoid_are_avoided() -> None:
    planner = make_planner()
    goal = torch.tensor([[3.0, 0.0]])
    (straight,) = planner.plan(at((0, 0)), goal)
    assert straight.nodes == (GOAL,)
    (other,) = planner.plan(at((0, 0)), goal, avoid=[frozenset({(START, GOAL)})])
    first = other.nodes[0]
    assert len(other.nodes) > 1 and other.steps == 3
    (third,) = planner.plan(at((0, 0)), goal, avoid=[frozenset({(START, GOAL), (START, first)})])
    assert first not in third.nodes[:1] and third.nodes[0] != GOAL
    before = other.nodes[-2]
    (fourth,) = planner.plan(at((0, 0)), goal, avoid=[frozenset({(START, GOAL), (before, GOAL)})])
    assert fourth.nodes[-2] != before


def test_a_false_edge_attracts_plans_until_it_has_failed() -> None:
    planner = make_planner(wrong={((1, 2), (3, 2)): 1.0})
    begin, end = CELLS.index((1, 2)), CELLS.index((3, 2))
    goal = torch.tensor([[4.0, 2.0]])
    (plan,) = planner.plan(at((1, 4)), goal)
    assert plan.nodes[-2] == end and plan.steps < STEPS[1, 4][4, 2]
    for _ in range(3):
        planner.failed(begin, end)
    (plan,) = planner.plan(at((1, 4)), goal)
    assert plan.steps == STEPS[1, 4][4, 2]


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    path = tmp_path_factory.mktemp("planned") / "run"
    train(tiny("point_u_maze"), path, show=False)
    return RunDirectory(path)


@pytest.fixture(scope="module")
def trained(run_directory: RunDirectory) -> TrainedRun:
    return load_trained_run(run_directory, states=1000)


def test_the_critic_is_that_of_the_checkpoint(
    run_directory: RunDirectory, trained: TrainedRun
) -> None:
    _, tensors, _, _ = checkpoint.load_newest(run_directory.saved_checkpoints)
    for name, tensor in trained.value.tensors().items():
        assert tensor.equal(tensors[f"learner/parameter.{name}"]), name
    visited = {tuple(row) for row in tensors["replay/state"].flatten(0, 1).tolist()}
    assert {tuple(row) for row in trained.visited_PS.tolist()} <= visited


def test_the_value_is_the_energy_of_the_policys_action(trained: TrainedRun) -> None:
    value = trained.value
    state, goal = trained.visited_PS[:5], trained.visited_PS[5:10, :2]
    action = value.policy.plan(state, goal).flatten(1)
    encoders = value.objective.modules
    with torch.no_grad():
        phi = encoders["state_action_encoder"](torch.cat([state, action], -1)).double()
        psi = encoders["goal_encoder"](goal).double()
    energy = ENERGIES[trained.recipe.algorithm.energy].pairwise(phi, psi)
    torch.testing.assert_close(value(state, goal).double(), energy.diagonal(), atol=1e-5, rtol=1e-5)


def test_distances_in_steps_by_hand(trained: TrainedRun) -> None:
    value = GoalValue(
        policy=trained.value.policy, objective=trained.value.objective, discount=math.exp(-0.5)
    )
    # Half a nat is a step; no distance is below one.
    steps = value.steps(torch.tensor([-3.0, -1.0, 2.0]), torch.tensor(-1.0))
    assert steps.tolist() == [4.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("task", "objective"), [("reacher", "survival"), ("reacher", "chrono"), ("ant", "safe")]
)
def test_other_objectives_tell_distances_too(task: str, objective: str, tmp_path: Path) -> None:
    recipe = tiny(task, algorithm={"objective": objective})
    train(recipe, tmp_path / "run", show=False)
    run = load_trained_run(RunDirectory(tmp_path / "run"), states=50)
    value, state = run.value, run.visited_PS[:9]
    values = value(state, state[:, slice(*task_spec(task).goal_slice)])
    assert values.shape == (9,) and values.isfinite().all()
    steps = value.steps(values - 5.0, values)
    if objective == "safe":
        torch.testing.assert_close(steps, torch.full((9,), 5 / -math.log(value.discount)))
    else:
        # Minus the expected number of steps.
        torch.testing.assert_close(steps, (5.0 - values).clamp_min(1.0))


def test_a_saved_planner_makes_the_same_plans(trained: TrainedRun, tmp_path: Path) -> None:
    planner = build_planner(trained, nodes=12)
    planner.save(tmp_path / "planner")
    loaded = load_planner(tmp_path / "planner")
    state, goal = trained.visited_PS[:6], trained.visited_PS[-6:, :2]
    for ours, theirs in zip(planner.plan(state, goal), loaded.plan(state, goal), strict=True):
        assert ours.nodes == theirs.nodes and ours.steps == theirs.steps
        assert ours.subgoals_KG.equal(theirs.subgoals_KG) and ours.reach == theirs.reach
    # Another one in its place, but not in the place of anything else.
    build_planner(trained, nodes=4).save(tmp_path / "planner")
    assert len(load_planner(tmp_path / "planner").node_MS) == 4
    other = tmp_path / "other"
    checkpoint.save(other, {"x": torch.zeros(1)}, {"kind": "other"})
    with pytest.raises(checkpoint.CheckpointError, match="holds no planner"):
        load_planner(other)
    with pytest.raises(UsageError, match="exists and holds no planner"):
        planner.save(other)
    assert (other / "meta.json").exists()


def test_a_planner_runs_the_code_of_its_task_only_if_trusted(tmp_path: Path) -> None:
    recipe = preset("point_u_maze").to_json().replace('"point_u_maze"', '"some_module:make"')
    checkpoint.save(tmp_path / "sent", {"x": torch.zeros(1)}, {"recipe": recipe, "longest": 1.0})
    with pytest.raises(UsageError, match=r"would import some_module .* give --trust"):
        load_planner(tmp_path / "sent")


class OneWay:
    """A value on a line where going up costs 1 and going down 3, and speed is lost first.

    V(s, g) = -cost - 10 |speed| - x_g, so that V of a state at rest for its own goal is -x.
    """

    policy = None

    def __call__(self, state_BS: Tensor, goal_BG: Tensor) -> Tensor:
        up_B = goal_BG[:, 0] - state_BS[:, 0]
        cost_B = torch.where(up_B > 0, up_B, -3.0 * up_B)
        return -cost_B - 10.0 * state_BS[:, 2].abs() - goal_BG[:, 0]

    def steps(self, value: Tensor, at_goal: Tensor) -> Tensor:
        return (at_goal - value).clamp_min(1.0)


def test_distances_between_nodes_by_hand() -> None:
    # Two visited states at each of 0, 2 and 5, one of them moving, and a lonely moving one at 9.
    rows = [(x, 0.0, speed, 0.0) for x in (0.0, 2.0, 5.0) for speed in (1.0, 0.0)]
    visited = torch.tensor([*rows, (9.0, 0.0, 0.5, 0.0)])
    value: Any = OneWay()
    planner = build_planner(TrainedRun(preset("point_u_maze"), value, visited, []), nodes=4)
    order = planner.places[:, 0].argsort()
    nodes, lengths = planner.node_MS[order], planner.length_MM[order][:, order]
    # At rest where there is such a state; the neighbours of the lonely one are too far away.
    assert nodes[:, [0, 2]].tolist() == [[0, 0], [2, 0], [5, 0], [9, 0.5]]
    assert planner.at_node_M[order].tolist() == [0, -2, -5, -14]
    # From row to column: at the goal -x (-14 at 9), less the cost of the way and of the speed.
    up, moving = [0.0, 2.0, 5.0, 9.0], [0.0, 0.0, 0.0, 5.0]
    for row, column in itertools.permutations(range(4), 2):
        way = up[column] - up[row]
        cost = way if way > 0 else -3 * way
        expected = max(1.0, cost + moving[row] - moving[column])
        assert float(lengths[row, column]) == expected, (row, column)
    assert lengths.diagonal().isinf().all()
    # Without the edge from 9 down to 5, which costs 12 and 5 for the speed, nothing leads from 9.
    assert planner.longest == 17.0
    assert planner.arrived == 0.5


def test_a_goal_off_all_nodes_is_joined_to_the_nearest() -> None:
    planner = make_planner(cells=[(0, 0), (1, 0), (2, 0)], longest=1.0)
    # The goal is two steps from the last node, more than any edge.
    (plan,) = planner.plan(at((0, 0)), torch.tensor([[4.0, 0.0]]))
    assert plan.nodes == (1, 2, GOAL) and plan.steps == 4.0


def test_where_no_node_is_near_the_nearest_that_leads_on_is_first() -> None:
    cells = [(2, 0), (3, 0), (4, 0), (4, 1), (0, 4)]
    planner = make_planner(cells=cells, longest=1.0)
    (plan,) = planner.plan(at((0, 0)), torch.tensor([[4.0, 1.0]]))
    assert plan.nodes[0] == 0 and plan.nodes[-1] == GOAL and plan.steps == math.inf


def test_nodes_are_visited_states_at_rest(trained: TrainedRun) -> None:
    planner = build_planner(trained, nodes=10)
    visited = {tuple(row) for row in trained.visited_PS.tolist()}
    assert {tuple(row) for row in planner.node_MS.tolist()} <= visited
    assert planner.reach == 2.0 and planner.at_node_M.isfinite().all()
    assert build_planner(trained, nodes=3, reach=0.7).reach == 0.7


def test_episodes_with_plans_that_are_the_goal_are_those_without(
    trained: TrainedRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner = build_planner(trained, nodes=5)

    def to_the_goal(_: Tensor, goal_NG: Tensor, **__: object) -> list[Plan]:
        return [Plan(0, goal[None], (GOAL,), 2.0, 0.5, math.inf) for goal in goal_NG]

    monkeypatch.setattr(GraphPlanner, "plan", staticmethod(to_the_goal))
    scores = [
        evaluate(policy, "point_u_maze", num_envs=3, episode_length=12, seed=5)
        for policy in (trained.value.policy, PlanningPolicy(planner))
    ]
    assert scores[0] == scores[1]


def test_what_cannot_be_planned_with_is_refused(tmp_path: Path) -> None:
    cloning = with_changes(preset("reacher", algo="gcbc"), **TINY_CLONING)
    train(cloning, tmp_path / "cloned", show=False)
    with pytest.raises(UsageError, match="--algo gcbc, whose critic tells no distances"):
        load_trained_run(RunDirectory(tmp_path / "cloned"), states=10)
    train(tiny("arm_grasp"), tmp_path / "moving", show=False)
    run = load_trained_run(RunDirectory(tmp_path / "moving"), states=10)
    with pytest.raises(UsageError, match="moves with the robot's state"):
        build_planner(run, nodes=3)
    for folder in (tmp_path / "moving" / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    with pytest.raises(UsageError, match="has no checkpoint"):
        load_trained_run(RunDirectory(tmp_path / "moving"), states=10)
