"""Chunks of actions: in plans, in controllers, in collection, in the losses, in checkpoints."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.graph_stand_in import StandIn
from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_resumes
from torch_crl import evaluate, load_policy
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.plans import Plans
from torch_crl.agent.policy import Controller, Policy
from torch_crl.agent.sizes import TowerSizes
from torch_crl.envs.vector_env import StepResult
from torch_crl.errors import UsageError
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.runs.policies import save_policy
from torch_crl.training.building import build_run

CHUNK = {"chunk": 3}


@pytest.fixture
def policy() -> Policy:
    # States of 3, goals of 2, three actions of 2 numbers each.
    sizes = TowerSizes(input_size=5, output_size=12, width=8, depth=4)
    actor = ResidualTower(sizes, generator=Generator().manual_seed(0))
    return Policy(actor, state_size=3, goal_size=2, chunk=3)


def test_every_env_follows_its_plan_to_the_end_and_then_the_next() -> None:
    plans = Plans(3, 2, 1)
    made = 0

    def make() -> Tensor:
        nonlocal made
        made += 1
        return torch.tensor([[10.0, 11.0], [20.0, 21.0], [30.0, 31.0]]) + 100 * made

    assert plans.next_action(make)[:, 0].tolist() == [110, 120, 130]
    plans.drop(torch.tensor([False, True, False]))
    # Env 1 begins anew, and the others go on with what they had.
    assert plans.next_action(make)[:, 0].tolist() == [111, 220, 131]
    assert plans.next_action(make)[:, 0].tolist() == [310, 221, 330]
    # Nobody needs a plan now, so none is made.
    plans.drop(torch.tensor([False, False, False]))
    assert plans.next_action(make)[:, 0].tolist() == [311, 420, 331] and made == 4


def test_a_policy_with_chunks_plans_and_names_its_controller(policy: Policy) -> None:
    state, goal = torch.randn(4, 3), torch.randn(4, 2)
    plan = policy.plan(state, goal)
    assert plan.shape == (4, 3, 2) and policy.action_size == 2
    assert torch.equal(plan, policy.plan(state, goal)), "planning has no memory"
    assert policy.plan(state[0], goal[0]).shape == (3, 2)
    with pytest.raises(UsageError, match=r"decides 3 actions at once.*policy\.controller\(n\)"):
        policy(state, goal)
    controller = policy.controller(4)
    for step in range(3):
        # What is seen in between does not matter.
        seen = state + step
        assert torch.equal(controller(seen, goal), plan[:, step])
    assert torch.equal(controller(seen, goal), policy.plan(seen, goal)[:, 0])
    controller.reset(torch.tensor([True, False, False, False]))
    action = controller(state, goal)
    assert torch.equal(action[0], plan[0, 0])
    assert torch.equal(action[1:], policy.plan(seen, goal)[1:, 1])
    controller.reset()
    assert torch.equal(controller(state, goal), plan[:, 0])


def test_a_controller_of_one_robot_takes_arrays(policy: Policy) -> None:
    controller = policy.controller()
    state, goal = np.zeros(3), np.ones(2)
    action = controller(state, goal)
    assert isinstance(action, np.ndarray) and action.shape == (2,)
    np.testing.assert_array_equal(action, policy.plan(state, goal)[0])
    with pytest.raises(ValueError, match=r"runs 1 episodes; got states of shape \[2, 3\]"):
        controller(np.zeros((2, 3)), goal)


def test_single_actions_need_no_controller_and_may_have_one() -> None:
    sizes = TowerSizes(input_size=5, output_size=4, width=8, depth=4)
    policy = Policy(
        ResidualTower(sizes, generator=Generator().manual_seed(0)), state_size=3, goal_size=2
    )
    state, goal = torch.randn(4, 3), torch.randn(4, 2)
    for controller in (policy.controller(4), Controller(policy, 4), Controller(policy.__call__, 4)):
        for _ in range(3):
            assert torch.equal(controller(state, goal), policy(state, goal))
        controller.reset()
    # As with plans, whose steps would otherwise belong to other episodes.
    with pytest.raises(ValueError, match=r"runs 4 episodes; got states of shape \[3, 3\]"):
        policy.controller(4)(state[:3], goal[:3])


def test_a_saved_policy_keeps_its_chunk(policy: Policy, tmp_path: Path) -> None:
    save_policy(policy, tmp_path / "policy", {})
    loaded = load_policy(tmp_path / "policy")
    state, goal = torch.randn(4, 3), torch.randn(4, 2)
    assert loaded.chunk == 3 and torch.equal(loaded.plan(state, goal), policy.plan(state, goal))


def test_collection_carries_out_plans_and_ends_them_with_the_episode() -> None:
    run = build_run(tiny(task={"episode_length": 5}, algorithm=CHUNK))
    sample, made = run.collector._sample, []  # type: ignore[union-attr]

    def watched(inputs: Tensor) -> Tensor:
        made.append(sample(inputs))
        return made[-1]

    run.collector._sample = watched  # type: ignore[union-attr,method-assign]
    for _ in range(2):
        run.collect()
    # Episodes of 5 steps: plans begin at steps 0 and 3 of each.
    actions, size = run.replay.storage["action"], run.env.spec.action_size
    assert len(made) == 4 and run.replay.next_row == 10
    for row in range(10):
        step = row % 5
        plan = made[2 * (row // 5) + step // 3].view(-1, 3, size)
        assert torch.equal(actions[row], plan[:, step % 3])


def test_evaluation_carries_out_plans(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    class Watched(Policy):
        def plan(self, state: Tensor, goal: Tensor) -> Tensor:  # type: ignore[override]
            calls.append(len(state))
            return torch.full((len(state), 3, 2), 0.1)

    sizes = TowerSizes(input_size=13, output_size=12, width=8, depth=4)
    watched = Watched(
        ResidualTower(sizes, generator=Generator().manual_seed(0)),
        state_size=10,
        goal_size=3,
        chunk=3,
    )
    evaluate(watched, "reacher", num_envs=2, episode_length=7, num_threads=1)
    assert calls == [2, 2, 2], "a plan at steps 0, 3 and 6"


@pytest.mark.parametrize("overlap", ["off", "on"])
def test_an_interrupted_run_goes_on_in_the_middle_of_its_plans(
    overlap: str, tmp_path: Path
) -> None:
    algorithm = {**CHUNK, "actor_goals": "mixed", "goal_redraw": 0.2}
    algorithm["update_order"] = "critic_first"
    recipe = tiny(algorithm=algorithm, budget={"checkpoints": 8}, system={"overlap": overlap})
    if overlap == "on":
        # Refused on the CPU as useless, though it works there.
        run, again = build_run(recipe), build_run(recipe)
        for _ in range(3):
            run.collect()
        again.load_state_dict(*run.state_dict())
        for each in (run, again):
            each.collect()
        for name, tensor in run.replay.tensors().items():
            assert torch.equal(tensor, again.replay.tensors()[name]), name
        return
    assert_resumes(recipe, tmp_path)
    assert load_policy(tmp_path / "whole").chunk == 3


def test_captured_updates_and_actions_are_those_of_eager_ones() -> None:
    algorithm = {**CHUNK, "actor_goals": "mixed", "contrastive_loss": "symmetric_info_nce"}
    eager = build_run(tiny(algorithm=algorithm))
    captured = build_run(
        tiny(algorithm=algorithm, system={"cuda_graph": "on"}), make_recorder=StandIn
    )
    for run in (eager, captured):
        for _ in range(4):
            run.collect()
        for _ in range(8):
            metrics = run.update()
        run.collect()
        assert all(value.isfinite() for value in metrics.values())
    for name, value in eager.learner.named_parameters().items():
        assert torch.equal(value, captured.learner.named_parameters()[name]), name
    assert torch.equal(eager.replay.storage["action"], captured.replay.storage["action"])


def test_a_chunk_multiplies_the_target_entropy() -> None:
    # -0.5 nats for each of 8 numbers in each of 3 actions.
    run = build_run(tiny("ant", algorithm=CHUNK))
    assert run.learner.target_entropy == -12.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"algorithm": {"chunk": 11}}, "--chunk 11 is longer than the episodes, which have 10"),
        (
            {"algorithm": {"chunk": 11}, "task": {"episode_length": 50}},
            "--chunk 11 is longer than the trajectories at the first update, which have 10",
        ),
        ({"algorithm": {"algo": "gcbc", "chunk": 3}}, "--chunk is not read by --algo gcbc"),
        ({"algorithm": {"algo": "gcbc", "actor_goals": "mixed"}}, "--actor-goals is not read"),
        (
            {"algorithm": {"goal_redraw": 0.1, "parity": "reference"}},
            "--goal-redraw must be 0 with --parity reference",
        ),
        ({"algorithm": {"goal_redraw": 1.0}}, "--goal-redraw must be below 1"),
    ],
)
def test_what_does_not_fit_is_refused(parts: dict[str, dict[str, object]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(tiny(**parts))


def test_a_step_result_ends_plans_by_failure_and_by_time() -> None:
    run = build_run(tiny("ant", algorithm=CHUNK, task={"episode_length": 5}))
    env, step = run.env, run.env.step
    ended: list[Tensor] = []

    def watched(action: Tensor) -> StepResult:
        if len(ended) == 1:
            env.simulator.data["qpos"][2, 2] = 3.0  # type: ignore[attr-defined]
        result = step(action)
        ended.append(result.terminated_N | result.truncated_N)
        return result

    env.step = watched  # type: ignore[method-assign]
    plans = run.collector._plans  # type: ignore[union-attr]
    assert plans is not None
    ages = []
    for _ in range(5):
        with torch.no_grad():
            run.collector.step()  # type: ignore[union-attr]
        ages.append(plans.age_N.tolist())
    assert ages == [[1] * 4, [2, 2, 0, 2], [0, 0, 1, 0], [1, 1, 2, 1], [0] * 4]
