"""Training on Gymnasium's goal envs: what the adapter delivers, beside Gymnasium's own."""

import multiprocessing
from contextlib import closing
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from tests.goal_envs import HIGH, LOW, register
from torch_crl import evaluate, preset, train, with_changes
from torch_crl.envs.gymnasium.vector_env import GymnasiumVectorEnv
from torch_crl.envs.registry import UnknownTaskError, make_task, task_spec
from torch_crl.recipe import Recipe
from torch_crl.validation import RecipeError, check


def puck_env(name: str = "", *, num_envs: int = 5, **options: int) -> GymnasiumVectorEnv:
    options = {"episode_length": 7, "seed": 11, "num_processes": 2, **options}
    return GymnasiumVectorEnv(name or register("Puck"), num_envs=num_envs, **options)


def tiny(**system: object) -> Recipe:
    return with_changes(
        preset(register("Puck")),
        task={"num_envs": 4, "num_eval_envs": 4},
        networks={"width": 8},
        algorithm={"batch_size": 8},
        budget={
            "env_steps": 4 * 40,
            "unroll_length": 10,
            "prefill_rows": 20,
            "replay_rows": 40,
            "evaluations": 1,
            "checkpoints": 2,
        },
        system=system,
    )


def test_sizes_come_from_the_env() -> None:
    spec = task_spec(register("Puck"))
    assert (spec.state_size, spec.goal_slice, spec.action_size) == (5, (3, 5), 2)
    assert spec.episode_length == 7
    with pytest.raises(UnknownTaskError, match="stepped by Gymnasium"):
        make_task(register("Puck"))


