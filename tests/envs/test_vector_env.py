"""Where episodes begin and end, with a puck that does what it is told."""

from pathlib import Path

import pytest
import torch
from torch import Generator

from tests.helpers.largest_tensor import LargestTensor
from tests.helpers.tasks import ant_env, puck_env
from torch_crl.envs.make import make_task_vector_env
from torch_crl.envs.registry import make_task
from torch_crl.envs.simulators import SimulatorError, cpu
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.task_vector_env import TaskVectorEnv


def test_time_limit_truncates_and_starts_a_fresh_episode() -> None:
    env = puck_env()
    first_goal = env.goal_NG.clone()
    push = torch.ones(6, 2)
    for step in range(1, 11):
        before = env.trajectory_N.clone()
        result = env.step(push)
        assert not result.terminated_N.any()
        assert result.truncated_N.all() == (step % 5 == 0)
        assert (before == (step - 1) // 5 + 1).all()
        if step % 5 == 0:
            # The final state is the pushed one; what to act on next is a start at rest.
            assert (result.final_state_NS[:, 2:] > 0.1).all()
            assert not env.state_NS.any()
            assert (env.goal_NG != first_goal).all()


def test_failure_terminates_only_the_envs_that_failed() -> None:
    env = ant_env(4, episode_length=100)
    env.simulator.data["qpos"][2, 2] = 3.0
    result = env.step(torch.zeros(4, 8))
    assert result.terminated_N.tolist() == [False, False, True, False]
    assert not result.truncated_N.any()
    assert result.final_state_NS[2, 2] > 2.5
    assert env.trajectory_N.tolist() == [1, 1, 2, 1]
    assert env.steps_N.tolist() == [1, 1, 0, 1]
    assert 0.4 < env.state_NS[2, 2] < 0.7


def test_a_failure_at_the_time_limit_is_a_failure() -> None:
    env = ant_env(1, episode_length=1)
    env.simulator.data["qpos"][0, 2] = 3.0
    result = env.step(torch.zeros(1, 8))
    assert result.terminated_N.all() and not result.truncated_N.any()


def test_unstable_physics_ends_the_episode_and_only_that_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MuJoCo logs the warning into the present folder.
    monkeypatch.chdir(tmp_path)
    env = ant_env(3, episode_length=100)
    env.simulator.data["qvel"][1, 0] = 1e12
    result = env.step(torch.zeros(3, 8))
    assert result.terminated_N.tolist() == [False, True, False]
    assert env.trajectory_N.tolist() == [1, 2, 1]
    # MuJoCo put the ant back to its model's default height of 0.75; a start is around 0.55.
    assert env.state_NS[1, 2] < 0.7
    assert not env.step(torch.zeros(3, 8)).terminated_N.any()
    # MuJoCo's count is then what it was before, one.
    env.simulator.data["qvel"][1, 0] = 1e12
    assert env.step(torch.zeros(3, 8)).terminated_N.tolist() == [False, True, False]
    assert isinstance(env.simulator, CpuSimulator) and env.simulator.num_warnings == 2


@pytest.mark.parametrize(("name", "most"), [("reacher", 26), ("pusher_easy", 70), ("ant", 31)])
def test_a_step_is_few_operations_of_torch(name: str, most: int) -> None:
    # After cheap physics each takes longer to begin than to compute, so their number counts.
    # Half of the pusher's find the wrist: 0.1 ms with 512 envs, where MuJoCo takes 0.5 to 0.7 ms.
    env = make_task_vector_env(name, num_envs=4, episode_length=50, seed=0)
    action = torch.zeros(4, env.spec.action_size)
    env.step(action)
    with LargestTensor() as seen:
        env.step(action)
    assert seen.operations <= most


def test_cached_starts_repeat_start_and_goal() -> None:
    env = puck_env(cached_starts=True)
    goals = env.goal_NG.clone()
    for _ in range(5):
        env.step(torch.ones(6, 2))
    assert torch.equal(env.goal_NG, goals)
    assert not env.state_NS.any()


def test_an_episode_does_not_depend_on_the_one_before() -> None:
    task = make_task("ant")
    simulator = CpuSimulator(task.model, num_envs=2)
    everyone = torch.ones(2, dtype=torch.bool)
    start = task.sample_start(2, Generator().manual_seed(0))

    def episode() -> torch.Tensor:
        simulator.reset(everyone, start.qpos_NQ, start.qvel_NV)
        simulator.data["ctrl"].fill_(0.3)
        for _ in range(20):
            simulator.step(5)
        return simulator.get_state()

    first = episode()
    simulator.data["ctrl"].fill_(-1.0)
    simulator.step(50)
    assert torch.equal(episode(), first)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_physics_is_the_same_at_any_thread_count(threads: int) -> None:
    task = make_task("humanoid")
    states = []
    for num_threads in (1, threads):
        simulator = CpuSimulator(
            task.model, num_envs=5, fields=task.fields, num_threads=num_threads
        )
        env = TaskVectorEnv(
            task, simulator, episode_length=50, generator=Generator().manual_seed(0)
        )
        for _ in range(60):
            env.step(torch.full((5, 17), 0.2))
        states.append(env.state_NS)
    assert torch.equal(*states)


@pytest.mark.parametrize("name", ["ant", "humanoid", "reacher"])
@pytest.mark.parametrize("cached_starts", [False, True])
def test_state_dict_goes_on_bit_for_bit(name: str, cached_starts: bool) -> None:
    task = make_task(name)

    def fresh(seed: int) -> TaskVectorEnv:
        return TaskVectorEnv(
            task,
            CpuSimulator(task.model, num_envs=3, fields=task.fields),
            episode_length=20,
            generator=Generator().manual_seed(seed),
            cached_starts=cached_starts,
        )

    def walk(env: TaskVectorEnv, steps: int, seed: int) -> None:
        generator = Generator().manual_seed(seed)
        for _ in range(steps):
            env.step(torch.rand(3, task.spec.action_size, generator=generator) * 2 - 1)

    ours, theirs = fresh(0), fresh(9)
    walk(ours, 13, seed=1)
    walk(theirs, 5, seed=2)
    theirs.load_state_dict({name: value.clone() for name, value in ours.state_dict().items()})
    assert torch.equal(task.state(theirs.simulator), task.state(ours.simulator))
    for env in (ours, theirs):
        walk(env, 40, seed=3)
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_derived_fields_are_current_after_a_step() -> None:
    task = make_task("reacher")
    env = TaskVectorEnv(
        task,
        CpuSimulator(task.model, num_envs=2, fields=("xpos",)),
        episode_length=50,
        generator=Generator().manual_seed(0),
    )
    env.step(torch.ones(2, 2))
    tip = env.simulator.data["xpos"][:, task.model.body("fingertip").id, :2]
    first, second = env.simulator.data["qpos"].unbind(-1)
    expected = 0.1 * first.cos() + 0.11 * (first + second).cos()
    # One substep of 0.01 s behind would be off by about 1e-3.
    torch.testing.assert_close(tip[:, 0], expected, atol=1e-12, rtol=0)


def test_more_envs_than_memory_holds_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "available_bytes", lambda _: 100)
    with pytest.raises(SimulatorError, match=r"4 envs take at least .* GB of memory, where"):
        puck_env(4)
    monkeypatch.setattr(cpu, "available_bytes", lambda _: None)
    puck_env(4)

    def refused(*_: object) -> None:
        raise ValueError("std::bad_alloc")

    monkeypatch.setattr(cpu, "Batch", refused)
    with pytest.raises(SimulatorError, match=r"4 envs .*; take fewer envs"):
        puck_env(4)


