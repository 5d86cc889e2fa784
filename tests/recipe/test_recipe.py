"""The recipe: JSON, arithmetic, validation, and that every leaf reaches the code it names."""

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch

from tests.helpers.recipes import tiny
from torch_crl.envs.registry import TASKS
from torch_crl.errors import UsageError
from torch_crl.fields import Problem, whole_number
from torch_crl.recipe import checks
from torch_crl.recipe.dry_run import plan_rows
from torch_crl.recipe.goal_checks import with_encoder
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe, differences
from torch_crl.runs.metrics import UpdateMetrics
from torch_crl.system.devices import available_bytes
from torch_crl.training import collecting_process, goal_spaces, ray_collectors, trainer
from torch_crl.training.building import build_run


@pytest.mark.parametrize("task", TASKS)
def test_every_preset_is_valid_and_survives_json(
    task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whatever this machine has.
    monkeypatch.setattr(checks, "available_bytes", lambda _: None)
    recipe = preset(task)
    checks.check(recipe)
    assert Recipe.from_json(recipe.to_json()) == recipe


def test_a_task_of_ones_own_has_small_settings_whatever_its_module_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("point_robot", "reacher_lab", "ant_farm"):
        (tmp_path / f"{module}.py").write_text("from own_task import make\n")
        recipe = preset(f"{module}:make")
        assert recipe == with_changes(
            preset("own_task:make"),
            task={"name": f"{module}:make", "eval_name": f"{module}:make"},
        )


def test_json_with_missing_and_unknown_fields_is_refused() -> None:
    text = preset("reacher").to_json()
    with pytest.raises(ValueError, match=r"networks\.width is missing; networks\.girth is no"):
        Recipe.from_json(text.replace('"width"', '"girth"'))


def test_differences_name_the_fields() -> None:
    ours = preset("reacher")
    theirs = with_changes(ours, networks={"width": 32}, system={"seed": 4})
    assert differences(ours, theirs) == ["--width: 64 -> 32", "--seed: 0 -> 4"]


def test_published_arithmetic() -> None:
    recipe = with_changes(preset("ant"), budget={"env_steps": 100_000_000})
    assert recipe.steps_per_collection == 31_744
    assert recipe.updates_per_collection == 800
    assert recipe.prefill_collections == 17
    assert recipe.total_env_steps >= 100_000_000
    assert recipe.total_env_steps - 100_000_000 < 31_744
    assert recipe.total_updates == 800 * recipe.collections
    # 11 of the published 12 passes: the goal encoder's forward serves actor and critic.
    unit = 2 * 512 * 256 * 256
    deep, shallow = (preset("ant", depth=depth).update_cost.flop for depth in (64, 4))
    assert deep - shallow == 11 * 60 * unit


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    recipe = tiny(
        networks={"actor_depth": 6, "critic_depth": 0},
        task={"eval_name": "antt", "episode_length": 0},
        algorithm={"discount": 1.5, "batch_size": 100_000},
        system={"device": "cuda:99"},
    )
    with pytest.raises(checks.RecipeError) as caught:
        trainer.train(recipe, tmp_path / "run", resume=True)
    text = str(caught.value)
    for fragment in (
        "8 problems",
        "--actor-depth must be a positive multiple of 4 (a residual block has 4 layers), got 6",
        "the nearest are 4 and 8",
        "--critic-depth must be",
        "--eval-name: unknown task 'antt'; nearest: ant",
        "--episode-length must be at least 1, got 0",
        "--discount must be above 0 and below 1, got 1.5",
        "--batch-size 100000 is more than the replay can serve",
        "--device cuda:99",
        "--resume:",
    ):
        assert fragment in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("algo", "part", "changes", "message"),
    [
        ("crl", "task", {"name": "reachr"}, "task: unknown task 'reachr'"),
        ("crl", "task", {"num_envs": -1}, "--num-envs must be at least 1, got -1"),
        ("sac", "task", {"num_envs": 0}, "--num-envs must be at least 1, got 0"),
        ("sac_her", "budget", {"prefill_rows": -1}, "--prefill-rows must be at least 1, got -1"),
        ("crl", "budget", {"replay_rows": -1}, "--replay-rows must be at least 1, got -1"),
        ("crl", "budget", {"env_steps": 0}, "--env-steps must be at least 1, got 0"),
        ("ppo", "algorithm", {"batch_size": 0}, "--batch-size must be at least 2, got 0"),
        ("sac", "system", {"overlap": "on"}, "--overlap on is for crl and gcbc, got --algo sac"),
        (
            "crl",
            "task",
            {"eval_name": "ant"},
            "a policy for reacher cannot be evaluated on ant (--eval-name): "
            "state_size 29 and not 10, goal_size 2 and not 3, action_size 8 and not 2",
        ),
        (
            "sac",
            "networks",
            {"width": -1},
            "--width is not read by --algo sac without --depth; leave it out, got -1 (the preset "
            "of reacher has 64)",
        ),
    ],
)
def test_one_mistake_is_told_once(
    algo: str, part: str, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(checks.RecipeError) as caught:
        checks.check(with_changes(preset("reacher", algo=algo), **{part: changes}))
    (problem,) = caught.value.problems
    assert problem.startswith(message)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e6", 10**6), (" 12 ", 12), ("1_000", 1000), ("-3", -3), ("2.5e3", 2500), ("1e18", 10**18)],
)
def test_whole_numbers_may_have_exponents(text: str, number: int) -> None:
    assert whole_number(text) == number and type(whole_number(text)) is int


