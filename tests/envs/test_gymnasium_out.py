"""Our tasks as Gymnasium envs: its own checkers, its conventions, its vector env beside ours."""

import copy
import subprocess
import sys
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from torch_crl import Task, make_task
from torch_crl.envs.gymnasium.goal_env import GoalEnv, GoalVectorEnv
from torch_crl.envs.gymnasium.registration import gymnasium_id
from torch_crl.envs.registry import TASKS
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.errors import NotFiniteError

# Gymnasium thinks little of observations without bounds, which positions and speeds are.
unbounded = pytest.mark.filterwarnings("ignore:.*A Box observation space m.*")


def test_importing_torch_crl_registers_every_task_and_loads_nothing_heavy() -> None:
    program = (
        "import sys, gymnasium, torch_crl\n"
        "spec = gymnasium.spec('torch_crl/AntBigMaze-v0')\n"
        "assert spec.max_episode_steps == 1000\n"
        "assert not {'torch', 'mujoco'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert gymnasium_id("point_u4_maze_eval") == "torch_crl/PointU4MazeEval-v0"
    ids = {gymnasium_id(task) for task in TASKS}
    assert len(ids) == len(TASKS)
    assert ids <= set(gymnasium.registry)


@unbounded
@pytest.mark.parametrize("name", ["AntUMaze", "Reacher"])
def test_gymnasiums_checker_finds_nothing(name: str) -> None:
    check_env(gymnasium.make(f"torch_crl/{name}-v0").unwrapped, skip_render_check=True)


@unbounded
def test_stable_baselines3s_checker_finds_nothing() -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    checker.check_env(gymnasium.make("torch_crl/PointUMaze-v0").unwrapped)


def test_rewards_of_batches_by_hand() -> None:
    achieved = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 1.0]])
    goal = np.array([[0.3, 0.39], [0.0, 0.0], [1.0, 1.51]])
    sparse, dense = GoalEnv("ant"), GoalEnv("ant", reward="dense")
    # Success within 0.5 m.
    assert sparse.compute_reward(achieved, goal, {}).tolist() == [1.0, 0.0, 0.0]
    np.testing.assert_allclose(
        dense.compute_reward(achieved, goal, {}), [-np.hypot(0.3, 0.39), -5.0, -0.51], rtol=1e-5
    )
    assert sparse.compute_reward(achieved[0], goal[0], {}) == 1.0
    assert sparse.compute_reward(achieved[None], goal[None], {}).shape == (1, 3)
    # Fingertips around the cube, as far apart as asked; and 1 m to the side.
    asked = np.array([0.0, 0.02, 0.1, 0.0, -0.02, 0.1, 0.04])
    aside = asked + np.array([1.0, 0, 0, 1.0, 0, 0, 0])
    grasp = GoalEnv("arm_grasp")
    assert grasp.compute_reward(np.stack([asked, aside]), asked, {}).tolist() == [1.0, 0.0]
    assert grasp.compute_reward(asked, asked, {}).shape == ()
    with pytest.raises(ValueError, match="'sparse' or 'dense', got 'shaped'"):
        GoalEnv("ant", reward="shaped")  # type: ignore[arg-type]


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_goal_env_conventions_hold_until_an_ant_falls(reward: str) -> None:
    env = gymnasium.make("torch_crl/Ant-v0", reward=reward, max_episode_steps=20)
    goals: GoalEnv = env.unwrapped
    stay = np.zeros(8, dtype=np.float32)
    _, info = env.reset(seed=0)
    assert info == {}
    for step in range(1, 30):
        if step == 11:
            goals.envs.episodes.simulator.data["qpos"][0, 2] = 3.0
        observation, gained, terminated, truncated, info = env.step(stay)
        achieved, goal = observation["achieved_goal"], observation["desired_goal"]
        np.testing.assert_array_equal(observation["observation"][:2], achieved)
        assert gained == goals.compute_reward(achieved, goal, info)
        assert terminated == goals.compute_terminated(achieved, goal, info) == (step == 11)
        assert not truncated and not goals.compute_truncated(achieved, goal, info)
        distance = np.linalg.norm(achieved.astype(np.float64) - goal)
        assert info["distance"] == pytest.approx(distance, rel=1e-5)
        assert info["is_success"] == (distance < 0.5)
        assert info["is_success_easy"] == (distance < 2.0)
        if terminated:
            break
    # The end of the episode and its goal, not the beginning of the next.
    assert observation["observation"][2] > 2.5
    env.reset()
    assert [env.step(stay)[3] for _ in range(20)] == [False] * 19 + [True]


