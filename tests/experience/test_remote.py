"""Collectors in other processes: in order, never too far ahead, and none after a gap is confused.

Most tests keep the collectors in this process, where they can be ended at any call.
"""

import os
import signal
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_same_run, final_tensors
from torch_crl import load_policy, train
from torch_crl.agent.policy import Policy
from torch_crl.experience.remote import AHEAD, CollectorLostError, Part, RemoteCollector
from torch_crl.recipe.checks import RecipeError
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.finding import located
from torch_crl.runs.policies import save_policy
from torch_crl.training import ray_collectors
from torch_crl.training.building import build_run
from torch_crl.training.collecting_process import (
    CollectingProcess,
    NotBegunError,
    policy_problems,
)
from torch_crl.training.crl_run import CrlRun

ray = pytest.importorskip("ray")


class HostHere:
    """A collector in this process, which collects when it is asked, or when the part is taken."""

    def __init__(
        self, recipe: Recipe, number: int, *, eager: bool, dies: Callable[[int, int], bool]
    ) -> None:
        self._make = lambda: CollectingProcess(recipe, number=number)
        self._process = self._make()
        self._eager, self._dies, self._number = eager, dies, number
        self.waiting: deque[Callable[[], Part]] = deque()
        self.taken = self.most = 0

    def begin(self, incarnation: int, trajectory_M: np.ndarray) -> None:
        self.waiting.clear()
        self._process.begin(incarnation, trajectory_M)

    def ask(self, weights: Any, updates: int, rows: int) -> None:
        weights = {name: array.copy() for name, array in weights.items()}
        process = self._process

        def work() -> Part:
            return process.collect(weights, updates, rows)

        if self._eager:
            done = work()
            self.waiting.append(lambda: done)
        else:
            self.waiting.append(work)
        self.most = max(self.most, len(self.waiting))

    def take(self) -> Part:
        self.taken += 1
        if self._dies(self._number, self.taken):
            self._process = self._make()
            self.waiting.clear()
            raise CollectorLostError
        return self.waiting.popleft()()

    def close(self) -> None:
        self._process.close()


@pytest.fixture
def hosts(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[HostHere]]:
    """Puts collectors of this process in the place of Ray's; returns those of the next run."""
    monkeypatch.setattr(ray, "put", lambda weights: weights)

    def put(
        *, eager: bool = False, dies: Callable[[int, int], bool] = lambda number, take: False
    ) -> list[HostHere]:
        made: list[HostHere] = []

        def make(recipe: Recipe) -> list[HostHere]:
            made.extend(
                HostHere(recipe, number, eager=eager, dies=dies)
                for number in range(recipe.system.collectors)
            )
            return made

        monkeypatch.setattr(ray_collectors, "ray_hosts", make)
        return made

    return put


def recipe_of_two(**algorithm: Any) -> Recipe:
    budget = {"env_steps": 400, "checkpoints": 3, "evaluations": 2, "replay_rows": 200}
    task = {"num_envs": 4, "episode_length": 12}
    return tiny("ant", task=task, budget=budget, algorithm=algorithm, system={"collectors": 2})


def test_a_run_does_not_depend_on_how_fast_its_collectors_are(
    tmp_path: Path, hosts: Callable[..., list[HostHere]]
) -> None:
    for name, eager in (("slow", False), ("quick", True)):
        made = hosts(eager=eager)
        train(recipe_of_two(), tmp_path / name, show=False)
        # Never more than two collections, and never fewer: the ratio holds within one.
        assert [host.most for host in made] == [AHEAD, AHEAD]
        assert [host.taken for host in made] == [20, 20]
    assert_same_run(tmp_path / "slow", tmp_path / "quick")
    records = RunDirectory(tmp_path / "slow").read_metrics("train")
    assert {record["collectors_lost"] for record in records} == {0.0}
    # Weights are one collection's updates old.
    assert [record["collector_lag"] for record in records[-3:]] == [2.0] * 3


