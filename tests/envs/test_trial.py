"""An own task is tried before anything is built, and every problem of it is told at once."""

import dataclasses
import json
import sysconfig
from contextlib import closing
from pathlib import Path
from typing import Any

import mujoco
import pytest
import torch
from own_task import PUCK
from torch import Generator, Tensor

from tests.helpers.paths import EXAMPLES
from tests.helpers.recipes import tiny
from torch_crl import Start, Task, preset, with_changes
from torch_crl.envs.make import make_vector_env
from torch_crl.envs.registry import TASKS, UnknownTaskError, make_task
from torch_crl.envs.simulators import Simulator, SimulatorError, make_simulator
from torch_crl.envs.task import direct_control, scaled_control
from torch_crl.envs.trial import task_problems
from torch_crl.errors import OwnCodeError, in_one_line
from torch_crl.recipe.checks import RecipeError, check

NAN = float("nan")


def own_task(**changes: Any) -> Task:
    """The example's puck, with some of its parts or of its spec's exchanged."""
    good = make_task("own_task:make")
    of_spec = {field.name for field in dataclasses.fields(good.spec)}
    spec = {name: value for name, value in changes.items() if name in of_spec}
    rest = {name: value for name, value in changes.items() if name not in of_spec}
    return dataclasses.replace(good, spec=dataclasses.replace(good.spec, **spec), **rest)


def start_with(**parts: Tensor) -> Any:
    def sample_start(num_envs: int, generator: Generator) -> Start:
        start = make_task("own_task:make").sample_start(num_envs, generator)
        return start._replace(**{name: part.clone() for name, part in parts.items()})

    return sample_start


def without_generator(num_envs: int, generator: Generator) -> Start:
    start = make_task("own_task:make").sample_start(num_envs, generator)
    return start._replace(qpos_NQ=torch.rand_like(start.qpos_NQ))


def start_without(part: str) -> Any:
    def sample_start(num_envs: int, generator: Generator) -> Start:
        return make_task("own_task:make").sample_start(num_envs, generator)._replace(**{part: None})

    return sample_start


def nan_at_rest(simulator: Simulator) -> Tensor:
    speed = simulator.data["qvel"]
    return torch.cat([simulator.data["qpos"], speed / speed.norm(dim=-1, keepdim=True)], -1).float()


def nan_when_moving(simulator: Simulator) -> Tensor:
    return torch.cat([simulator.data["qpos"], (-simulator.data["qvel"].abs()).sqrt()], -1).float()


def raises(*_: object) -> Tensor:
    raise RuntimeError("no\nsuch thing")


def no_return(*_: object) -> None:
    """Forgot its return."""