def test_a_picture_after_a_failure_shows_the_end_of_the_episode() -> None:
    class Shown:
        """Draws nothing, and remembers the height of the ant and its goal."""

        def draw_envs(self, env: TaskVectorEnv, indices: list[int]) -> np.ndarray:
            self.height = float(env.simulator.data["qpos"][indices, 2])
            self.state, self.goal = env.state_NS[0].numpy().copy(), env.goal_NG[0].numpy().copy()
            return np.zeros((1, 1, 3), np.uint8)

        def close(self) -> None:
            """Nothing is held."""

    shown: Any = Shown()
    env = GoalEnv("ant", render_mode="rgb_array")
    env.envs._renderer = shown
    begun, _ = env.reset(seed=0)
    env.envs.episodes.simulator.data["qpos"][0, 2] = 3.0
    observation, _, terminated, _, _ = env.step(np.zeros(8, np.float32))
    assert terminated and env.render() is not None
    assert shown.height > 2.5
    np.testing.assert_array_equal(shown.state, observation["observation"])
    np.testing.assert_array_equal(shown.goal, begun["desired_goal"])
    begun, _ = env.reset()
    env.render()
    assert shown.height < 0.8
    np.testing.assert_array_equal(shown.goal, begun["desired_goal"])


def test_seeds_decide_everything() -> None:
    def episode(seed: int | None) -> np.ndarray:
        env = gymnasium.make("torch_crl/PointUMaze-v0")
        observation, _ = env.reset(seed=seed)
        rows = [observation["desired_goal"]]
        rows += [env.step(np.ones(2, dtype=np.float32))[0]["achieved_goal"] for _ in range(3)]
        return np.concatenate([*rows, env.reset()[0]["observation"]])

    np.testing.assert_array_equal(episode(3), episode(3))
    assert (episode(3) != episode(4)).any()
    assert (episode(None) != episode(None)).any()


def equal_envs(num_envs: int, limit: int) -> tuple[SyncVectorEnv, GoalVectorEnv]:
    """Gymnasium's vector env of our single envs, and ours, in the same states."""
    env_id = "torch_crl/Ant-v0"
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make(env_id, max_episode_steps=limit)] * num_envs,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    ours = gymnasium.make_vec(env_id, num_envs=num_envs, max_episode_steps=limit)
    assert isinstance(ours, GoalVectorEnv)
    for env in (ours, theirs):
        env.reset(seed=0)
    align(theirs, ours)
    return theirs, ours


