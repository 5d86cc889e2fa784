"""Failure-aware contrastive RL: masses by hand, weights, log Z, and what counts as a failure."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Generator, Tensor
from torch.nn import functional

from tests.helpers.batches import A, G, S, make_batch
from tests.helpers.goal_envs import register
from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_resumes
from torch_crl.agent.networks import Networks, ResidualTower, build_networks
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.agent.objectives.objective import HitLabels, PolicyRows
from torch_crl.agent.objectives.safe import SafeObjective
from torch_crl.agent.sizes import TowerSizes, network_sizes
from torch_crl.envs.task import euclidean_distance
from torch_crl.experience.replay import Replay, Transition, survival_mass
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.recipe.presets import preset
from torch_crl.training.building import build_run

SAFE = {"objective": "safe"}
OPTIONS = {"energy": "norm", "contrastive_loss": "forward_info_nce", "logsumexp_penalty": 0.1}


def networks() -> Networks:
    sizes = network_sizes(
        state_size=S,
        goal_size=G,
        action_size=A,
        actor_depth=4,
        critic_depth=4,
        width=16,
        representation_size=8,
    )
    return build_networks(sizes, generator=Generator().manual_seed(0))


def objective(critic: Networks) -> SafeObjective:
    sizes = TowerSizes(input_size=S + A, output_size=1, width=16, depth=4)
    survival = ResidualTower(sizes, generator=Generator().manual_seed(1))
    return SafeObjective(critic, survival, **OPTIONS)


def batch_with(survived: Tensor) -> TensorDict:
    batch = make_batch(len(survived))
    batch["survived"] = survived
    return batch


def policy_rows(size: int) -> PolicyRows:
    action = torch.rand(size, A, generator=Generator().manual_seed(2)).requires_grad_()
    return PolicyRows(action, lambda goal: goal)


def test_masses_of_the_table() -> None:
    steps = torch.tensor([0, 1, 10, 100, 300])
    failed = torch.ones(5, dtype=torch.bool)
    mass = survival_mass(steps, failed, discount=0.99)
    expected = [0.0, 0.01, 0.0956, 0.6340, 0.9510]
    assert mass.tolist() == pytest.approx(expected, abs=5e-5)
    assert survival_mass(steps, ~failed, discount=0.99).tolist() == [1.0] * 5


def test_without_failures_the_critic_is_that_of_contrastive_rl() -> None:
    critic = networks()
    safe, plain = objective(critic), ContrastiveObjective(critic, **OPTIONS)
    batch, policy = batch_with(torch.ones(7)), policy_rows(7)
    # With z = +infinity nothing is ever lost, and the actor's score is the same too.
    torch.nn.init.constant_(safe.survival.output_bias, torch.inf)
    ours, theirs = safe.judge(batch, policy), plain.judge(make_batch(7), policy)
    assert torch.equal(ours.score_B, theirs.score_B)
    assert torch.equal(ours.metrics["contrastive_loss"], theirs.metrics["contrastive_loss"])


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_a_constant_mass_scales_the_classification_and_nothing_else(weight: float) -> None:
    critic = networks()
    safe, plain = objective(critic), ContrastiveObjective(critic, **OPTIONS)
    batch = batch_with(torch.full((7,), weight))
    logit = safe.survival(torch.cat([batch["state"], batch["action"]], dim=-1))[:, 0]
    cross_entropy = functional.binary_cross_entropy_with_logits(logit, batch["survived"])
    loss, metrics = safe.loss(batch)
    without, before = plain.loss(make_batch(7))
    penalty = without - before["contrastive_loss"]
    torch.testing.assert_close(loss, weight * before["contrastive_loss"] + penalty + cross_entropy)
    torch.testing.assert_close(metrics["contrastive_loss"], weight * before["contrastive_loss"])


def test_the_score_has_the_log_of_what_is_left_and_trains_the_action_only() -> None:
    critic = networks()
    safe, plain = objective(critic), ContrastiveObjective(critic, **OPTIONS)
    batch, policy = batch_with(torch.rand(7, generator=Generator().manual_seed(3))), policy_rows(7)
    chosen = torch.cat([batch["state"], policy.action_BA], dim=-1)
    z = safe.survival(chosen)[:, 0].sigmoid()
    expected = plain.score(batch, policy) + z.log()
    torch.testing.assert_close(safe.score(batch, policy), expected)
    judged = safe.judge(batch, policy)
    torch.testing.assert_close(judged.score_B, expected)
    torch.testing.assert_close(judged.loss, safe.loss(batch)[0])
    (gradient,) = torch.autograd.grad(judged.score_B.sum(), policy.action_BA, retain_graph=True)
    assert gradient.abs().sum() > 0
    assert torch.autograd.grad(
        judged.score_B.sum(), safe.parameters(), allow_unused=True, retain_graph=True
    ) == (None,) * len(safe.parameters())
    assert torch.autograd.grad(judged.loss, policy.action_BA, allow_unused=True) == (None,)


def test_the_replay_counts_the_steps_to_a_failure() -> None:
    # Trajectory 0 fails in row 3, 1 ends by time in row 6, 2 fails in row 8, 3 is running.
    replay = Replay(
        rows=12, num_envs=1, state_size=1, action_size=1, goal_slice=(0, 1), failures=True
    )
    number, failures, ends = 0, {3, 8}, {3, 6, 8}
    for row in range(11):
        state = torch.full((1, 1), float(row))
        replay.add(
            Transition(
                state=state,
                action=state,
                achieved=state + 1,
                trajectory=torch.tensor([number]),
                unstable=torch.tensor([False]),
                failed=torch.tensor([row in failures]),
            )
        )
        number += row in ends
    batch = replay.sample(3000, discount=0.5, generator=Generator().manual_seed(0))
    steps_left = {0: 3, 1: 2, 2: 1, 3: 0, 7: 1, 8: 0}
    goals: dict[int, set[int]] = {}
    for row, goal, survived in zip(
        batch["state"][:, 0].int().tolist(),
        batch["goal"][:, 0].int().tolist(),
        batch["survived"].tolist(),
        strict=True,
    ):
        expected = 1 - 0.5 ** steps_left[row] if row in steps_left else 1.0
        assert survived == pytest.approx(expected)
        goals.setdefault(row, set()).add(goal)
    # The state after a failure is no goal; the failing step has nothing but its own.
    assert goals[0] == {1, 2, 3} and goals[3] == {3} and goals[8] == {8}
    # The state after a time limit is one, as ever.
    assert goals[4] == {5, 6, 7} and goals[6] == {7}
    again = Replay(
        rows=12, num_envs=1, state_size=1, action_size=1, goal_slice=(0, 1), failures=True
    )
    again.load_state_dict(replay.state_dict())
    one, other = (
        each.sample(50, discount=0.5, generator=Generator().manual_seed(1))
        for each in (replay, again)
    )
    assert (one == other).all()


def test_diverged_physics_is_no_failure_and_a_fall_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = build_run(tiny("ant", algorithm=SAFE))
    env, step, seen = run.env, run.env.step, 0

    def watched(action: Tensor) -> object:
        nonlocal seen
        if seen == 2:
            env.simulator.data["qvel"][1, 0] = 1e12  # type: ignore[attr-defined]
            env.simulator.data["qpos"][2, 2] = 3.0  # type: ignore[attr-defined]
        seen += 1
        return step(action)

    env.step = watched  # type: ignore[method-assign,assignment]
    collected = run.collect()
    failed = run.replay.storage["failed"]
    steps = run.recipe.steps_per_collection
    assert collected["collected_failures"] == pytest.approx(1 / steps)
    assert failed[1].tolist() == [False, False, True, False]
    # One row before the failure, and one before the divergence: no goal was achieved in either.
    assert run.replay.storage["last_row"][1].tolist() == [4, 1, 1, 4]


def test_a_gymnasium_episode_that_ends_at_its_goal_has_not_failed() -> None:
    run = build_run(tiny(register("Puck that ends", ends_at_goal=True), algorithm=SAFE))
    try:
        assert run.env.terminates_at_goals
        collected = [run.collect() for _ in range(24)]
        assert not run.replay.storage["failed"].any()
        assert max(each["collected_at_goal"] for each in collected) > 0
        assert not any(each["collected_failures"] for each in collected)
    finally:
        run.close()


@pytest.mark.parametrize("update_order", ["together", "critic_first"])
def test_a_run_trains_all_networks_and_resumes(update_order: str, tmp_path: Path) -> None:
    algorithm = {**SAFE, "update_order": update_order, "chunk": 2}
    recipe = tiny("ant", algorithm=algorithm, budget={"checkpoints": 8})
    before = copy.deepcopy(build_run(recipe).learner.named_parameters())
    assert_resumes(recipe, tmp_path)
    run = build_run(recipe)
    for _ in range(4):
        run.collect()
    run.update()
    for name, parameter in run.learner.named_parameters().items():
        assert not torch.equal(parameter, before[name]), f"{name} was not trained"
    assert any(name.startswith("survival.") for name in before)
    counted = sum(parameter.numel() for parameter in before.values())
    assert counted == recipe.update_cost.parameters + 1


@pytest.mark.parametrize(
    ("task", "algorithm", "message"),
    [
        ("reacher", SAFE, "those of reacher never do: it would equal --objective crl; use that"),
        ("ant", {**SAFE, "parity": "reference"}, "--objective safe counts steps"),
        ("ant", {**SAFE, "algo": "gcbc"}, "--objective is not read by --algo gcbc"),
    ],
)
def test_where_it_makes_no_sense_it_is_refused(
    task: str, algorithm: dict[str, str], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check(tiny(task, algorithm=algorithm))


def test_depth_64_costs_what_the_paper_says() -> None:
    from torch_crl.recipe.presets import with_changes

    plain = preset("humanoid", depth=64)
    safe = with_changes(plain, algorithm=SAFE)
    more = safe.update_cost.parameters / plain.update_cost.parameters - 1
    # The paper says 2.8 % more time.
    assert more == pytest.approx(0.026, abs=0.001)
    assert safe.update_cost.flop / plain.update_cost.flop - 1 == pytest.approx(0.028, abs=0.01)


def test_a_failure_in_a_collection_that_is_forgotten_is_forgotten_too() -> None:
    replay = Replay(
        rows=30, num_envs=1, state_size=1, action_size=1, goal_slice=(0, 1), failures=True
    )

    def add(rows: int, number: int, *, fails: bool = False) -> None:
        for row in range(rows):
            state = torch.full((1, 1), float(row))
            failed = torch.tensor([fails and row == rows - 1])
            never = torch.tensor([False])
            replay.add(Transition(state, state, state, torch.tensor([number]), never, failed))

    add(3, 1, fails=True)
    add(4, 2)
    add(4, 2, fails=True)
    replay.forget_after(7)
    add(5, 3)
    batch = replay.sample(500, discount=0.9, generator=Generator().manual_seed(0))
    # Only the failure of the first trajectory, two rows later at most, is left.
    assert sorted({round(value, 3) for value in batch["survived"].tolist()}) == [0, 0.1, 0.19, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"failures": True, "window": 5}, "failures are not kept together with a window"),
        (
            {"labels": HitLabels(window=5, radius=1.0, distance=euclidean_distance)},
            "give failures=True",
        ),
    ],
)
def test_what_a_replay_cannot_tell_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Replay(rows=9, num_envs=1, state_size=1, action_size=1, goal_slice=(0, 1), **options)
