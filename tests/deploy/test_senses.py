"""Students that see pictures, or read sentences, of teachers that are given numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator

from tests.deploy.test_distil import SMALL, make_teacher
from tests.helpers.drawing import draws
from torch_crl import evaluate, load_policy
from torch_crl.agent.policy import Policy, controller_of
from torch_crl.agent.senses import MemoryTraces
from torch_crl.deploy import senses
from torch_crl.deploy.distil import Distillation, DistilSettings, distil
from torch_crl.deploy.senses import senses_of
from torch_crl.encoders.camera import Camera
from torch_crl.envs.make import make_task_vector_env
from torch_crl.envs.registry import make_task
from torch_crl.errors import UsageError
from torch_crl.goals.sentences import Reader
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import save_policy


class Numbers:
    """A camera whose pictures show the first position, and whose feature is that."""

    size = 1

    def film(self, qpos_NQ: torch.Tensor) -> Any:
        return (qpos_NQ[:, :1].numpy() * 10).astype(np.uint8).reshape(-1, 1, 1, 1).repeat(3, 3)

    def of_pictures(self, pictures: Any) -> torch.Tensor:
        return torch.from_numpy(pictures[:, 0, 0, :1].astype(np.float32))


class Positions:
    """A camera whose pictures are the positions, and whose features are these."""

    size = 2

    def film(self, qpos_NQ: torch.Tensor) -> Any:
        return qpos_NQ.float().numpy()

    def of_pictures(self, pictures: Any) -> torch.Tensor:
        return torch.from_numpy(pictures)


def test_traces_are_averages_that_fade() -> None:
    traces = MemoryTraces(Numbers(), 2, 1)  # type: ignore[arg-type]

    def see(*values: int) -> list[list[float]]:
        picture = np.array(values, np.uint8).reshape(2, 1, 1, 1).repeat(3, 3)
        return traces.see(picture).tolist()

    assert see(1, 5) == [[1, 0, 0, 0, 0], [5, 0, 0, 0, 0]]
    traces.act(torch.tensor([[1.0], [-0.5]]))
    # 2 - 2 / 4 and 2 - 2 / 16; 1 / 4 and 1 / 16, times the roots of 4 and 16.
    assert see(3, 5) == [[3, 1.5, 1.875, 0.5, 0.25], [5, 0, 0, -0.25, -0.125]]
    traces.act(torch.tensor([[0.0], [1.0]]))
    traces.drop(torch.tensor([False, True]))
    now, before, long_before, *done = see(3, 9)[0]
    assert (now, before, long_before) == (3, 1.5 * 3 / 4, 1.875 * 15 / 16)
    assert done == [0.5 * 3 / 4, 0.25 * 15 / 16]
    assert see(3, 9)[1] == [9, 0, 0, 0, 0]


def test_velocities_of_a_mass_are_linear_in_its_traces() -> None:
    # Forces change velocities; how a picture differs from its trace is late by the span.
    traces = MemoryTraces(Positions(), 5, 2)  # type: ignore[arg-type]
    generator = Generator().manual_seed(0)
    position, velocity = torch.zeros(5, 2), torch.zeros(5, 2)
    states, velocities = [], []
    for step in range(400):
        state = traces.see(position.numpy().copy())
        if step >= 200:
            states.append(state)
            velocities.append(velocity.clone())
        force = 2 * torch.rand(5, 2, generator=generator) - 1
        traces.act(force)
        velocity = velocity + 0.1 * force
        position = position + velocity
    seen, target = torch.cat(states).double(), torch.cat(velocities).double()

    def left_over(inputs: torch.Tensor) -> float:
        solution = torch.linalg.lstsq(inputs, target).solution
        return float((inputs @ solution - target).square().mean() / target.square().mean())

    # [now, difference of each span, actions of each span], of two numbers each.
    assert left_over(torch.cat([seen[:, 4:6], seen[:, 8:10]], 1)) < 1e-6
    assert left_over(seen[:, 4:6]) > 1e-3


def test_each_picture_is_labelled_for_several_goals() -> None:
    settings = DistilSettings(width=8, rows=20, rounds=2, updates=2, num_envs=5, goals_per_state=3)
    seeing = senses.Senses(camera=Positions())  # type: ignore[arg-type]
    made = Distillation(make_teacher(), "reacher", settings, episode_length=30, senses=seeing)
    for number in range(2):
        # The student acts in the second round.
        taught_MI, row_MI = made.collect()
        state, goal = taught_MI.split([10, 3], dim=1)
        seen, same_goal = row_MI.split([2 * 3 + 2 * 2, 3], dim=1)
        assert len(row_MI) == 2 * 5 * 3 and torch.equal(goal, same_goal)
        assert torch.equal(state[:10], state[10:20]) and torch.equal(state[:10], state[20:])
        assert torch.equal(seen[:10], seen[10:20]) and torch.equal(seen[:10], seen[20:])
        # Angles of the joints, whose cosines the state has.
        now, difference, late, done, _ = seen.split(2, dim=1)
        torch.testing.assert_close(now.cos(), state[:, :2])
        # The second round goes on in the middle of the episodes.
        assert difference[:5].ne(0).all() == done[:5].ne(0).all() == bool(number)
        if not number:
            moved = now[5:10] - now[:5]
            torch.testing.assert_close(difference[5:10], moved * 3 / 4)
            torch.testing.assert_close(late[5:10], moved * 15 / 16)
            assert done[5:10].ne(0).all()
        # Beyond the first goal of a state all are fingertips of the round.
        achieved = (goal[:, None] == state[:10, 4:7]).all(-1).any(1)
        assert achieved[10:].all()
        assert not achieved[:10].all()
        made.rounds_done = number + 1


@pytest.fixture(scope="module")
def student() -> Policy:
    before = senses._ENVS, senses._PICTURES, senses.FEATURES
    senses._ENVS, senses._PICTURES, senses.FEATURES = 4, 20, 6
    try:
        seeing = senses_of(
            make_teacher(), "reacher", observe="camera", goals="words", episode_length=9
        )
    finally:
        senses._ENVS, senses._PICTURES, senses.FEATURES = before
    made = Distillation(
        make_teacher(),
        "reacher",
        DistilSettings(width=8, **SMALL | {"rows": 20, "rounds": 2}),
        episode_length=9,
        senses=seeing,
    )
    for _ in range(2):
        made.round()
    return made.student


@draws
def test_a_student_sees_pictures_and_reads_sentences(student: Policy, tmp_path: Path) -> None:
    save_policy(student, tmp_path / "policy", {})
    loaded = load_policy(tmp_path / "policy")
    assert loaded.camera is not None and isinstance(loaded.reader, Reader)
    picture = loaded.camera.film(make_task("reacher").sample_start(1, Generator()).qpos_NQ)[0]
    controllers = [policy.controller() for policy in (student, loaded)]
    said = "go to the far point in the north"
    for _ in range(2):
        first, second = (controller(picture, said) for controller in controllers)
        assert first.shape == (2,)
        np.testing.assert_allclose(first, second, atol=1e-6)
        picture = np.flipud(picture).copy()
    with pytest.raises(UsageError, match=r"policy\.controller\(n\)"):
        loaded(picture, said)
    with pytest.raises(ValueError, match="another version draws otherwise"):
        Camera.rebuild(loaded.camera.description() | {"drawing": 1}, loaded.camera.tensors())
    with pytest.raises(UsageError, match="this one was trained with --goals words"):
        loaded.require_numbers("export")


@draws
def test_it_is_evaluated_by_filming_the_envs(student: Policy) -> None:
    env = make_task_vector_env(
        "reacher", num_envs=3, episode_length=5, seed=0, places=student.places
    )
    controller = controller_of(student, 3, env)
    camera = student.camera
    assert camera is not None
    by_hand = MemoryTraces(camera, 3, 2)
    for _ in range(3):
        seen = by_hand.see(camera.film(env.simulator.data["qpos"]))
        expected = student.plan(seen, env.goal_NG)[:, 0]
        action = controller(env.state_NS, env.goal_NG)
        torch.testing.assert_close(action, expected)
        by_hand.act(expected)
        env.step(action)
    env.close()
    result = evaluate(student, "reacher", num_envs=2, episode_length=3)
    assert 0.0 <= result["time_at_goal_share"] <= 1.0


@draws
def test_labels_are_of_states_and_inputs_of_pictures(student: Policy) -> None:
    teacher = make_teacher()
    seeing = senses.Senses(student.reader, student.camera)  # type: ignore[arg-type]
    settings = DistilSettings(width=8, **SMALL | {"rows": 20, "rounds": 2})
    made = Distillation(teacher, "reacher", settings, episode_length=9, senses=seeing)
    taught, rows = made.collect()
    assert (
        taught.shape[1] == 13 and rows.shape[1] == made.actor.sizes.input_size == 3 * 6 + 2 * 2 + 16
    )
    # The teacher is told the point of the place whose sentence the student reads.
    points = make_task("reacher").places.point_PG  # type: ignore[union-attr]
    assert torch.cdist(taught[:, 10:], points).amin(1).max() == 0.0
    # At the start of an episode the picture does not differ from its traces.
    assert rows[:5, 6:22].eq(0).all()
    torch.testing.assert_close(rows[5:10, 6:12], (rows[5:10, :6] - rows[:5, :6]) * 3 / 4)
    tensors = made.state_dict()
    again = Distillation(teacher, "reacher", settings, episode_length=9, senses=seeing)
    again.load_state_dict(tensors, 0)
    for ours, theirs in zip(made.collect(), again.collect(), strict=True):
        assert torch.equal(ours, theirs)


@draws
def test_a_distillation_by_pictures_and_words_goes_on_where_it_stopped(
    student: Policy, tmp_path: Path
) -> None:
    settings = DistilSettings(width=8, **SMALL | {"rows": 20, "rounds": 2})

    class StoppedError(Exception):
        pass

    def stop(*_: object) -> None:
        raise StoppedError

    def run(folder: str, on_round: Any = lambda *_: None, *, again: bool = False) -> Policy:
        seeing = senses.Senses(student.reader, student.camera)  # type: ignore[arg-type]
        if again:
            # As another machine may fit it; the one of the beginning goes on.
            camera = seeing.camera
            assert camera is not None
            other = {name: -part for name, part in camera.tensors().items()}
            turned = type(camera).rebuild(camera.description(), other)
            seeing = senses.Senses(student.reader, turned)
        directory = RunDirectory(tmp_path / folder)
        options: Any = {"episode_length": 9, "on_round": on_round, "senses": seeing}
        return distil(make_teacher(), "reacher", settings, directory, **options)

    whole = run("whole")
    with pytest.raises(StoppedError):
        run("parts", stop)
    parts = run("parts", again=True)
    for name, weight in whole.actor.state_dict().items():
        assert torch.equal(weight, parts.actor.state_dict()[name]), name


def test_who_can_be_no_teacher_is_told() -> None:
    with pytest.raises(UsageError, match="ant_u_maze names no places"):
        senses_of(make_teacher(), "ant_u_maze", observe="state", goals="words", episode_length=5)