@pytest.mark.parametrize("chunk", [1, 3])
def test_no_goal_leads_across_a_gap(hosts: Callable[..., list[HostHere]], chunk: int) -> None:
    # The first collector dies at its fifth and sixth, the second one at its eighth part.
    hosts(dies=lambda number, take: take in ((5, 6), (8,))[number])
    run = build_run(recipe_of_two(chunk=chunk))
    rows, gaps = run.recipe.budget.unroll_length, {0: 4, 1: 7}
    for _ in range(8):
        found = run.collect()
    assert found["collectors_lost"] == 3.0
    replay = run.replay
    assert replay.next_row == 8 * rows
    trajectory = replay.storage["trajectory"][: replay.filled].long()
    # Numbers are consecutive in every column, over the gap too.
    steps = trajectory.diff(dim=0)
    assert ((steps == 0) | (steps == 1)).all()
    for number, collection in gaps.items():
        gap = collection * rows
        for column in (2 * number, 2 * number + 1):
            before, after = trajectory[gap - 1, column], trajectory[gap, column]
            assert after == before + 1
            newest = replay.storage["last_row"][before % replay.rows, column]
            assert newest == gap - 1
    # Goals that are drawn were achieved in the trajectory of their step.
    sample = replay.sample(
        4000, discount=0.9, generator=torch.Generator().manual_seed(0), chunk=chunk
    )
    achieved = replay.storage["achieved"][: replay.filled]
    for state, goal in zip(sample["state"][:400], sample["goal"][:400], strict=True):
        at = (replay.storage["state"][: replay.filled] == state).all(-1).nonzero()
        where = (achieved == goal).all(-1).nonzero()
        pairs = [
            (row, column)
            for row, column in at.tolist()
            for later, other in where.tolist()
            if column == other
            and later >= row - 1
            and trajectory[min(later, replay.filled - 1), column] == trajectory[row, column]
        ]
        own = state[run.env.spec.goal_slice[0] : run.env.spec.goal_slice[1]]
        assert pairs or torch.equal(own, goal)
    run.close()


def test_incarnations_and_collectors_have_random_numbers_of_their_own(
    hosts: Callable[..., list[HostHere]],
) -> None:
    recipe = recipe_of_two()
    first_states = []
    for number, incarnation in ((0, 0), (1, 0), (0, 1)):
        process = CollectingProcess(recipe, number=number)
        process.begin(incarnation, np.zeros(2, np.int32))
        weights = {name: x.detach().numpy() for name, x in process._actor.named_parameters()}
        part = process.collect(weights, 0, 5)
        first_states.append(part.steps["state"].tobytes())
        assert part.incarnation == incarnation and part.steps["state"].shape[:2] == (5, 2)
        process.close()
    assert len(set(first_states)) == 3
    del hosts


def test_a_run_that_is_resumed_begins_new_incarnations(
    tmp_path: Path, hosts: Callable[..., list[HostHere]]
) -> None:
    hosts()
    train(recipe_of_two(), tmp_path / "run", show=False)
    before, _ = final_tensors(tmp_path / "run")
    newest = RunDirectory(tmp_path / "run").saved_checkpoints[0]
    (newest / "tensors.safetensors").unlink()
    hosts()
    train(recipe_of_two(), tmp_path / "run", resume=True, show=False)
    after, _ = final_tensors(tmp_path / "run")
    assert before["collector/incarnation"].tolist() == [0, 0]
    assert after["collector/incarnation"].tolist() == [1, 1]
    trajectory = after["replay/trajectory"].long()
    assert (trajectory.diff(dim=0) >= 0).all()


def test_a_new_process_says_that_it_was_not_begun() -> None:
    with pytest.raises(NotBegunError):
        CollectingProcess(recipe_of_two(), number=0).collect({}, 0, 1)


