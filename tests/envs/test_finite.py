"""NaN is told where it begins: which function, env, step and entry. Never as a result."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.recipes import tiny
from tests.helpers.tasks import puck_env
from torch_crl import evaluate
from torch_crl.envs import make
from torch_crl.envs.finite import FiniteMonitor
from torch_crl.envs.registry import make_task
from torch_crl.envs.simulators import Simulator, SimulatorError
from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.task import Start, Task
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.errors import NotFiniteError
from torch_crl.training.building import build_run
from torch_crl.training.stability import DivergenceMonitor

NAN = float("nan")


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    ("value", "fine"), [(NAN, False), (float("inf"), False), (-1.1e10, False), (-9e9, True)]
)
def test_what_nothing_can_be_learned_from(value: float, fine: bool, capturable: bool) -> None:
    sizes = {"state": 2, "goal": 1}
    watch = FiniteMonitor(sizes, capturable=capturable, device=torch.device("cpu"))
    state_N2, goal_N1 = torch.full((3, 2), 8e9), torch.zeros(3, 1)
    goal_N1[1] = value
    watch.record(state_N2, goal_N1, steps_N=torch.tensor([4, 5, 6]))
    if fine:
        watch.check("puck")
        return
    with pytest.raises(
        NotFiniteError, match=r"puck: goal is .* entry 0 of env 1, at step 5 of its"
    ):
        watch.check("puck")


def test_a_network_that_gives_nan_is_named_before_anything_is_learned() -> None:
    run = build_run(tiny("reacher"))
    with torch.no_grad():
        run.learner.actor.output_bias[..., 1] = torch.nan
    watch = DivergenceMonitor(run.env)
    run.collect()
    with pytest.raises(
        NotFiniteError, match=r"reacher: the action .* entry 1 of env 0, at step 1 "
    ):
        watch.report(20)


def spoilt(tensor: Tensor, env: int, entry: int) -> Tensor:
    tensor = tensor.clone()
    tensor[env, entry] = NAN
    return tensor


def task_with(**changes: Any) -> Task:
    return dataclasses.replace(make_task("own_task:make"), **changes)


class FromCall:
    """A function of the task whose `number`-th call spoils one number of env 2."""

    def __init__(self, function: Any, number: int, entry: int) -> None:
        self.function, self.left, self.entry = function, number, entry

    def __call__(self, *arguments: Any) -> Any:
        self.left -= 1
        value = self.function(*arguments)
        if self.left:
            return value
        if isinstance(value, Start):
            return value._replace(goal_NG=spoilt(value.goal_NG, 2, self.entry))
        if value.ndim == 1:
            return spoilt(value[:, None], 2, 0)[:, 0]
        return spoilt(value, 2, self.entry)


# Episodes of 5 steps. Which call of the function it is, where an env asks whether an episode
# begins, and where it cannot ask, as in a CUDA graph, and prepares a start after every step.
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    ("name", "calls", "entry", "message"),
    [
        ("state", (1, 1), 3, "`state` returned at the start of the episode .* entry 3 .* step 1 "),
        ("state", (4, 6), 1, "`state` returned is .* entry 1 of env 2, at step 3 "),
        ("state", (7, 11), 0, "`state` returned at the start of the episode .* entry 0 .* step 1 "),
        ("control", (2, 2), 1, "`control` returned is .* entry 1 of env 2, at step 2 "),
        ("distance", (9, 9), 0, "`distance` returned is .* entry 0 of env 2, at step 4 "),
        ("sample_start", (2, 6), 1, "the goal, by `sample_start` .* entry 1 of env 2, at step 1 "),
    ],
)
def test_the_first_is_named(
    name: str, calls: tuple[int, int], entry: int, message: str, capturable: bool
) -> None:
    good = make_task("own_task:make")
    task = task_with(**{name: FromCall(getattr(good, name), calls[capturable], entry)})
    simulator = CpuSimulator(task.model, num_envs=4, num_threads=1)
    simulator.capturable = capturable
    generator = Generator().manual_seed(0)
    env = TaskVectorEnv(task, simulator, episode_length=5, generator=generator)
    for _ in range(14):
        env.step(torch.zeros(4, 2))
    with pytest.raises(NotFiniteError, match=f"own_task:make: .*{message}"):
        DivergenceMonitor(env).report(1)


def test_an_action_that_is_not_finite_is_the_one_to_blame() -> None:
    env = puck_env()
    env.step(torch.zeros(6, 2))
    env.check()
    env.step(spoilt(torch.zeros(6, 2), 4, 1))
    for _ in range(3):
        env.step(torch.full((6, 2), NAN))
    with pytest.raises(
        NotFiniteError, match=r"the action that was given is .* entry 1 of env 4, at"
    ):
        env.check()


def test_a_control_that_mujoco_refuses_is_told(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MuJoCo logs the warning into the present folder.
    monkeypatch.chdir(tmp_path)
    simulator = puck_env().simulator
    simulator.data["ctrl"].fill_(1e11)
    simulator.step(1)
    with pytest.raises(SimulatorError, match="a control of env 0 was NaN or beyond 1e10"):
        simulator.check()


def nan_control(action_NA: Tensor, simulator: Simulator) -> Tensor:
    return action_NA / 0.0


def no_distance(achieved_NG: Tensor, goal_NG: Tensor) -> Tensor:
    return torch.full((len(goal_NG),), NAN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"control": nan_control}, "`control`"), ({"distance": no_distance}, "`distance`")],
)
def test_evaluation_raises_and_returns_no_nan(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(make, "make_task", lambda _: task_with(**changes))
    with pytest.raises(NotFiniteError, match=message):
        evaluate(lambda s, g: torch.zeros(len(s), 2), "own_task:make", num_envs=2, episode_length=3)


def test_evaluation_raises_where_the_policy_gives_nan() -> None:
    with pytest.raises(NotFiniteError, match=r"reacher: the action that was given is NaN"):
        evaluate(lambda s, g: torch.full((2, 2), NAN), "reacher", num_envs=2, episode_length=3)
