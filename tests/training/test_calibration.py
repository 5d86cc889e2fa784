"""How long a run would take: what is measured, what follows by arithmetic, and what is told."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.helpers.drawing import draws
from tests.helpers.recipes import tiny, tiny_baseline
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import StepResult
from torch_crl.goals import pictures
from torch_crl.goals.pictures import PictureGoals
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.training import calibration
from torch_crl.training.calibration import (
    Estimate,
    Pace,
    estimate,
    estimate_rest,
    share_done,
    summary,
)
from torch_crl.training.crl_run import CrlRun
from torch_crl.training.trainer import train


def test_a_run_takes_its_steps_updates_and_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "measure", lambda recipe: Pace(env_step=0.5, update=2.0))
    recipe = tiny()
    (found,) = estimate([recipe])
    evaluated = recipe.budget.evaluations * recipe.task.num_eval_envs * recipe.task.episode_length
    steps = recipe.total_env_steps + evaluated
    assert found.seconds == 0.5 * steps + 2.0 * recipe.total_updates
    overlapped = with_changes(recipe, system={"overlap": "on"})
    (less,) = estimate([overlapped])
    shorter = min(0.5 * recipe.total_env_steps, 2.0 * recipe.total_updates)
    assert less.seconds == found.seconds - shorter


def of_pictures(every: int) -> Recipe:
    space = {"goals": "pictures", "picture_every": every, "goal_features": 4, "picture_size": 64}
    return tiny("reacher", goal_space=space)


def test_a_goal_of_an_evaluation_is_filmed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(env_step=0.5, update=2.0, picture=30.0)
    monkeypatch.setattr(calibration, "measure", lambda recipe: pace)
    recipe = of_pictures(every=5)
    (found,) = estimate([recipe])
    episodes = recipe.budget.evaluations * recipe.task.num_eval_envs
    training = (0.5 + 30.0 / 5) * recipe.total_env_steps + 2.0 * recipe.total_updates
    assert found.seconds == training + episodes * (0.5 * recipe.task.episode_length + 30.0)


@draws
@pytest.mark.parametrize("every", [1, 5])
def test_pictures_are_timed_apart_from_the_steps_between_them(
    monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    now = 0.0
    step, update = TaskVectorEnv.step, CrlRun.update

    def stepped(self: TaskVectorEnv, action: torch.Tensor) -> StepResult:
        nonlocal now
        now += 0.5 * self.num_envs
        return step(self, action)

    def filmed(self: PictureGoals, qpos_NQ: torch.Tensor, row: int) -> None:
        nonlocal now
        if row % self.every == 0:
            now += 30.0 * len(qpos_NQ)

    def updated(self: CrlRun) -> dict[str, torch.Tensor]:
        nonlocal now
        now += 2.0
        return update(self)

    clock = SimpleNamespace(perf_counter=lambda: now)
    monkeypatch.setattr(calibration, "time", clock)
    monkeypatch.setattr(pictures, "KNOWN", 12)
    monkeypatch.setattr(TaskVectorEnv, "step", stepped)
    monkeypatch.setattr(PictureGoals, "film", filmed)
    monkeypatch.setattr(CrlRun, "update", updated)
    pace = calibration.measure(of_pictures(every))
    assert pace == Pace(env_step=0.5, update=2.0, picture=30.0)


def test_kinds_are_measured_once_and_the_others_follow_by_their_operations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[Recipe] = []

    def measure(recipe: Recipe) -> Pace:
        measured.append(recipe)
        return Pace(env_step=0.0, update=1.0)

    monkeypatch.setattr(calibration, "measure", measure)
    monkeypatch.setattr(calibration, "_MOST_MEASURED", 2)
    deep = [
        tiny(networks={"actor_depth": 8, "critic_depth": 8}, system={"seed": k}) for k in (0, 1)
    ]
    recipes = [tiny(), tiny(system={"seed": 3}), *deep, tiny("ant")]
    found = estimate(recipes)
    # One of each task first, and seeds are no kinds.
    assert [recipe.task.name for recipe in measured] == ["reacher", "ant"]
    ratio = deep[0].update_cost.flop / recipes[0].update_cost.flop
    paces = [one.pace.update for one in found if one.pace]
    assert paces == pytest.approx([1.0, 1.0, ratio, ratio, 1.0])
    assert [one.how for one in found[1:3]] == ["measured just now", "scaled from a similar run"]


@pytest.mark.parametrize("algo", ["crl", "gcbc", "ppo", "sac_her"])
def test_every_kind_of_algorithm_can_be_measured(
    algo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_SECONDS_OF_EACH", 0.0)
    depth = 4 if algo in ("crl", "gcbc") else 0
    recipe = tiny(
        algorithm={"algo": algo, "batch_size": 4},
        networks={"actor_depth": depth, "critic_depth": depth},
        budget={"env_steps_per_update": 2.0} if algo == "ppo" else {},
    )
    pace = calibration.measure(recipe)
    assert pace.env_step > 0 and pace.update > 0


def test_what_cannot_be_measured_is_told_and_many_hours_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:

    def measure(recipe: Recipe) -> Pace:
        raise RuntimeError("no such task")

    monkeypatch.setattr(calibration, "measure", measure)
    (unknown,) = estimate([tiny()])
    assert (unknown.shown, unknown.pace) == ("not known", None)
    (line,) = summary([unknown])
    assert line.startswith("time: not known for 1 run: ") and "RuntimeError: no such task" in line
    assert unknown.rest(0.5) == unknown
    long = Estimate(seconds=90_000.0, pace=Pace(env_step=1.0, update=1.0), how="measured just now")
    assert summary([long]) == [
        "time: 25 h on this machine, one run after the other (1 measured just now)",
        "warning: about 25 hours on this machine",
    ]


def test_only_what_is_left_of_runs_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[Recipe] = []

    def measure(recipe: Recipe) -> Pace:
        measured.append(recipe)
        return Pace(env_step=0.0, update=1.0)

    monkeypatch.setattr(calibration, "measure", measure)
    new, half, finished = (tiny(system={"seed": seed}) for seed in range(3))
    run_dirs = [tmp_path / name for name in ("new", "half", "finished")]
    for run_dir, recipe in zip(run_dirs[1:], (half, finished), strict=True):
        train(recipe, run_dir)
    # Of two checkpoints and the end, the first alone.
    newest, *_ = RunDirectory(run_dirs[1]).saved_checkpoints
    shutil.rmtree(newest)
    (run_dirs[1] / "result.json").unlink()
    share = share_done(run_dirs[1], half)
    assert 0 < share < 1
    times = estimate_rest([new, half, finished], run_dirs)
    assert times[2] is None and len(measured) == 1
    whole, rest = (time.seconds for time in times[:2] if time)
    assert rest == pytest.approx((1 - share) * whole)
    told = summary(times)
    assert told[0] == "1 of 3 runs are finished and take no time"
    assert told[1].endswith("(2 measured just now)")
    # A baseline begins again.
    assert share_done(run_dirs[1], tiny_baseline("sac")) == 0


@pytest.mark.parametrize("seconds", [[20.0, 3.0, 3.0], [900.0, 2.0], [0.1, 0.2, 0.2, 0.3]])
def test_the_first_call_which_compiles_does_not_count(
    seconds: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, calls = [0.0], iter(seconds)

    def work() -> int:
        clock[0] += next(calls)
        return 1

    monkeypatch.setattr(calibration, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    left = [len(seconds)]

    def any_left() -> bool:
        left[0] -= 1
        return left[0] >= 0

    found = calibration._seconds_each(work, while_true=any_left)
    assert found == pytest.approx(seconds[1])
