"""The library's algorithms on our envs: nothing of theirs is changed, and depth means depth."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from tests.helpers.recipes import tiny_baseline
from torch_crl import load_policy, train
from torch_crl.agent.networks import ResidualTower
from torch_crl.baselines.run import BaselineRun, build_baseline
from torch_crl.baselines.vec_env import LibraryVecEnv
from torch_crl.benchmarks.baselines import plain_sac
from torch_crl.envs.make import make_vector_env
from torch_crl.recipe import checks
from torch_crl.recipe.baseline_checks import baseline_problems
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import LIBRARY_ALGOS
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import save_policy


def go_on(run: BaselineRun, collections: int) -> None:
    """The trainer's loop without its log."""
    for _ in range(collections):
        run.collect()
        while run.updates_done < run.updates_due:
            run.update()


@pytest.mark.parametrize("algo", [*LIBRARY_ALGOS, "gcbc"])
def test_an_algorithm_fills_the_run_directory_of_any_other(algo: str, tmp_path: Path) -> None:
    recipe = tiny_baseline(algo, depth=4)
    result = train(recipe, tmp_path / "run", show=False)
    evaluations = RunDirectory(tmp_path / "run").read_metrics("evaluation")
    assert len(evaluations) == 2
    assert evaluations[-1]["env_steps"] == recipe.total_env_steps == 120
    assert evaluations[-1]["updates"] == recipe.total_updates > 0
    finished = json.loads((tmp_path / "run" / "result.json").read_text())
    assert finished["evaluation"] == result.evaluation
    assert result.evaluation["time_at_goal"] == evaluations[-1]["time_at_goal"]
    losses = RunDirectory(tmp_path / "run").read_metrics("train")[-1]
    assert {"policy_gradient_loss", "actor_loss"} & set(losses)
    assert ("update_size_actor" in losses) == (algo == "gcbc")
    assert "gradient_norm_critic" not in losses
    assert {"collected_at_goal", "collected_failures"} <= set(losses)
    assert result.learning_curve.stat().st_size > 1_000
    action = load_policy(tmp_path / "run")(np.zeros(10, np.float32), np.zeros(3, np.float32))
    assert action.shape == (2,)


@pytest.mark.parametrize("algo", ["ppo", "sac", "td3_her"])
def test_our_loop_makes_what_the_librarys_own_learn_makes(algo: str) -> None:
    recipe = tiny_baseline(algo)
    ours, theirs = build_baseline(recipe), build_baseline(recipe)
    # Global random numbers, so one after the other.
    ours.model.set_random_seed(3)
    go_on(ours, 6)
    model: Any = theirs.model
    model.set_random_seed(3)
    model.train_freq = TrainFreq(5, TrainFrequencyUnit.STEP)
    model.gradient_steps = recipe.updates_per_collection
    model.learn(recipe.total_env_steps, reset_num_timesteps=False)
    assert ours.updates_done == recipe.total_updates
    before = build_baseline(recipe).named_parameters()
    for name, parameter in theirs.named_parameters().items():
        torch.testing.assert_close(ours.named_parameters()[name], parameter, rtol=0, atol=0)
    changed = [
        not torch.equal(before[name], part) for name, part in ours.named_parameters().items()
    ]
    assert all(changed)


def test_sac_learns_what_a_plain_script_on_gymnasium_make_learns() -> None:
    recipe = tiny_baseline(
        "sac",
        task={"num_envs": 1, "episode_length": 7},
        budget={"env_steps": 60, "prefill_rows": 20, "replay_rows": 60},
        baseline={"reward": "dense"},
    )
    # Global random numbers, so one after the other.
    ours = build_baseline(recipe)
    go_on(ours, 12)
    theirs = plain_sac(recipe)
    theirs.learn(recipe.total_env_steps)
    assert ours.updates_done == recipe.total_updates == 8
    mine: Any = ours.model
    assert isinstance(mine.replay_buffer, ReplayBuffer)
    assert isinstance(theirs.replay_buffer, ReplayBuffer)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        columns = [getattr(model.replay_buffer, name) for model in (mine, theirs)]
        np.testing.assert_array_equal(*columns, err_msg=name)
    # Every seventh step ends an episode by its time limit, which is no failure.
    assert theirs.replay_buffer.timeouts[6::7].all()
    for name, parameter in theirs.policy.named_parameters():
        torch.testing.assert_close(ours.named_parameters()[name], parameter, rtol=0, atol=0)