@pytest.mark.parametrize("text", ["1.5", "", "six", "nan", "inf", "1e400000000", "1e-3"])
def test_what_is_no_whole_number_is_told(text: str) -> None:
    with pytest.raises(ValueError, match="must be a whole number, as 1000000 or 1e6, got"):
        whole_number(text)


def test_whole_numbers_beyond_64_bits_are_told() -> None:
    with pytest.raises(ValueError, match=r"must lie between -2\^63 and 2\^63, got '1e19'"):
        whole_number("1e19")


@pytest.mark.parametrize(
    ("part", "field", "value", "message"),
    [
        ("algorithm", "energy", "l1", "--energy must be one of 'norm', 'l2', 'dot', 'cosine'"),
        ("algorithm", "parity", "refrence", "--parity must be one of 'none', 'reference'"),
        ("system", "replay_dtype", "float31", "--replay-dtype must be one of"),
        ("algorithm", "logsumexp_penalty", float("nan"), "must be a finite number, got nan"),
        ("algorithm", "actor_learning_rate", float("inf"), "must be a finite number, got inf"),
        ("networks", "width", 64.5, "--width must be a whole number, got 64.5"),
        ("task", "name", 7, "--name must be text, got 7"),
        ("system", "device", "\udcff", "--device must be text in UTF-8, got '\\udcff'"),
        ("algorithm", "energy", "\udcff", "--energy must be text in UTF-8, got '\\udcff'"),
    ],
)
def test_values_that_only_python_lets_through(
    part: str, field: str, value: object, message: str
) -> None:
    with pytest.raises(checks.RecipeError, match=re.escape(message)):
        checks.check(tiny(**{part: {field: value}}))


def test_a_problem_of_no_single_field_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = Problem((), "it is nested too deeply")
    monkeypatch.setattr(checks.fields, "check", lambda *_: [problem])
    with pytest.raises(checks.RecipeError) as caught:
        checks.check(tiny())
    assert caught.value.problems == ["it is nested too deeply"]