@pytest.mark.parametrize("num_processes", [1, 2, 5])
@pytest.mark.parametrize("success", ["success", "is_success", "reward"])
def test_episodes_are_those_of_gymnasiums_own_vector_env(num_processes: int, success: str) -> None:
    name = register(f"Puck-{success}", success=success)
    theirs = SyncVectorEnv(
        [lambda: gymnasium.make(name.removeprefix("gymnasium:"))] * 5,
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    observation, _ = theirs.reset(seed=11)
    ended_before = np.zeros(5, dtype=np.int64)
    generator = torch.Generator().manual_seed(0)
    with closing(puck_env(name, num_processes=num_processes)) as env:
        for _ in range(20):
            state = np.concatenate([observation["observation"], observation["achieved_goal"]], -1)
            np.testing.assert_allclose(env.state_NS, state, rtol=1e-6)
            np.testing.assert_allclose(env.goal_NG, observation["desired_goal"], rtol=1e-6)
            assert env.trajectory_N.tolist() == (ended_before + 1).tolist()

            action = torch.rand(5, 2, generator=generator) * 2 - 1
            result = env.step(action)
            rescaled = LOW + (action.numpy().astype(np.float64) + 1) / 2 * (HIGH - LOW)
            observation, reward, terminated, truncated, infos = theirs.step(
                rescaled.astype(np.float32)
            )
            ended = terminated | truncated
            ended_before += ended
            final = [
                infos["final_obs"][i] if ended[i] else {k: v[i] for k, v in observation.items()}
                for i in range(5)
            ]
            finals = np.array([[*one["observation"], *one["achieved_goal"]] for one in final])
            distance = [np.linalg.norm(one["achieved_goal"] - one["desired_goal"]) for one in final]
            np.testing.assert_allclose(result.final_state_NS, finals, rtol=1e-6)
            np.testing.assert_allclose(result.distance_N, distance, rtol=1e-6)
            assert result.success["success"].tolist() == (reward == 0).tolist()
            assert result.terminated_N.tolist() == terminated.tolist()
            assert result.truncated_N.tolist() == (truncated & ~terminated).tolist()
    assert ended_before.min() >= 2
    theirs.close()


def test_other_time_limits_than_the_envs_own() -> None:
    with closing(puck_env(num_envs=1, num_processes=1, episode_length=9)) as env:
        stay = torch.tensor([[1.0 / 3.0, -1.0]])  # the action 0
        truncated = [bool(env.step(stay).truncated_N) for _ in range(18)]
        assert truncated == ([False] * 8 + [True]) * 2


def test_seeds_decide_and_resets_begin_fresh_episodes() -> None:
    with (
        closing(puck_env()) as ours,
        closing(puck_env()) as same,
        closing(puck_env(seed=12)) as other,
    ):
        assert torch.equal(ours.goal_NG, same.goal_NG)
        assert not torch.equal(ours.goal_NG, other.goal_NG)
        first = ours.goal_NG.clone()
        ours.step(torch.zeros(5, 2))
        ours.reset()
        assert not torch.isclose(ours.goal_NG, first).any()
        assert ours.trajectory_N.tolist() == [2] * 5 and not ours.steps_N.any()


def test_what_is_loaded_goes_on_with_the_numbers_in_fresh_episodes() -> None:
    with closing(puck_env()) as ours, closing(puck_env()) as theirs:
        for _ in range(10):
            ours.step(torch.zeros(5, 2))
        saved = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
        first = theirs.goal_NG.clone()
        theirs.load_state_dict(saved)
        assert torch.equal(theirs.trajectory_N, saved["trajectory"] + 1)
        assert not torch.isclose(theirs.goal_NG, first).any()


@pytest.mark.parametrize(
    "name, message",
    [
        ("gymnasium:NoSuchEnv-v0", "NoSuchEnv.*doesn't exist.*pip install gymnasium-robotics"),
        ("gymnasium:no_such_module:Env-v0", "No module named 'no_such_module'"),
        ("gymnasium:CartPole-v1", r"Box\(.*\(4,\), float32\); needed is a Dict of observation"),
        (register("Unmakeable", fault="constructor"), "Unmakeable.*RuntimeError: no such puck"),
        (register("Flat", fault="flat"), "not a goal env: its observation space is Box"),
        (register("Unbounded", fault="unbounded"), "action space.*finite bounds"),
        (register("Unsaid", success="none"), "success neither by info.* nor by compute_reward"),
        (register("Breaks", fault="step", fault_at=1), "ValueError: the puck is gone"),
    ],
)
def test_envs_that_cannot_be_trained_on_are_named_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(UnknownTaskError, match=message):
        task_spec(name)
    with pytest.raises(RecipeError, match=message):
        check(with_changes(Recipe(), task={"name": name, "eval_name": name}))


def test_an_env_that_raises_ends_in_one_error_and_no_processes() -> None:
    env = puck_env(register("Raises", fault="step"))
    with pytest.raises(RuntimeError, match=r"Raises-v0 raised ValueError: the puck is gone \(.*:"):
        for _ in range(3):
            env.step(torch.zeros(5, 2))
    env.close()
    assert not multiprocessing.active_children()


def test_a_process_that_dies_ends_in_one_error_and_no_processes() -> None:
    env = puck_env(register("Dies", fault="death"))
    with pytest.raises(RuntimeError, match=r"a process that steps .*Dies-v0 died"):
        for _ in range(3):
            env.step(torch.zeros(5, 2))
    env.close()
    env.close()
    assert not multiprocessing.active_children()


def test_parity_with_repeated_starts_is_refused() -> None:
    with pytest.raises(RecipeError, match="--parity reference cannot repeat"):
        check(with_changes(tiny(), algorithm={"parity": "reference"}))


def test_evaluation_and_training_leave_no_process(tmp_path: Path) -> None:
    metrics = evaluate(
        lambda state, goal: torch.zeros(len(state), 2),
        register("Puck"),
        num_envs=6,
        episode_length=7,
    )
    assert 1 <= metrics["episode_length"] <= 7
    assert not multiprocessing.active_children()
    result = train(tiny(), tmp_path / "run", show=False)
    assert result.evaluation["episode_length"] <= 7
    assert not multiprocessing.active_children()


def test_a_resumed_run_says_that_episodes_are_fresh(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train(tiny(), tmp_path, show=False)
    train(tiny(), tmp_path, resume=True)
    assert "cannot be saved and begins fresh episodes" in capfd.readouterr().err


def test_gymnasium_robotics_is_found_without_being_imported() -> None:
    pytest.importorskip("gymnasium_robotics")
    name = "gymnasium:PointMaze_UMaze-v3"
    spec = task_spec(name)
    assert (spec.state_size, spec.goal_slice, spec.action_size) == (6, (4, 6), 2)
    assert spec.episode_length == 300
    with closing(puck_env(name, num_envs=2)) as env:
        result = env.step(torch.ones(2, 2))
        expected = (env.state_NS[:, 4:] - env.goal_NG).norm(dim=-1)
        torch.testing.assert_close(result.distance_N, expected)