@pytest.mark.parametrize("depth", [0, 4])
@pytest.mark.parametrize("algo", ["ppo", "sac", "sac_her", "td3"])
def test_the_policy_is_the_models_deterministic_prediction(
    algo: str, depth: int, tmp_path: Path
) -> None:
    run = build_baseline(tiny_baseline(algo, depth=depth))
    go_on(run, 4)
    state, goal = torch.randn(7, 10), torch.randn(7, 3)
    observation: Any = torch.cat([state, goal], dim=-1).numpy()
    if algo.endswith("_her"):
        observation = {
            "observation": state.numpy(),
            "achieved_goal": state[:, 4:7].numpy(),
            "desired_goal": goal.numpy(),
        }
    expected, _ = run.model.predict(observation, deterministic=True)
    np.testing.assert_allclose(run.policy(state.numpy(), goal.numpy()), expected, atol=1e-6)
    save_policy(run.policy, tmp_path / "step_1", {})
    loaded = load_policy(tmp_path / "step_1")
    np.testing.assert_allclose(loaded(state.numpy(), goal.numpy()), expected, atol=1e-6)


@pytest.mark.parametrize("algo", ["ppo", "sac", "td3"])
def test_depth_is_that_of_our_towers_and_all_of_them_are_trained(algo: str) -> None:
    run = build_baseline(tiny_baseline(algo, depth=8))
    towers = [part for part in run.model.policy.modules() if isinstance(part, ResidualTower)]
    # Twin critics and their targets, and TD3's target actor; PPO has one critic and no target.
    assert len(towers) == {"ppo": 2, "sac": 5, "td3": 6}[algo]
    assert all(tower.weight.shape == (8, 16, 16) for tower in towers)
    inputs = sorted(tower.input_weight.shape[1] for tower in towers)
    assert inputs == {"ppo": [13, 13], "sac": [13] + [15] * 4, "td3": [13] * 2 + [15] * 4}[algo]
    before = {name: part.clone() for name, part in run.named_parameters().items()}
    go_on(run, 6)
    for name, parameter in run.named_parameters().items():
        assert not torch.equal(before[name], parameter), name


def vec_env(*, reward: str, goal_env: bool, episode_length: int = 3) -> LibraryVecEnv:
    env = make_vector_env("reacher", num_envs=5, episode_length=episode_length, seed=1)
    return LibraryVecEnv(env, reward=reward, goal_env=goal_env)


@pytest.mark.parametrize("reward", ["sparse", "dense"])
def test_observations_rewards_and_ends_of_episodes(reward: str) -> None:
    env = vec_env(reward=reward, goal_env=True)
    seen: Any = env.reset()
    rng = np.random.default_rng(0)
    for step in range(1, 10):
        # A goal that is where the tip is, to see both rewards.
        if step == 2:
            env.env.goal_NG[:3] = env.env.state_NS[:3, 4:7]
            seen = {**seen, "desired_goal": env.env.goal_NG.numpy().copy()}
        before = {name: part.copy() for name, part in seen.items()}
        action = rng.uniform(-0.01, 0.01, (5, 2)).astype(np.float32)
        following, rewards, dones, infos = env.step(action)
        # What the library was given must not change under its hands.
        for name, part in before.items():
            np.testing.assert_array_equal(seen[name], part)
        assert dones.all() == dones.any() == (step % 3 == 0)
        assert isinstance(following, dict)
        reached = following
        if dones.any():
            assert all(info["TimeLimit.truncated"] is True for info in infos)
            ends = [info["terminal_observation"] for info in infos]
            reached = {name: np.stack([end[name] for end in ends]) for name in following}
            assert not np.allclose(reached["desired_goal"], following["desired_goal"])
        else:
            assert infos == [{}] * 5
        np.testing.assert_array_equal(reached["desired_goal"], before["desired_goal"])
        np.testing.assert_array_equal(reached["achieved_goal"], reached["observation"][:, 4:7])
        offset = reached["achieved_goal"].astype(np.float64) - reached["desired_goal"]
        distance = np.sqrt((offset**2).sum(1))
        expected = (distance < 0.05).astype(float) if reward == "sparse" else -distance
        if step == 2 and reward == "sparse":
            assert 0 < expected.sum() < 5
        np.testing.assert_allclose(rewards, expected, atol=1e-6)
        again = env.env_method(
            "compute_reward", reached["achieved_goal"], reached["desired_goal"], infos, indices=[0]
        )
        np.testing.assert_allclose(again[0], expected, atol=1e-6)
        seen = following
    env.close()


def test_a_failure_ends_an_episode_without_a_time_limit() -> None:
    env = make_vector_env("humanoid", num_envs=3, episode_length=100, seed=0)
    wrapped = LibraryVecEnv(env, reward="sparse", goal_env=False)
    wrapped.reset()
    infos: list[dict[str, Any]] = []
    for _ in range(60):
        _, _, dones, step_infos = wrapped.step(np.zeros((3, 17), np.float32))
        infos += [info for info, done in zip(step_infos, dones, strict=True) if done]
    assert infos
    assert all(info["TimeLimit.truncated"] is False for info in infos)
    assert wrapped.failures == len(infos)
    wrapped.close()


