"""Training on Gymnasium's goal envs: what the adapter delivers, beside Gymnasium's own."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import warnings
from contextlib import closing
from importlib.metadata import version
from multiprocessing import connection
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image

from tests.helpers.goal_envs import HIGH, LOW, register
from torch_crl import evaluate, preset, train, with_changes
from torch_crl.cli.main import main
from torch_crl.envs.gymnasium import foreign, workers
from torch_crl.envs.gymnasium.errors import ForeignEnvError, UnsuitableEnvError
from torch_crl.envs.gymnasium.vector_env import GymnasiumVectorEnv
from torch_crl.envs.registry import UnknownTaskError, make_task, task_spec
from torch_crl.envs.vector_env import StepResult
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.recipe.record import Recipe
from torch_crl.rendering.video import record
from torch_crl.training import evaluation


def puck_env(name: str = "", *, num_envs: int = 5, **options: Any) -> GymnasiumVectorEnv:
    options = {"episode_length": 7, "seed": 11, "num_processes": 2, **options}
    return GymnasiumVectorEnv(name or register("Puck"), num_envs=num_envs, **options)


def in_this_process(name: str = "", **options: Any) -> GymnasiumVectorEnv:
    return puck_env(name, render_mode="rgb_array", **options)


def at_rest(env: GymnasiumVectorEnv) -> StepResult:
    """A step with the action that the puck understands as 0."""
    return env.step(torch.tensor([[1.0 / 3.0, -1.0]]).expand(env.num_envs, 2))


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
@pytest.mark.parametrize("success", ["success", "is_success", "reward", "batch reward"])
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
        truncated = [bool(at_rest(env).truncated_N) for _ in range(18)]
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


def test_a_redrawn_goal_is_another_env_s_and_only_commanded() -> None:
    with (
        closing(in_this_process(goal_redraw=0.3)) as env,
        closing(in_this_process()) as plain,
    ):
        own, redrawn = plain.goal_NG.clone(), 0
        assert torch.equal(env.goal_NG, own)
        for _ in range(6):
            before = env.goal_NG.clone()
            result, undisturbed = at_rest(env), at_rest(plain)
            # Distance and success are those of the env's own goal.
            assert torch.equal(result.distance_N, undisturbed.distance_N)
            changed = (env.goal_NG != before).any(-1)
            redrawn += int(changed.sum())
            for goal in env.goal_NG:
                assert (own == goal).all(-1).any(), "a goal that no env has"
        # About 6 x 5 x 0.3, of which a fifth are the env's own goal.
        assert 2 <= redrawn <= 15
        at_rest(env), at_rest(plain)
        # The next episodes begin with their own goals.
        assert torch.equal(env.goal_NG, plain.goal_NG)


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
        (
            register("Unsaid", success="none"),
            "neither by info.* nor by compute_reward.*has no comp",
        ),
        (
            register("Dense", success="dense reward"),
            "has a dense compute_reward.*Let `step` return",
        ),
        (register("Constant", success="constant reward"), "0 at a goal and the same elsewhere"),
        (register("Breaks", fault="step", faulty_seed=0), "it raised ValueError: the puck is gone"),
        (register("Leaves", fault="exit", faulty_seed=0), "it raised SystemExit: 3"),
        (
            register("Shape", fault="shape", faulty_seed=0),
            r"gave achieved_goal of shape \(1,\) where its observation space says \(2,\)",
        ),
    ],
)
def test_envs_that_cannot_be_trained_on_are_named_with_the_reason(name: str, message: str) -> None:
    with pytest.raises(UnknownTaskError, match=message) as caught:
        task_spec(name)
    assert name.removeprefix("gymnasium:") in str(caught.value)
    with pytest.raises(RecipeError, match=message):
        check(with_changes(Recipe(), task={"name": name, "eval_name": name}))


def test_success_that_is_told_at_the_end_only_is_said_and_counted_there() -> None:
    name = register("AtTheEnd", success="at the end")
    foreign.probe.cache_clear()
    with pytest.warns(UserWarning, match="AtTheEnd.*only at some steps.*read success_any"):
        task_spec(name)
    with warnings.catch_warnings(), closing(in_this_process(name, num_envs=32)) as env:
        success = torch.stack([at_rest(env).success["success"] for _ in range(7)])
    assert not success[:6].any() and success[6].any() and not success[6].all()


def test_bytes_are_not_computed_with_in_their_own_type() -> None:
    name = register("Bytes", gives="bytes", success="reward")
    with closing(in_this_process(name)) as env:
        result = at_rest(env)
    assert result.distance_N.tolist() == [247.0] * 5
    assert not result.success["success"].any()


def test_lists_and_integer_actions_are_taken() -> None:
    name = register("Lists", gives="lists")
    with closing(in_this_process(name)) as lists, closing(in_this_process()) as arrays:
        assert torch.equal(at_rest(lists).final_state_NS, at_rest(arrays).final_state_NS)
    with closing(in_this_process(register("Integers", gives="integer actions"))) as env:
        before = env.state_NS[:, :2].clone()
        moved = env.step(torch.tensor([[0.49, -1.0]]).expand(5, 2)).final_state_NS[:, :2] - before
    # 0.2 times 2.45 rounded to 2, and -5.
    torch.testing.assert_close(moved, torch.tensor([[0.4, -1.0]]).expand(5, 2))


@pytest.mark.parametrize(
    "fault, message",
    [
        ("number nan", r"gave observation\[2\] = nan; needed are finite numbers of at most 1e\+10"),
        ("number inf", r"gave observation\[2\] = inf"),
        ("number -1e300", r"gave observation\[2\] = -1e\+300"),
        ("number 1e30", r"gave observation\[2\] = 1e\+30"),
        ("goal", r"gave desired_goal\[1\] = nan"),
        ("shape", r"gave achieved_goal of shape \(1,\)"),
        ("step", r"raised ValueError: the puck is gone \(.*goal_envs.py, line \d+\)"),
        ("exit", r"raised SystemExit: 3 \("),
    ],
)
def test_what_goes_wrong_is_named_by_env_and_step(fault: str, message: str) -> None:
    name = register(f"Fault {fault}", fault=fault)
    with closing(in_this_process(name)) as env:
        at_rest(env), at_rest(env)
        before = env.state_NS.clone()
        with pytest.raises(ForeignEnvError, match=f"{name}: env 3, at step 3 of .*, {message}"):
            at_rest(env)
        assert torch.equal(env.state_NS, before)


def test_what_goes_wrong_in_a_first_observation_is_named_too() -> None:
    name = register("First", fault="number nan", fault_at=0)
    with pytest.raises(ForeignEnvError, match=r"env 3, at step 0 of .*observation\[2\] = nan"):
        in_this_process(name)


@pytest.mark.parametrize(
    "fault, message",
    [
        (
            "step",
            r"env 3, at step 3 of its episode, raised ValueError: .*goal_envs.py, line",
        ),
        ("death", r"the process of envs 3 to 4 died \(exit code 5\) at env 3"),
        ("hang", r"env 3 has not come back for 0.5 s \(--env-timeout\); .* envs 3 to 4 was ended"),
    ],
)
def test_faults_in_processes_end_in_one_error_and_no_processes(fault: str, message: str) -> None:
    # Twice that passes before an env is said to hang; a busy machine may take it for a usual step.
    timeout = 0.5 if fault == "hang" else 300.0
    env = puck_env(register(f"Process_{fault}", fault=fault), env_timeout=timeout)
    at_rest(env), at_rest(env)
    with pytest.raises(ForeignEnvError, match=message):
        at_rest(env)
    env.close()
    env.close()
    assert not multiprocessing.active_children()


def test_an_env_that_a_group_is_at_again_does_not_hang() -> None:
    with closing(puck_env(num_envs=2)) as env:
        group = env._group
        assert isinstance(group, workers.Workers)
        (pipe, *others), calls = group._pipes, iter(range(5, 9))

        class Slow:
            """A group that has not answered four times, each time in another call of env 1."""

            def poll(self, _: float) -> bool:
                group._at_work[0] = 1, next(calls, 0)
                return group._at_work[0, 1] == 0

            def recv(self) -> str:
                return "answered"

        group._pipes[:] = cast("list[connection.Connection]", [Slow(), *others])
        assert group._answer(0, 0.1) == "answered"
        group._pipes[:] = [pipe, *others]
        assert all(process.is_alive() for process in group._processes)


def test_what_takes_long_to_be_made_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = register("Slow", fault="slow constructor")
    # Longer than two resets may take.
    with closing(puck_env(slow, num_envs=1, env_timeout=0.5)) as env:
        assert env.steps_N.tolist() == [0]
    monkeypatch.setattr(workers, "_SECONDS_TO_START", 0.1)
    with pytest.raises(ForeignEnvError, match=r"env 0 was not made within 0.1 s \(--env-timeout"):
        puck_env(slow, num_envs=1, env_timeout=0.05)


def test_processes_of_others_are_as_ever() -> None:
    with closing(puck_env()):
        context = multiprocessing.get_context("forkserver")
        process = context.Process(target=time.sleep, args=(60,))
        process.start()
        process.terminate()
        process.join(10)
        assert process.exitcode == -signal.SIGTERM


def test_processes_go_on_after_signals_and_leave_when_they_are_forgotten() -> None:
    env = puck_env()
    processes = multiprocessing.active_children()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, number)
        at_rest(env)
    del env
    for process in processes:
        process.join(10)
        assert process.exitcode == 0


def test_no_process_outlives_a_training_process_that_is_killed() -> None:
    program = (
        "import json, multiprocessing, os, signal\n"
        "from tests.helpers.goal_envs import register\n"
        "from torch_crl.envs.gymnasium.foreign import probe\n"
        "from torch_crl.envs.gymnasium.workers import Workers\n"
        "puck = probe(register('Puck'))\n"
        "workers = Workers(puck, episode_length=7, num_envs=2, num_processes=2, timeout=0)\n"
        "workers.reset(0)\n"
        "print(json.dumps([one.pid for one in multiprocessing.active_children()]), flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    left, deadline = json.loads(told.stdout), time.monotonic() + 10
    assert len(left) == 2 and told.returncode == -signal.SIGKILL
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert not told.stderr


@pytest.mark.parametrize("why", ["a daemonic process", "/dev/shm.* is not writable"])
def test_where_processes_cannot_work_together_the_envs_are_stepped_in_this_one(
    monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    with closing(puck_env()) as usual:
        expected = at_rest(usual)
    if "daemonic" in why:
        monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)
    else:
        monkeypatch.setattr(os, "access", lambda _, mode: mode == os.F_OK)
    with pytest.warns(UserWarning, match=f"{why}.*stepped in this one"):
        env = puck_env()
    assert not multiprocessing.active_children()
    with closing(env):
        assert torch.equal(at_rest(env).final_state_NS, expected.final_state_NS)


def test_the_patience_with_envs_is_checked() -> None:
    with pytest.raises(RecipeError, match="--env-timeout must be at least 0, got -1"):
        check(tiny(env_timeout=-1.0))
    check(tiny(env_timeout=0.0))


def test_envs_are_filmed_by_their_own_render(tmp_path: Path) -> None:
    with closing(in_this_process(num_envs=3)) as env:
        path = tmp_path / "puck.gif"
        drawn = record(lambda state, goal: torch.zeros(3, 2), env, path, steps=9)
    assert drawn == "the env's own render"
    with Image.open(path) as film:
        assert film.size == (2 * 48, 2 * 32) and film.info["duration"] == 100
        shown = []
        for frame in range(film.n_frames):
            film.seek(frame)
            picture = np.asarray(film.convert("RGB"))
            assert (picture[32:, 48:] == 255).all()
            shown.append(int(picture[0, 0, 0]))
    # Episodes of seven steps.
    assert shown == [20 * step for step in (0, 1, 2, 3, 4, 5, 6, 0, 1)]


def test_envs_without_pictures_are_told_from_others() -> None:
    with pytest.raises(UnsuitableEnvError, match=r"\['rgb_array'\], and 'human' is needed"):
        puck_env(render_mode="human")


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


def test_evaluating_a_run_has_the_patience_of_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny(env_timeout=77.0), tmp_path, show=False)
    given: dict[str, Any] = {}
    monkeypatch.setattr(evaluation, "evaluate", lambda *_, **options: given.update(options) or {})
    assert main(["eval", str(tmp_path), "--json"]) == 0
    assert given["env_timeout"] == 77.0


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


def test_envs_of_gymnasium_robotics_that_do_not_fit_this_mujoco_say_so() -> None:
    pytest.importorskip("gymnasium_robotics")
    versions = f"gymnasium-robotics {version('gymnasium-robotics')} and mujoco {version('mujoco')}"
    try:
        assert task_spec("gymnasium:FetchReach-v4").goal_size == 3
    except UnknownTaskError as error:
        assert f"{versions} do not fit together" in str(error)
        assert "pull request 330" in str(error)
