"""The objectives on times to goals: labels by eye, both ways through the networks, whole runs."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.graph_stand_in import StandIn
from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_resumes
from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.objectives.chrono import ChronoObjective
from torch_crl.agent.objectives.objective import HitLabels
from torch_crl.agent.objectives.survival import SurvivalObjective
from torch_crl.envs.task import euclidean_distance
from torch_crl.experience.replay import Replay, Transition
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.recipe.marks import unread
from torch_crl.recipe.record import Recipe
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun

OBJECTIVES = ("survival", "chrono")


def labels(**kwargs: Any) -> HitLabels:
    return HitLabels(distance=euclidean_distance, **kwargs)


def on_a_line(told: HitLabels, *, failures: tuple[int, ...] = ()) -> Replay:
    """Positions 0, 1, 2, ... in rows 0, 1, 2, ...; trajectories of 6 rows; 15 rows in all."""
    replay = Replay(
        rows=20,
        num_envs=1,
        state_size=1,
        action_size=1,
        goal_slice=(0, 1),
        failures=True,
        labels=told,
    )
    for row in range(15):
        state = torch.full((1, 1), float(row))
        replay.add(
            Transition(
                state=state,
                action=state,
                achieved=state + 1,
                trajectory=torch.tensor([row // 6]),
                unstable=torch.tensor([False]),
                failed=torch.tensor([row in failures]),
            )
        )
    return replay


def labelled(replay: Replay) -> list[dict[str, Any]]:
    batch = replay.sample(4000, discount=0.9, generator=Generator().manual_seed(0))
    names = ("event", "time", "censor", "failed")
    found = [
        {"row": int(state), "goal": int(goal)} | dict(zip(names, values, strict=True))
        for state, goal, *values in zip(
            batch["state"][:, 0].tolist(),
            batch["goal"][:, 0].tolist(),
            *(batch[name].tolist() for name in names),
            strict=True,
        )
    ]
    assert len({(each["row"], each["goal"]) for each in found}) > 100
    return found


def test_arrivals_are_within_the_trajectory_and_the_window() -> None:
    replay = on_a_line(labels(window=8, radius=0.5, future=0.4, own=0.2))
    for each in labelled(replay):
        row, goal = each["row"], each["goal"]
        # The position after the last row of a trajectory; the last trajectory is running.
        last = min(row // 6 * 6 + 6, 15)
        reached = row <= goal <= last
        assert each["event"] == reached, each
        assert each["time"] == (goal - row if reached else 8)
        # Offsets 0 ... last - row were seen.
        assert each["censor"] == last - row + 1 and not each["failed"]


def test_goals_are_of_the_future_the_steps_own_and_of_anywhere() -> None:
    kinds = {}
    for future, own in ((1.0, 0.0), (0.0, 1.0), (0.0, 0.0)):
        replay = on_a_line(labels(window=8, radius=0.5, future=future, own=own))
        kinds[future, own] = labelled_goals(replay)
    assert all(0 < goal - row <= 6 for row, goal in kinds[1.0, 0.0])
    assert all(goal == row for row, goal in kinds[0.0, 1.0])
    anywhere = {goal for row, goal in kinds[0.0, 0.0] if row == 3}
    assert anywhere == set(range(15))


def labelled_goals(replay: Replay) -> list[tuple[int, int]]:
    batch = replay.sample(4000, discount=0.9, generator=Generator().manual_seed(0))
    rows, goals = batch["state"][:, 0].int().tolist(), batch["goal"][:, 0].int().tolist()
    return list(zip(rows, goals, strict=True))


def test_a_failure_within_the_window_means_never() -> None:
    replay = on_a_line(labels(window=8, radius=0.5, future=0.4), failures=(5,))
    for each in labelled(replay):
        row, goal = each["row"], each["goal"]
        failed = row < 6
        assert each["failed"] == failed
        # The state after the failure, at position 6, is nobody's arrival.
        reached = row <= goal <= (5 if failed else min(row // 6 * 6 + 6, 15))
        assert each["event"] == reached, each
        if failed:
            assert each["censor"] == 8
    short = on_a_line(labels(window=3, radius=0.5, future=0.4), failures=(5,))
    failed_rows = {each["row"] for each in labelled(short) if each["failed"]}
    assert failed_rows == {4, 5}, "further away, the window ends before the failure"


def test_published_censoring_takes_a_cut_for_never() -> None:
    replay = on_a_line(labels(window=8, radius=0.5, future=0.4, never=True))
    assert {each["censor"] for each in labelled(replay)} == {8}


def test_bins_see_what_the_trajectory_shows() -> None:
    replay = on_a_line(labels(window=8, radius=0.5, future=1.0, own=0.0, edges=[0, 1, 2, 4, 8]))
    batch = replay.sample(4000, discount=0.9, generator=Generator().manual_seed(0))
    for row, goal, occupied, seen in zip(
        batch["state"][:, 0].int().tolist(),
        batch["goal"][:, 0].int().tolist(),
        batch["occupied"].tolist(),
        batch["seen"].tolist(),
        strict=True,
    ):
        offsets = range(min(row // 6 * 6 + 6, 15) - row + 1)
        for (first, stop), share, known in zip(
            ((0, 1), (1, 2), (2, 4), (4, 8)), occupied, seen, strict=True
        ):
            inside = [offset == goal - row for offset in offsets if first <= offset < stop]
            assert known == bool(inside)
            if inside:
                assert share == pytest.approx(sum(inside) / len(inside))


def recipe_of(objective: str, **algorithm: Any) -> Recipe:
    # The puck moves far enough in thirty steps that some arrivals take time.
    return tiny(
        "own_task:make",
        task={"episode_length": 30},
        algorithm={"objective": objective, "batch_size": 32, **algorithm},
        budget={
            "checkpoints": 8,
            "unroll_length": 10,
            "replay_rows": 60,
            "prefill_rows": 40,
            "env_steps": 300,
        },
    )


def prepared(objective: str, **algorithm: Any) -> tuple[CrlRun, SurvivalObjective]:
    run = build_run(recipe_of(objective, **algorithm))
    for _ in range(6):
        run.collect()
    assert isinstance(run.learner, ActorCritic)
    critic = run.learner.objective
    assert isinstance(critic, SurvivalObjective)
    return run, critic


@pytest.mark.parametrize("chunk", [1, 2])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_loss_and_score_are_the_same_together_and_apart(objective: str, chunk: int) -> None:
    run, critic = prepared(objective, chunk=chunk, actor_goals="mixed")
    assert isinstance(run.learner, ActorCritic)
    batch = run.replay.sample(16, discount=0.9, generator=run.sampler, chunk=chunk)
    # Some of a batch must have failed, for the occupancy to count.
    batch["failed"][:4] = True
    policy, *_ = run.learner._act(batch)
    judged = critic.judge(batch, policy)
    loss, _ = critic.loss(batch)
    score = critic.score(batch, policy)
    torch.testing.assert_close(judged.loss, loss)
    torch.testing.assert_close(judged.score_B, score)
    parameters = critic.parameters()
    for value in (judged.score_B.sum(), score.sum()):
        gradients = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
        assert gradients == (None,) * len(parameters)
        (of_action,) = torch.autograd.grad(value, policy.action_BA, retain_graph=True)
        assert of_action.abs().sum() > 0
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    named = [name for module in critic.modules.values() for name, _ in module.named_parameters()]
    without = [n for n, gradient in zip(named, gradients, strict=True) if gradient is None]
    assert not without


def test_chrono_without_its_additions_is_survival_on_the_same_networks() -> None:
    run, chrono = prepared("chrono")
    assert isinstance(chrono, ChronoObjective)
    batch = run.replay.sample(16, discount=0.9, generator=run.sampler)
    batch["failed"].zero_()
    survival = SurvivalObjective(
        chrono.networks, chrono.head, labels=chrono.hits, value_discount=chrono.value_discount
    )
    # Without the LayerNorms that chrono does not have.
    survival.norms = {}
    assert isinstance(run.learner, ActorCritic)
    policy, *_ = run.learner._act(batch)
    ours, theirs = chrono.judge(batch, policy), survival.judge(batch, policy)
    torch.testing.assert_close(ours.score_B, theirs.score_B)
    more = sum(ours.metrics[f"{name}_loss"] for name in ("time", "separation", "occupancy"))
    torch.testing.assert_close(ours.loss, theirs.loss + more)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_trains_all_networks_resumes_and_is_captured(objective: str, tmp_path: Path) -> None:
    recipe = recipe_of(objective, chunk=2, average_weights=0.9)
    before = copy.deepcopy(build_run(recipe).learner.named_parameters())
    assert sum(p.numel() for p in before.values()) - 1 == recipe.update_cost.parameters + extras(
        before
    )
    assert_resumes(recipe, tmp_path)
    eager = build_run(recipe)
    captured = build_run(recipe_of(objective, chunk=2, average_weights=0.9), make_recorder=StandIn)
    for run in (eager, captured):
        for _ in range(6):
            run.collect()
        for _ in range(8):
            run.update()
    for name, parameter in eager.learner.named_parameters().items():
        assert torch.equal(parameter, captured.learner.named_parameters()[name]), name
        assert not torch.equal(parameter, before[name]), f"{name} was not trained"


def extras(named: dict[str, Tensor]) -> int:
    """What the costs do not count: modulation, time basis and LayerNorms at the encoders' ends."""
    uncounted = ("head.film", "head.basis", "head.bias", "phi_norm", "psi_norm")
    return sum(p.numel() for name, p in named.items() if name.startswith(uncounted))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_metrics_are_the_same_in_both_orders(objective: str) -> None:
    found = []
    for order in ("together", "critic_first"):
        run, _ = prepared(objective, update_order=order)
        found.append(run.learner.update(run.replay.sample(8, discount=0.9, generator=run.sampler)))
    assert found[0].keys() == found[1].keys() and found[0]["value"] < 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_critic_learns_how_far_goals_are(objective: str) -> None:
    run, _ = prepared(objective, critic_learning_rate=3e-3)
    batch = run.replay.sample(64, discount=0.9, generator=run.sampler)
    first, *_, last = (float(run.learner.update(batch)["hazard_loss"]) for _ in range(100))
    assert last < 0.7 * first
    assert (batch["event"] & (batch["time"] > 0)).any()