def test_collectors_may_act_with_a_policy_of_their_own() -> None:
    zoo = "zoo:reacher"
    recipe = tiny(system={"collectors": 2, "collector_policy": zoo})
    assert policy_problems(recipe) == []
    process = CollectingProcess(recipe, number=0)
    process.begin(0, np.zeros(2, np.int32))
    process.collect({}, 0, 5)
    theirs = load_policy(zoo).actor.state_dict()
    for name, parameter in process._actor.state_dict().items():
        assert torch.equal(parameter, theirs[name])
    process.close()


@pytest.mark.parametrize(
    ("system", "told"),
    [
        ({"collectors": 3}, "--num-envs 4 is no multiple"),
        ({"collectors": 2, "overlap": "on"}, "--overlap on is what --collectors do anyway"),
        ({"collectors": 2, "collector_policy": "nowhere"}, "nowhere does not exist"),
        ({"collector_address": "auto"}, "--collector-address is for --collectors of at least 1"),
    ],
)
def test_collectors_that_cannot_work(system: dict[str, Any], told: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=told):
        train(tiny(system=system), tmp_path / "run", show=False)


def policy_of(task: str = "reacher", head: str = "squashed_gaussian", **parts: Any) -> Policy:
    policy = build_run(tiny(task, **parts)).policy
    policy.head = head
    return policy


@pytest.mark.parametrize(
    ("policy", "told"),
    [
        (None, "holds neither a policy nor a run"),
        # As `--algo td3 --depth 4` makes them: all of the output is the action.
        (lambda: policy_of(head="tanh"), "must be a tower that sees states and draws actions"),
        (lambda: policy_of(algorithm={"chunk": 2}), "this run: chunk 2 and not 1"),
        (
            lambda: policy_of("ant"),
            "this run: state_size 29 and not 10, goal_size 2 and not 3, action_size 8 and not 2",
        ),
    ],
)
def test_a_policy_that_does_not_fit_is_told_before_anything_is_built(
    policy: Callable[[], Policy] | None, told: str, tmp_path: Path
) -> None:
    folder = tmp_path / "policy"
    folder.mkdir()
    if policy is not None:
        save_policy(policy(), folder, {})
    recipe = tiny(system={"collectors": 2, "collector_policy": str(folder)})
    with pytest.raises(RecipeError, match=told):
        train(recipe, tmp_path / "run", show=False)
    assert not (tmp_path / "run").exists()


def test_a_policy_of_words_fits_runs_of_words_only() -> None:
    run = RunDirectory(located("zoo:point_u_maze_words"))
    system = {"collectors": 2, "collector_policy": str(run)}
    recipe = with_changes(run.read_recipe(), system=system)
    assert policy_problems(recipe) == []
    (told,) = policy_problems(with_changes(recipe, goal_space={"goals": "state"}))
    assert "goals words and not state" in told


def test_a_collector_by_ray_that_is_killed_is_replaced(tmp_path: Path) -> None:
    killed = []
    real = CrlRun.update

    def kill_one(run: CrlRun) -> dict[str, torch.Tensor]:
        if run.updates_done == 9 and not killed:
            assert isinstance(run.collector, RemoteCollector)
            host: Any = run.collector._hosts[1]
            killed.append(ray.get(host._process.process.remote()))
            os.kill(killed[0], signal.SIGKILL)
        return real(run)

    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CrlRun, "update", kill_one)
            train(recipe_of_two(), tmp_path / "run", show=False)
    finally:
        ray.shutdown()
    records = RunDirectory(tmp_path / "run").read_metrics("train")
    assert killed and records[0]["collectors_lost"] == 0.0
    assert records[-1]["collectors_lost"] == 1.0 and records[-1]["env_steps"] == 400
    trajectory = final_tensors(tmp_path / "run")[0]["replay/trajectory"].long()
    assert (trajectory.diff(dim=0) >= 0).all()