def align(theirs: SyncVectorEnv, ours: GoalVectorEnv) -> None:
    """Give our envs the states and goals of theirs."""
    singles = [env.unwrapped.envs.episodes for env in theirs.envs]
    episodes = ours.episodes
    episodes.simulator.set_state(torch.cat([one.simulator.get_state() for one in singles]))
    episodes.state_NS.copy_(torch.cat([one.state_NS for one in singles]))
    episodes.goal_NG.copy_(torch.cat([one.goal_NG for one in singles]))


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    """Equal structure, types and values."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert set(ours) == set(theirs), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}.{key}")
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(one, other, f"{where}[{index}]")
    elif isinstance(ours, np.ndarray):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), where
        np.testing.assert_array_equal(ours, theirs, err_msg=where)
    else:
        assert ours == theirs, where


def test_steps_and_infos_are_those_of_gymnasiums_vector_env() -> None:
    theirs, ours = equal_envs(4, limit=6)
    assert ours.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    rng = np.random.default_rng(0)
    some_ended = False
    for step in range(1, 13):
        if step == 3:  # One fails early, so that later ends do not fall together.
            theirs.envs[1].unwrapped.envs.episodes.simulator.data["qpos"][0, 2] = 3.0
            ours.episodes.simulator.data["qpos"][1, 2] = 3.0
        actions = rng.uniform(-0.3, 0.3, (4, 8)).astype(np.float32)
        expected, got = theirs.step(actions), ours.step(actions)
        ended = got[2] | got[3]
        for part, one, other in zip("rtui", got[1:], expected[1:], strict=True):
            assert_same(one, other, f"step {step}: {part}")
        for key, array in got[0].items():
            assert array.dtype == np.float32
            np.testing.assert_array_equal(array[~ended], expected[0][key][~ended])
            # The next starts are drawn apart.
            assert not ended.any() or (array[ended] != got[4]["final_obs"][ended][0][key]).any()
        some_ended |= bool(ended.any()) and not ended.all()
        if ended.any():
            align(theirs, ours)
    assert some_ended
    theirs.close()
    ours.close()


def test_infos_where_all_episodes_end_together() -> None:
    theirs, ours = equal_envs(2, limit=1)
    actions = np.zeros((2, 8), dtype=np.float32)
    infos = ours.step(actions)[4]
    assert_same(infos, theirs.step(actions)[4], "infos")
    assert set(infos) == {"final_obs", "_final_obs", "final_info", "_final_info"}


def test_what_is_handed_out_does_not_change_and_seeds_decide() -> None:
    env, same = (gymnasium.make_vec("torch_crl/PointUMaze-v0", num_envs=3) for _ in range(2))
    observation, _ = env.reset(seed=5)
    before = {key: array.copy() for key, array in observation.items()}
    stepped = env.step(np.ones((3, 2), dtype=np.float32))[0]
    kept = stepped["observation"].copy()
    env.step(np.ones((3, 2), dtype=np.float32))
    assert_same(observation, before, "reset")
    np.testing.assert_array_equal(stepped["observation"], kept)
    assert_same(same.reset(seed=5)[0], before, "seed")
    assert_same(env.reset(seed=5)[0], before, "again")
    assert (env.reset()[0]["desired_goal"] != before["desired_goal"]).any()
    with pytest.raises(ValueError, match=r"one whole number for all envs together, got \[1, 2"):
        env.reset(seed=[1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="autoreset=False to use reset_mask"):
        env.reset(options={"reset_mask": np.array([True, False, False])})


def moving() -> Task:
    """The puck of the example, whose goal is always 1 to its right."""
    task = make_task("own_task:make")
    return replace(task, moved_goal=lambda goal_NG, state_NS: state_NS[:, :2] + torch.eye(2)[0])


def test_the_last_observation_has_the_goal_that_had_moved() -> None:
    env = GoalVectorEnv(f"{__name__}:moving", num_envs=2, max_episode_steps=2)
    env.reset(seed=0)
    push = np.ones((2, 2), dtype=np.float32)
    observation = env.step(push)[0]
    np.testing.assert_allclose(
        observation["desired_goal"] - observation["achieved_goal"], [[1, 0]] * 2
    )
    last = env.step(push)[4]["final_obs"][1]
    np.testing.assert_allclose(last["desired_goal"] - last["achieved_goal"], [1, 0])


def test_what_could_not_be_made_can_be_closed() -> None:
    # As Gymnasium 1.2 does when an env is forgotten whose `__init__` raised.
    GoalVectorEnv.__new__(GoalVectorEnv).close()


def test_without_a_render_mode_there_is_no_picture() -> None:
    assert GoalEnv("ant").render() is None


def test_without_autoreset_a_mask_begins_the_next_episodes() -> None:
    env = GoalVectorEnv("ant", num_envs=3, max_episode_steps=4, autoreset=False)
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    env.reset(seed=0)
    action = np.zeros((3, 8), np.float32)
    for _ in range(2):
        env.step(action)
    for mask in (np.ones(2, bool), np.ones(3), [1, 0, 1]):
        with pytest.raises(ValueError, match="reset_mask must have 3 bools, got"):
            env.reset(options={"reset_mask": mask})
    before, *_ = env.step(action)
    begun, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    for key, part in begun.items():
        assert np.array_equal(part[[0, 2]], before[key][[0, 2]])
        assert not np.array_equal(part[1], before[key][1])
    last, _, _, truncated, info = env.step(action)
    assert truncated.tolist() == [True, False, True] and "final_obs" not in info
    assert info["_distance"].all()
    # The last observations are those of the episodes that ended.
    assert np.array_equal(last["observation"], env.episodes.state_NS.numpy())
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"envs \[0, 2\] have ended"):
        env.step(action)
    for other in (copy.copy(env), copy.deepcopy(env)):
        other.reset(seed=0)
        with pytest.raises(gymnasium.error.ResetNeeded):
            env.step(action)
    env.reset(options={"reset_mask": truncated})
    assert env.episodes.steps_N.tolist() == [0, 1, 0]
    assert not env.step(action)[3].any()


@pytest.mark.parametrize("make", ["one", "many"])
def test_actions_that_are_none_are_refused_and_change_nothing(make: str) -> None:
    shape = (2, 2) if make == "many" else (2,)
    env, fresh = (
        GoalVectorEnv("reacher", num_envs=2) if make == "many" else GoalEnv("reacher")
        for _ in range(2)
    )
    for each in (env, fresh):
        each.reset(seed=1)
    wrongs: list[Any] = [np.zeros(3), np.zeros((2, 1)), 0.5, "ab", None, np.ones(shape, bool)]
    for wrong in wrongs:
        with pytest.raises(ValueError, match=rf"reacher: .* numbers of shape \[{shape[0]}"):
            env.step(wrong)
    for number in (np.nan, np.inf, -1e11):
        with pytest.raises(NotFiniteError, match=r"reacher: the action .* it was not carried out"):
            env.step(np.full(shape, number))
    ours, theirs = (each.step(np.ones(shape))[0] for each in (env, fresh))
    assert np.array_equal(ours["observation"], theirs["observation"])