def test_goals_are_drawn_anew_in_the_middle_of_episodes() -> None:
    def make(goal_redraw: float) -> TaskVectorEnv:
        return make_task_vector_env(
            "reacher", num_envs=200, episode_length=50, seed=0, goal_redraw=goal_redraw
        )

    env, plain, changes = make(0.1), make(0.0), 0
    action = torch.zeros(200, 2)
    for step in range(1, 50):
        before = env.goal_NG.clone()
        result, undisturbed = env.step(action), plain.step(action)
        # The step is judged by the goal that was commanded for it, and physics is untouched.
        distance, _ = env.outcome(env.task.achieved_goal(result.final_state_NS), before)
        assert torch.equal(result.distance_N, distance)
        assert torch.equal(result.final_state_NS, undisturbed.final_state_NS)
        changes += int((env.goal_NG != before).any(-1).sum())
        assert (env.steps_N == step).all() and (env.trajectory_N == 1).all()
    # 9,800 draws of probability 0.1 have a standard deviation of 30.
    assert 980 - 150 < changes < 980 + 150
    assert (plain.goal_NG == make(0.0).goal_NG).all()
    # New goals are those of starts: as far away as the first ones.
    first, later = make(0.0).goal_NG.norm(dim=-1), env.goal_NG.norm(dim=-1)
    assert later.max() <= first.max() * 1.1 and abs(later.mean() - first.mean()) < 0.03