def test_diverged_physics_ends_an_episode_as_a_time_limit_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = vec_env(reward="dense", goal_env=False)
    env.reset()
    diverged = torch.tensor([True, False, False, False, False])
    monkeypatch.setattr(env.env.simulator, "unstable", lambda: diverged)  # type: ignore[attr-defined]
    _, _, dones, infos = env.step(np.zeros((5, 2), np.float32))
    assert dones.tolist() == diverged.tolist() and infos[0]["TimeLimit.truncated"] is True
    assert env.failures == 0
    env.close()


@pytest.mark.parametrize(
    ("algo", "parts", "message"),
    [
        ("ppo", {"budget": {"env_steps_per_update": 3.0}}, "means 3.33 passes over each rollout"),
        (
            "ppo",
            {"algorithm": {"batch_size": 7}},
            "--batch-size 7 must divide a rollout of PPO, 20",
        ),
        ("ppo", {"budget": {"prefill_rows": 5}}, "--prefill-rows must be 0 for PPO"),
        ("sac", {"budget": {"prefill_rows": 0}}, "--prefill-rows must be at least 1, got 0"),
        ("sac_her", {"budget": {"prefill_rows": 9}}, "at least --episode-length (10), got 9"),
        ("td3_her", {"budget": {"replay_rows": 19}}, "--replay-rows must be at least twice"),
        ("sac", {"algorithm": {"energy": "dot"}}, "--energy is not read by --algo sac"),
        ("gcbc", {"algorithm": {"logsumexp_penalty": 0.5}}, "is not read by --algo gcbc"),
        ("crl", {"baseline": {"reward": "dense"}}, "--reward is not read by --algo crl"),
        ("sac", {"networks": {"width": 32}}, "--width is not read by --algo sac without --depth"),
        ("ppo", {"budget": {"replay_rows": 33}}, "--replay-rows is not read by --algo ppo"),
        ("ppo", {"algorithm": {"batch_size": 0}}, "--batch-size must be at least 2, got 0"),
        ("ppo", {"budget": {"unroll_length": 0}}, "--unroll-length must be at least 1, got 0"),
        ("ppo", {"budget": {"env_steps_per_update": 0.0}}, "--env-steps-per-update must be above"),
        ("sac", {"system": {"overlap": "on"}}, "--overlap on is for crl and gcbc, got --algo sac"),
        ("sac", {"networks": {"actor_depth": 2}}, "--actor-depth must be a positive multiple of 4"),
        ("crl", {"networks": {"actor_depth": 0}}, "--actor-depth must be a positive multiple of 4"),
    ],
)
def test_what_does_not_fit_is_told(
    algo: str, parts: dict[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(checks.RecipeError) as caught:
        checks.check(with_changes(tiny_baseline(algo), **parts))
    assert message in str(caught.value)


def test_hindsight_goals_of_the_library_need_a_task_of_ours() -> None:
    foreign = with_changes(tiny_baseline("sac_her"), task={"name": "gymnasium:X-v0"})
    (problem,) = baseline_problems(foreign)
    assert "which gymnasium:X-v0 does not offer here; take sac" in problem


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name == "stable_baselines3" else find(name),
    )
    with pytest.raises(checks.RecipeError, match=r"pip install 'stable-baselines3"):
        checks.check(tiny_baseline("sac"))


def test_a_baseline_is_not_resumed(tmp_path: Path) -> None:
    train(tiny_baseline("ppo"), tmp_path / "run", show=False)
    with pytest.raises(checks.RecipeError, match="a run of ppo keeps no checkpoints"):
        train(tiny_baseline("ppo"), tmp_path / "run", resume=True, show=False)


@pytest.mark.parametrize("task", ["reacher", "ant", "point_u_maze"])
@pytest.mark.parametrize("algo", [*LIBRARY_ALGOS, "gcbc"])
def test_presets_give_equal_budgets(task: str, algo: str) -> None:
    recipe, ours = preset(task, algo=algo), preset(task)
    checks.check(recipe)
    assert recipe.task == ours.task
    assert recipe.budget.env_steps == ours.budget.env_steps
    assert recipe.budget.evaluations == ours.budget.evaluations
    if algo != "ppo":
        assert recipe.updates_per_collection == ours.updates_per_collection
    assert recipe.networks.actor_depth == (0 if recipe.by_library else 4)