@pytest.mark.parametrize(
    ("task", "algorithm", "message"),
    [
        ("ant", {"objective": "chrono", "parity": "reference"}, "--objective chrono counts steps"),
        (
            "ant",
            {"objective": "survival", "algo": "gcbc"},
            "--objective is not read by --algo gcbc",
        ),
        (
            "ant",
            {"objective": "survival", "value_discount": 1.0},
            "--value-discount must be above 0 and below 1",
        ),
    ],
)
def test_what_does_not_fit_is_refused(task: str, algorithm: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(tiny(task, algorithm=algorithm))


_OTHER_VALUES = {
    "value_discount": 0.5,
    "censoring": "never",
    "energy": "dot",
    "contrastive_loss": "binary_nce",
    "logsumexp_penalty": 7.0,
}


@pytest.mark.parametrize("objective", ["crl", "safe", *OBJECTIVES])
@pytest.mark.parametrize("setting", _OTHER_VALUES)
def test_a_setting_changes_what_is_learned_or_is_refused(objective: str, setting: str) -> None:
    # Whose objects are not where those of other envs are, so that not every goal is reached.
    task = "ant" if objective == "safe" else "pusher2"
    changed = tiny(task, algorithm={"objective": objective, setting: _OTHER_VALUES[setting]})
    if f"algorithm.{setting}" in unread(Recipe, "crl", objective):
        flag = setting.replace("_", "-")
        with pytest.raises(RecipeError, match=f"--{flag} is not read by --objective {objective}"):
            check(changed)
    else:
        check(changed)
    found = []
    for recipe in (tiny(task, algorithm={"objective": objective}), changed):
        run = build_run(recipe)
        run.collect()
        for _ in range(2):
            run.learner.update(run.replay.sample(64, discount=0.9, generator=run.sampler))
        found.append(
            torch.cat([each.flatten() for each in run.learner.named_parameters().values()])
        )
        run.close()
    assert torch.equal(*found) == (f"algorithm.{setting}" in unread(Recipe, "crl", objective))


def test_a_gymnasium_env_without_a_radius_is_refused() -> None:
    from tests.helpers.goal_envs import register

    with pytest.raises(RecipeError, match=r"by a task's success radius, and gymnasium:.* has none"):
        check(tiny(register("Puck"), algorithm={"objective": "survival"}))