def test_a_good_task_has_no_problems() -> None:
    assert task_problems(own_task()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": lambda sim: sim.data["xpos"].flatten(1)}, "add fields=('xpos',) to the Task"),
        ({"fields": "xpos"}, "fields must be a tuple of names such as ('xpos',), got 'xpos'"),
        ({"fields": ("xpoz",)}, "'xpoz' is no MjData array that tasks can read; nearest: xpos"),
        ({"success_radius": 0.2}, 'must be a mapping such as {"success": 0.2}, got 0.2'),
        ({"success_radius": {"success": "0.2"}}, "must have distances above 0"),
        ({"substeps": 0}, "substeps must be a whole number of at least 1, got 0"),
        ({"episode_length": 1.5}, "episode_length must be a whole number of at least 1, got 1.5"),
        ({"goal_slice": (0, 5)}, "goal_slice (0, 5) is no slice of a state of 4 numbers"),
        ({"goal_slice": 2}, "goal_slice 2 is no slice"),
        ({"state_names": ("x", "y")}, "a name for each of 4 entries of the state, or empty, got"),
        ({"model": mujoco.MjSpec()}, "model must be a mujoco.MjModel, got "),
        ({"failed": None}, "failed must be a function, got None"),
        ({"state_size": 5}, "state must have shape [2, 5] for 2 envs, got [2, 4]"),
        (
            {"state": lambda sim: sim.data["qpos"].repeat(1, 2)},
            "state must be float32, got float64",
        ),
        ({"state": raises}, "state raised RuntimeError: no ("),
        ({"state": raises}, "test_trial.py, line "),
        ({"state": no_return}, "state returned None; does it lack a `return`?"),
        ({"state": nan_at_rest}, "state must be finite, and is nan in entry 2 of env 0"),
        ({"state": nan_when_moving}, "state, after a control step, must be finite, and is nan"),
        ({"sample_start": raises}, "sample_start raised RuntimeError"),
        ({"sample_start": without_generator}, "gave other starts for an equal generator"),
        (
            {"failed": lambda s: torch.ones(len(s), dtype=torch.bool)},
            "is true where episodes begin",
        ),
        ({"sample_start": lambda n, generator: (1, 2)}, "must return a torch_crl.Start, got tuple"),
        ({"sample_start": start_with(qpos_NQ=torch.zeros(2, 3))}, "qpos must have shape [2, 2]"),
        ({"sample_start": start_with(qvel_NV=torch.full((2, 2), NAN))}, "qvel must be finite, and"),
        (
            {"sample_start": start_with(goal_NG=torch.zeros(2, 2).int())},
            "goal must be float32, got",
        ),
        ({"sample_start": start_with(goal_NG=torch.tensor([[0, 0], [0, NAN]]))}, "1 of env 1"),
        (
            {"action_size": 3},
            "control must have shape [2, 2] for 2 envs, got [2, 3]; actions have 3 numbers and",
        ),
        ({"control": lambda action, sim: action / 0}, "control must be finite, and is"),
        (
            {"control": lambda action, sim: action.numpy()},
            "control must be a torch tensor of shape",
        ),
        ({"distance": lambda a, g: (a - g).norm()}, "distance must have shape [2] for 2 envs"),
        ({"distance": raises}, "distance raised RuntimeError"),
        ({"reached": lambda a, g: a[:, 0] > 0}, "reached must return a dict with 'success'"),
        ({"reached": lambda a, g: {"success": a[:, 0]}}, "reached's 'success' must be bool"),
        ({"reached": lambda a, g: {"success": None}}, "reached's 'success' must be a torch tensor"),
        ({"sample_start": start_without("goal_NG")}, "sample_start's goal must be a torch tensor"),
        ({"failed": lambda state: state[:, 2]}, "failed must be bool, got float32"),
        ({"moved_goal": lambda goal, state: goal[:, :1]}, "moved_goal must have shape [2, 2]"),
        (
            {"goal_points": lambda goal: goal},
            "goal_points must return a tensor of shape [K, 3] for one goal, got [2]",
        ),
        ({"goal_points": lambda goal: goal.numpy()}, "[K, 3] for one goal, got ndarray array("),
        ({"goal_points": lambda goal: goal[:1] / 0 + torch.zeros(1, 3)}, "goal_points must be fin"),
        ({"goal_points": lambda goal: {}["a"]}, "goal_points raised KeyError: 'a'"),
        ({"goal_points": 3}, "goal_points must be a function, got int 3"),
    ],
)
def test_each_kind_of_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    (problem,) = task_problems(own_task(**changes))
    assert message in problem and "\n" not in problem


# Collisions ask for memory that the model does not give; with `xpos` the reset computes them too.
@pytest.mark.parametrize(
    ("fields", "where"), [((), "a control step fails"), (("xpos",), "model cannot be simulated")]
)
def test_errors_of_mujocos_own_are_told(fields: tuple[str, ...], where: str) -> None:
    small = '<size memory="1K"/><worldbody><geom type="plane" size="5 5 1"/>'
    model = mujoco.MjModel.from_xml_string(PUCK.replace("<worldbody>", small))
    (problem,) = task_problems(own_task(model=model, fields=fields))
    assert problem.startswith(f"{where}: MuJoCo raised in 2 of 2") and "\n" not in problem
    assert 'increase <size memory="..."/>' in problem
    simulator = make_simulator("cpu", model, num_envs=2, fields=("xpos",))
    with pytest.raises(SimulatorError, match="stack overflow"):
        simulator.set_state(simulator.get_state())


def test_a_control_that_mujoco_refuses_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MuJoCo logs the warning into the present folder.
    monkeypatch.chdir(tmp_path)
    (problem,) = task_problems(own_task(control=lambda action, sim: action + 1e11))
    assert "a control step fails: a control of env 0 was NaN or beyond 1e10" in problem


def test_mistakes_are_told_all_at_once() -> None:
    problems = task_problems(
        own_task(state=raises, distance=raises, control=no_return, success_radius={"easy": 1.0})
    )
    assert [problem.split()[0] for problem in problems] == [
        *("success_radius", "state", "control", "distance")
    ]


def makes_nothing() -> None:
    """`module:function` that returns None."""


def makes_a_wrong_task() -> Task:
    return own_task(success_radius=0.2, distance=raises)


