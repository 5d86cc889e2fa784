"""Curves of made-up runs: reading, comparing, scoring, grids."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.run_directories import write_run
from torch_crl.recipe.presets import preset, with_changes, with_depth
from torch_crl.runs.curves import (
    CurveError,
    check_comparable,
    common_grid,
    first_reached,
    on_grid,
    read_curve,
    read_curves,
    read_finished_curves,
    score,
    scored_part,
)

REACHER = with_changes(preset("reacher"), budget={"env_steps": 200_000})
SHARES = [0.0, 0.1, 0.2, 0.4, 0.6, 0.8]


def test_a_curve_holds_the_evaluations_of_its_run(tmp_path: Path) -> None:
    curve = read_curve(write_run(tmp_path / "run", REACHER, SHARES, seconds=12.0))
    assert curve.recipe == REACHER and curve.finished
    assert curve.env_steps_E.tolist() == [33_333, 66_666, 100_000, 133_333, 166_666, 200_000]
    assert curve.updates_E.tolist() == [100, 200, 300, 400, 500, 600]
    assert curve.seconds_E.tolist() == [2, 4, 6, 8, 10, 12]
    assert curve.metric("time_at_goal_share").tolist() == SHARES
    assert curve.metric("time_at_goal").tolist() == [200 * share for share in SHARES]
    with pytest.raises(CurveError, match=r"no metric 'return'; it has .*success_any"):
        curve.metric("return")


def test_runs_are_found_at_any_level_and_once(tmp_path: Path) -> None:
    for name in ("b/deep/run", "a", "b/run"):
        write_run(tmp_path / name, REACHER, SHARES)
    (tmp_path / "b/run.log").write_text("a log beside a run")
    # What is inside a run is not another run.
    write_run(tmp_path / "a/policies/copy", REACHER, SHARES)
    found = read_curves([tmp_path, tmp_path / "b"])
    assert [str(curve.run_dir.relative_to(tmp_path)) for curve in found] == [
        "a",
        "b/deep/run",
        "b/run",
    ]


def test_all_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    write_run(tmp_path / "good", REACHER, SHARES)
    young = write_run(tmp_path / "young", REACHER, SHARES)
    (young / "metrics.jsonl").write_text("")
    (young / "result.json").unlink()
    broken = write_run(tmp_path / "broken", REACHER, SHARES)
    (broken / "recipe.json").write_text("{}")
    with pytest.raises(CurveError) as told:
        read_curves([tmp_path, tmp_path / "nowhere"])
    message = str(told.value)
    assert message.startswith("3 problems:")
    assert (
        "young has no evaluation yet" in message and "broken/recipe.json cannot be read" in message
    )
    assert "nowhere holds no run" in message


def test_runs_of_equal_budget_and_evaluation_are_comparable(tmp_path: Path) -> None:
    point = preset("point_u_maze")
    write_run(tmp_path / "a", REACHER, SHARES)
    # Another depth, seed and count of envs; ends 2 % later, by rounding.
    deep = with_changes(with_depth(REACHER, 8), system={"seed": 1}, task={"num_envs": 8})
    write_run(tmp_path / "b", deep, SHARES, env_steps=204_000)
    write_run(tmp_path / "c", point, SHARES)
    check_comparable(read_curves(tmp_path))


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"budget": {"env_steps": 100_000}}, "budget.env_steps (--env-steps)"),
        ({"budget": {"evaluations": 5}}, "budget.evaluations (--evaluations)"),
        ({"task": {"eval_name": "other"}}, "task.eval_name (--eval-name)"),
        ({"task": {"num_eval_envs": 2}}, "task.num_eval_envs (--num-eval-envs)"),
        ({"task": {"episode_length": 50}}, "task.episode_length (--episode-length)"),
        ({"system": {"simulator": "warp"}}, "system.simulator (--simulator)"),
    ],
)
def test_a_difference_is_named_with_both_runs(
    tmp_path: Path, changes: dict[str, dict[str, Any]], difference: str
) -> None:
    for name in ("a", "b"):
        write_run(tmp_path / name, REACHER, SHARES)
    other = with_changes(REACHER, **changes)
    write_run(tmp_path / "c", other, SHARES)
    with pytest.raises(CurveError) as told:
        check_comparable(read_curves(tmp_path))
    (setting,) = [name for name, value in REACHER.leaves().items() if value != other.leaves()[name]]
    ours, theirs = REACHER.leaves()[setting], other.leaves()[setting]
    assert str(told.value) == (
        f"1 problem:\n  - reacher: {difference} differs: {ours!r} in {tmp_path / 'a'} and 1 more; "
        f"{theirs!r} in {tmp_path / 'c'}"
    )
    check_comparable(read_curves(tmp_path), varied=[setting])


def test_runs_that_ended_early_are_not_comparable(tmp_path: Path) -> None:
    write_run(tmp_path / "a", REACHER, SHARES)
    write_run(tmp_path / "b", REACHER, SHARES, env_steps=180_000)
    with pytest.raises(CurveError, match=r"last evaluation differs: 180000 in .*b; 200000 in .*a"):
        check_comparable(read_curves(tmp_path))
    write_run(tmp_path / "c", REACHER, SHARES, env_steps=100_000, finished=False)
    with pytest.raises(CurveError, match="c is not finished: 100,000 of 200,000 env steps"):
        check_comparable(read_curves(tmp_path))


def test_score_is_the_mean_of_the_last_five(tmp_path: Path) -> None:
    curve = read_curve(write_run(tmp_path / "run", REACHER, SHARES))
    assert score(curve, "time_at_goal_share") == pytest.approx((0.1 + 0.2 + 0.4 + 0.6 + 0.8) / 5)
    assert score(curve, "time_at_goal_share", last=1) == 0.8
    short = read_curve(write_run(tmp_path / "short", REACHER, [0.2, 0.4]))
    assert score(short, "time_at_goal_share") == pytest.approx(0.3)


def test_what_a_score_covers_is_told(tmp_path: Path) -> None:
    ten = read_curve(write_run(tmp_path / "ten", REACHER, [0.5] * 10))
    assert scored_part([ten]) == "the last 5 of 10 evaluations: the last 50 % of the run"
    few = read_curve(write_run(tmp_path / "few", REACHER, [0.5] * 2))
    assert scored_part([few]) == "the last 2 of 2 evaluations: the last 100 % of the run"
    many = read_curve(write_run(tmp_path / "many", REACHER, [0.5] * 50))
    assert scored_part([ten, many]) == (
        "the last 5 of 10 to 50 evaluations: the last 10 to 50 % of the run"
    )


def test_curves_meet_on_a_grid(tmp_path: Path) -> None:
    fast = read_curve(write_run(tmp_path / "fast", REACHER, [0.0, 1.0], seconds=10.0))
    slow = read_curve(write_run(tmp_path / "slow", REACHER, [0.0, 1.0], seconds=40.0))
    # The same env steps: their own evaluations.
    np.testing.assert_array_equal(common_grid([fast, slow], "env_steps"), [100_000, 200_000])
    # Seconds 5 to 10 of the one, 20 to 40 of the other: the first is kept until the second ends.
    clock = common_grid([fast, slow], "seconds")
    assert (clock[0], clock[-1]) == (20.0, 40.0)
    # By env steps one may end a little later than the other, and both have values before.
    later = replace(slow, env_steps_E=slow.env_steps_E + 100)
    assert common_grid([fast, later], "env_steps")[-1] == 200_000
    even = common_grid([slow, read_curve(write_run(tmp_path / "x", REACHER, [0.5] * 4))], "seconds")
    assert (even[0], even[-1], len(even)) == (20.0, 60.0, 60)
    values = on_grid(slow, "time_at_goal_share", np.array([0.0, 20.0, 25.0, 40.0, 99.0]), "seconds")
    np.testing.assert_allclose(values, [0.0, 0.0, 0.25, 1.0, 1.0])


def test_first_evaluation_at_a_level(tmp_path: Path) -> None:
    curve = read_curve(write_run(tmp_path / "run", REACHER, [0.1, 0.5, 0.4, 0.9], seconds=8.0))
    assert first_reached(curve, "time_at_goal_share", 0.5, "seconds") == 4.0
    assert first_reached(curve, "time_at_goal_share", 0.6, "env_steps") == 200_000
    assert first_reached(curve, "time_at_goal_share", 0.95, "seconds") == float("inf")


def test_only_finished_runs_are_taken_and_the_others_named(tmp_path: Path) -> None:
    write_run(tmp_path / "a", REACHER, SHARES)
    write_run(tmp_path / "b", REACHER, SHARES, env_steps=100_000, finished=False)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "recipe.json").write_text(REACHER.to_json())
    curves, left_out = read_finished_curves(tmp_path)
    assert [curve.run_dir.name for curve in curves] == ["a"]
    assert left_out == {
        str(tmp_path / "b"): "100,000 of 200,000 env steps",
        str(tmp_path / "c"): "no evaluation yet",
    }
    with pytest.raises(CurveError, match=r"none of the runs is finished:\n  - .*b: 100,000 of"):
        read_finished_curves(tmp_path / "b")
    with pytest.raises(CurveError, match="holds no run"):
        read_finished_curves(tmp_path / "nowhere")