def test_a_replay_larger_than_memory_says_how_many_rows_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = tiny(budget={"replay_rows": 1000})
    monkeypatch.setattr(checks, "available_bytes", lambda _: recipe.replay_bytes)
    checks.check(recipe)
    monkeypatch.setattr(checks, "available_bytes", lambda _: recipe.replay_bytes // 4)
    message = "--replay-rows 1000 takes .* at most 250 rows of 4 envs fit"
    with pytest.raises(checks.RecipeError, match=message):
        checks.check(recipe)


def test_memory_that_is_left_is_known_on_linux() -> None:
    available = available_bytes(torch.device("cpu"))
    assert available is None or 1e6 < available < 1e15
    assert (available is None) == (sys.platform != "linux")


def test_the_largest_batch_that_the_replay_serves_is_allowed() -> None:
    # 10 rows after the prefill, in 4 envs; the newest row of a published window has no later state.
    for parity, most in (("none", 40), ("reference", 36)):
        checks.check(tiny(algorithm={"batch_size": most, "parity": parity}))
        with pytest.raises(checks.RecipeError, match=f"hold {most} steps with a goal"):
            checks.check(tiny(algorithm={"batch_size": most + 1, "parity": parity}))


def test_one_step_and_one_row_are_enough_but_not_for_published_windows() -> None:
    parts = {"task": {"episode_length": 1}, "budget": {"prefill_rows": 1, "replay_rows": 1}}
    smallest = tiny(**parts, algorithm={"batch_size": 4})
    smallest = with_changes(smallest, budget={"unroll_length": 1})
    checks.check(smallest)
    with pytest.raises(checks.RecipeError) as caught:
        checks.check(with_changes(smallest, algorithm={"parity": "reference"}))
    for flag in ("--episode-length", "--prefill-rows", "--replay-rows"):
        assert f"{flag} must be at least 2 with --parity reference" in str(caught.value)


@pytest.mark.parametrize(
    ("device", "message"),
    [("warp9", "is no device name"), ("mps", "not supported"), ("cuda:99", "cuda:99")],
)
def test_devices_that_are_not_there(device: str, message: str) -> None:
    with pytest.raises(checks.RecipeError, match=re.escape(message)):
        checks.check(tiny(system={"device": device}))


def test_an_eval_task_of_other_sizes_is_refused() -> None:
    with pytest.raises(checks.RecipeError, match=r"evaluated on ant \(--eval-name\): state_size"):
        checks.check(tiny(task={"eval_name": "ant"}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_replay_takes_the_bytes_that_the_plan_says(dtype: str) -> None:
    recipe = tiny("ant", system={"replay_dtype": dtype})
    tensors = build_run(recipe).replay.tensors().values()
    assert sum(tensor.nbytes for tensor in tensors) == recipe.replay_bytes
    assert f"{recipe.replay_bytes / 1e6:,.1f} MB" in {value for _, value, _ in plan_rows(recipe)}


class Recording:
    """Stands for a recipe and notes which leaves are read. Methods see the real recipe."""

    def __init__(self, real: Any, path: str, read: set[str]) -> None:
        self.__dict__.update(_real=real, _path=path, _read=read)

    def __getattr__(self, name: str) -> Any:
        real = self.__dict__["_real"]
        attribute = getattr(type(real), name, None)
        if isinstance(attribute, property):
            assert attribute.fget is not None
            return attribute.fget(self)
        value = getattr(real, name)
        if dataclasses.is_dataclass(value):
            return Recording(value, f"{self._path}{name}.", self._read)
        if not callable(value):
            self._read.add(self._path + name)
        return value


def test_every_leaf_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Validation looks at every leaf; what counts is who reads it afterwards.
    monkeypatch.setattr(trainer, "find_problems", lambda recipe, *_, **__: recipe)
    read: set[str] = set()
    ours = tiny()
    baseline = with_changes(
        ours, algorithm={"algo": "ppo", "batch_size": 10}, budget={"prefill_rows": 0}
    )
    words = with_encoder(tiny("point_u_maze", goal_space={"goals": "words"}))
    for number, recipe in enumerate((ours, baseline, words)):
        recorded: Any = Recording(recipe, "", read)
        trainer.train(recorded, tmp_path / str(number), show=False)
    filming: Any = Recording(tiny(goal_space={"goals": "pictures"}), "", read)
    monkeypatch.setattr(goal_spaces, "PictureGoals", lambda *_, **__: None)
    goal_spaces.build_goal_space(filming, torch.device("cpu"))
    # What others collect with is read by them.
    collecting: Any = Recording(with_changes(ours, system={"collectors": 2}), "", read)
    collecting_process._actor(collecting)
    for name, fake in (("is_initialized", lambda: False), ("init", lambda **_: None)):
        monkeypatch.setattr(ray, name, fake)
    monkeypatch.setattr(ray_collectors, "RayHost", lambda *_, **__: None)
    ray_collectors.ray_hosts(collecting)
    assert set(ours.leaves()) - read == set()


def test_changing_a_leaf_changes_the_first_losses() -> None:
    """Leaves of networks and algorithm alter what the first updates compute."""

    def losses(recipe: Recipe) -> dict[str, float]:
        run = build_run(recipe)
        for _ in range(6):
            run.collect()
        metrics = UpdateMetrics()
        for _ in range(3):
            metrics.add(run.update())
        metrics.sum_up(first_update=0)
        return metrics.take_means()

    base = tiny()
    before = losses(base)
    assert losses(base) == before
    for part, changes in {
        "networks": {
            "actor_depth": 8,
            "critic_depth": 8,
            "width": 16,
            "representation_size": 8,
            "activation": "relu",
            "block": "pre_norm",
        },
        "algorithm": {
            "energy": "dot",
            "contrastive_loss": "backward_info_nce",
            "logsumexp_penalty": 0.5,
            "discount": 0.5,
            "target_entropy": -1.0,
            "actor_learning_rate": 1e-2,
            "critic_learning_rate": 1e-2,
            "temperature_learning_rate": 1e-2,
            "initial_temperature": 0.5,
            "chunk": 2,
            "actor_goals": "mixed",
            "update_order": "critic_first",
            "goal_redraw": 0.5,
            "batch_size": 16,
            "parity": "reference",
        },
        "system": {"seed": 1, "precision": "bf16"},
    }.items():
        for field, value in changes.items():
            changed = with_changes(base, **{part: {field: value}})
            assert losses(changed) != before, f"{part}.{field} changes nothing"
    # Up to 16 layers the factor is 1.
    deeper = with_changes(base, networks={"actor_depth": 32, "critic_depth": 32})
    assert losses(with_changes(deeper, networks={"branch": "scaled"})) != losses(deeper)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"sytem": {"seed": 1}}, "no setting sytem.seed; nearest: system.seed"),
        ({"system": {"sed": 1}}, "no setting system.sed; nearest: system.seed"),
    ],
)
def test_a_change_of_what_no_recipe_has_is_refused_with_the_nearest_names(
    parts: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        with_changes(Recipe(), **parts)


def test_settings_that_are_not_given_by_part_are_refused() -> None:
    settings: Any = {"depth": 3}
    with pytest.raises(UsageError, match=r"by part, as in .*; got depth=3"):
        with_changes(preset("reacher"), **settings)


@pytest.mark.parametrize("number", [16, np.float64(16.0)])
def test_a_number_of_another_type_makes_no_other_recipe(number: Any) -> None:
    usual, given = (
        with_changes(preset("reacher"), budget={"env_steps_per_update": x}) for x in (16.0, number)
    )
    # Reports tell runs apart by these texts.
    assert repr(given.leaves()) == repr(usual.leaves())
    assert Recipe.from_json(usual.to_json().replace("16.0", "16")).to_json() == usual.to_json()


def test_what_older_presets_gave_to_algorithms_that_do_not_read_it_is_no_mistake() -> None:
    for algo in ("gcbc", "sac", "ppo"):
        document = json.loads(preset("point_u_maze", algo=algo).to_json())
        # As the preset of format 2 wrote it.
        document["format"] = 2
        document["algorithm"]["contrastive_loss"] = "symmetric_info_nce"
        document["algorithm"]["critic_learning_rate"] = 1e-3
        recipe = Recipe.from_json(json.dumps(document))
        assert recipe.algorithm.contrastive_loss == "forward_info_nce"
        if algo == "gcbc":
            checks.check(recipe)
        document["format"] = 3
        assert Recipe.from_json(json.dumps(document)).algorithm.critic_learning_rate == 1e-3