def fails() -> Task:
    raise ZeroDivisionError("of a task")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tests.envs.test_trial:makes_nothing", "must return a torch_crl.Task, and returned None"),
        (
            "tests.envs.test_trial:makes_a_wrong_task",
            "success_radius must be .*\n.*distance raised",
        ),
        (
            "tests.envs.test_trial:fails",
            r"raised ZeroDivisionError: of a task \(.*test_trial.py, line",
        ),
        ("tests.envs.test_trial:NAN", "raised TypeError: 'float' object is not callable"),
        ("json:loads", "must make a torch_crl.Task without arguments, and raised TypeError"),
        ("json:load_all", "could not be loaded: AttributeError: .*'load_all'"),
    ],
)
def test_a_function_that_makes_no_task_is_a_problem_of_the_recipe(name: str, message: str) -> None:
    recipe = with_changes(tiny("reacher"), task={"name": name}, networks={"actor_depth": 6})
    with pytest.raises(RecipeError, match=message) as caught:
        check(recipe)
    assert "--actor-depth must be" in str(caught.value)
    with pytest.raises(UnknownTaskError, match=message):
        preset(name)


def test_a_module_that_fails_at_import_is_told_with_its_line(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_task.py").write_text(f"x = 1\ny = {json.dumps([1])}[2]\n")
    (tmp_path / "leaving_task.py").write_text("raise SystemExit(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownTaskError, match=r"IndexError: .*broken_task.py, line 2\)"):
        make_task("broken_task:make")
    with pytest.raises(UnknownTaskError, match="SystemExit: 3"):
        make_task("leaving_task:make")


def test_what_a_package_raised_is_told_with_its_line() -> None:
    file = sysconfig.get_path("purelib") + "/some_package.py"
    with pytest.raises(ZeroDivisionError) as caught:
        exec(compile("x = 1\nx / 0", file, "exec"))
    from_here = in_one_line(caught.value)
    assert from_here.startswith("ZeroDivisionError: division by zero (") and __file__ in from_here
    assert caught.tb is not None
    in_there = in_one_line(caught.value.with_traceback(caught.tb.tb_next))
    assert in_there == f"ZeroDivisionError: division by zero ({file}, line 2)"


GRIPPER = """
<mujoco>
  <worldbody><body>
    <joint name="x" type="slide"/><joint name="y" type="slide"/><joint name="z" type="slide"/>
    <geom size=".1"/>
  </body></worldbody>
  <actuator>
    <position joint="x" ctrlrange="0 255"/><motor joint="y"/><motor joint="z" ctrlrange="-3 -1"/>
  </actuator>
</mujoco>
"""


def test_the_default_control_reaches_the_ends_of_each_range() -> None:
    simulator = make_simulator("cpu", mujoco.MjModel.from_xml_string(GRIPPER), num_envs=3)
    action = torch.tensor([[-1.0], [0.5], [1.0]]).expand(3, 3)
    control = scaled_control(action, simulator)
    assert control.tolist() == [[0.0, -1.0, -3.0], [191.25, 0.5, -1.5], [255.0, 1.0, -1.0]]
    assert torch.equal(direct_control(action, simulator), action)


@pytest.mark.parametrize("name", TASKS)
def test_tasks_that_ship_say_so_where_actions_are_scaled(name: str) -> None:
    task = make_task(name)
    if task.control is scaled_control:
        simulator = make_simulator("cpu", task.model, num_envs=1, num_threads=1)
        assert simulator.control_range is None, "its actions would change; give it a control"


@pytest.mark.parametrize("function", ["state", "sample_start"])
def test_an_error_that_comes_later_is_one_line_with_its_place(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"late_{function}.py").write_text(
        "from dataclasses import replace\n"
        "from own_task import make as good\n"
        "CALLS = []\n"
        "def make():\n"
        "    task = good()\n"
        "    def late(*arguments):\n"
        "        CALLS.append(1)\n"
        "        if len(CALLS) > 9:\n"
        "            raise KeyError('boom')\n"
        f"        return task.{function}(*arguments)\n"
        f"    return replace(task, {function}=late)\n"
    )
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.syspath_prepend(tmp_path)
    name = f"late_{function}:make"
    with closing(make_vector_env(name, num_envs=2, episode_length=99, seed=0)) as env:
        action_NA = torch.zeros(2, env.spec.action_size)
        message = rf"^task own_task:make: KeyError: 'boom' \(.*late_{function}.py, line 9\)$"
        with pytest.raises(OwnCodeError, match=message):
            for _ in range(20):
                env.step(action_NA)
                env.reset()
