"""Comparisons of made-up runs: what belongs together, the numbers, the report, the command."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.run_directories import write_run
from torch_crl.cli import compare as command
from torch_crl.cli.main import main
from torch_crl.recipe.checks import RecipeError
from torch_crl.recipe.marks import Mark, marked
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.curves import CurveError, read_curves
from torch_crl.study.compare import (
    compare,
    comparison_trials,
    median_reached,
    method_name,
    overall_line,
    task_line,
)
from torch_crl.study.compare_report import comparison_report, score_table
from torch_crl.study.published import published_curves
from torch_crl.study.report import Picture, Report, Text, write_report
from torch_crl.study.statistics import stratified_bootstrap_interval
from torch_crl.sweep import driver
from torch_crl.sweep.driver import SweepResult
from torch_crl.sweep.grid import Trial, check_trials
from torch_crl.sweep.launch import Launch

NOTHING = "Nothing is published of this task, objective, evaluation and depth:"


def seeded(recipe: Recipe, seed: int) -> Recipe:
    return with_changes(recipe, system={"seed": seed})


def write_runs(folder: Path, recipe: Recipe, tops: Sequence[float], **options: Any) -> None:
    """A run for each top, with the top's half at first, and from then on the top itself."""
    name = method_name(recipe).replace(" ", "_")
    for seed, top in enumerate(tops):
        run_dir = folder / f"{recipe.task.name}_{name}_{seed}"
        write_run(run_dir, seeded(recipe, seed), [top / 2, *[top] * 5], **options)


def picture(report: Report, name: str) -> Picture:
    pictures = [p for s in report.sections for p in s.parts if isinstance(p, Picture)]
    return next(part for part in pictures if part.name == name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three seeds of two methods on two tasks."""
    for task, ours, theirs in (
        ("reacher", [0.6, 0.8, 0.7], [0.2, 0.3, 0.4]),
        ("point_u_maze", [0.5, 0.9, 0.4], [0.1, 0.45, 0.2]),
    ):
        write_runs(tmp_path / "runs", preset(task), ours, seconds=60.0)
        write_runs(tmp_path / "runs", preset(task, algo="sac"), theirs, seconds=30.0)
    return tmp_path / "runs"


def test_trials_are_every_combination() -> None:
    trials = comparison_trials(["reacher", "point_u_maze"], algos=["crl", "ppo"], seeds=2)
    assert [trial.name for trial in trials[:4]] == [
        "reacher_crl_seed0",
        "reacher_crl_seed1",
        "reacher_ppo_seed0",
        "reacher_ppo_seed1",
    ]
    assert len(trials) == 8 and len({trial.name for trial in trials}) == 8
    assert trials[0].recipe == preset("reacher")
    assert trials[3].recipe == seeded(preset("reacher", algo="ppo"), 1)
    deep = comparison_trials(
        ["reacher"],
        algos=["crl", "sac"],
        depths=[4, 16],
        seeds=1,
        reward="dense",
        settings={"env_steps": 50_000},
    )
    depths = [trial.recipe.networks.critic_depth for trial in deep]
    assert depths == [4, 16, 4, 16]
    assert {trial.recipe.budget.env_steps for trial in deep} == {50_000}
    assert method_name(deep[3].recipe) == "SAC depth 16, dense reward"
    # Contrastive RL has no reward, and a sparse run's directory is not a dense one's.
    assert [trial.name for trial in deep] == [
        "reacher_crl_depth4_seed0",
        "reacher_crl_depth16_seed0",
        "reacher_sac_depth4_seed0_dense",
        "reacher_sac_depth16_seed0_dense",
    ]
    check_trials(deep)
    # The preset's own depth, by its number and by 0.
    same = comparison_trials(["reacher"], algos=["crl", "sac"], depths=[0, 4], seeds=1)
    assert [trial.name for trial in same] == [
        "reacher_crl_depth0_seed0",
        "reacher_sac_depth0_seed0",
        "reacher_sac_depth4_seed0",
    ]


def test_unknown_names_are_told_at_once_with_the_nearest() -> None:
    with pytest.raises(RecipeError) as told:
        comparison_trials(["reachr"], algos=["crl", "sac_hr"])
    assert "reacher" in str(told.value) and "nearest: sac_her" in str(told.value)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        (preset("reacher", depth=8), "CRL depth 8"),
        (preset("reacher", algo="sac_her"), "SAC+HER"),
        (preset("reacher", algo="td3", depth=16), "TD3 depth 16"),
        (with_changes(preset("reacher"), networks={"actor_depth": 8}), "CRL actor 8 critic 4"),
        (with_changes(preset("reacher"), baseline={"reward": "dense"}), "CRL depth 4"),
        (
            with_changes(preset("reacher", algo="ppo"), baseline={"reward": "dense"}),
            "PPO, dense reward",
        ),
    ],
)
def test_names_of_methods(recipe: Recipe, name: str) -> None:
    assert method_name(recipe) == name


@pytest.mark.parametrize("leaf", marked(Recipe, Mark.IN_METHOD_NAME))
def test_a_field_that_is_marked_so_is_in_the_name(leaf: str) -> None:
    values = {
        "networks.actor_depth": 8,
        "networks.critic_depth": 8,
        "goal_space.goals": "words",
        "algorithm.algo": "gcbc",
        "algorithm.objective": "survival",
        "baseline.reward": "dense",
    }
    part, field = leaf.split(".")
    recipe = preset("reacher", algo="sac" if part == "baseline" else "crl")
    changed = with_changes(recipe, **{part: {field: values[leaf]}})
    assert method_name(changed) != method_name(recipe)


def test_goals_in_words_and_their_encoders_are_told_apart(tmp_path: Path) -> None:
    maze = preset("point_u_maze")
    for encoder, checksum in (("minilm", "a" * 64), ("own:make", "b" * 64)):
        space = {"goals": "words", "encoder": encoder, "encoder_sha256": checksum}
        recipe = with_changes(maze, goal_space=space)
        write_runs(tmp_path / encoder, recipe, [0.5])
        assert method_name(recipe) == "CRL depth 4, goals in words"
    write_runs(tmp_path / "states", maze, [0.6])
    assert set(compare(read_curves(tmp_path)).methods) == {
        "CRL depth 4",
        "CRL depth 4, goals in words, encoder minilm, encoder_sha256 aaaaaaaa",
        "CRL depth 4, goals in words, encoder own:make, encoder_sha256 bbbbbbbb",
    }


def test_a_method_has_one_name_on_all_tasks(tmp_path: Path) -> None:
    block = {"networks": {"block": "pre_norm"}}
    for task, changes in (("reacher", {}), ("reacher", block), ("point_u_maze", block)):
        write_runs(tmp_path / f"{task}{len(changes)}", with_changes(preset(task), **changes), [0.5])
    comparison = compare(read_curves(tmp_path))
    assert set(comparison.runs) == {
        ("reacher", "CRL depth 4, block published"),
        ("reacher", "CRL depth 4, block pre_norm"),
        ("point_u_maze", "CRL depth 4, block pre_norm"),
    }
    assert comparison.everywhere == ("CRL depth 4, block pre_norm",)


def test_runs_are_sorted_by_task_method_and_seed(folder: Path) -> None:
    write_runs(folder, preset("reacher", depth=16), [0.9])
    write_runs(folder, preset("reacher", depth=8), [0.9])
    comparison = compare(read_curves(folder))
    assert comparison.tasks == ("point_u_maze", "reacher")
    assert comparison.methods == ("CRL depth 4", "CRL depth 8", "CRL depth 16", "SAC")
    assert comparison.everywhere == ("CRL depth 4", "SAC")
    assert comparison.scores("reacher", "SAC") == pytest.approx([0.2, 0.3, 0.4])
    assert comparison.ranked() == ["CRL depth 4", "SAC"]


def test_another_setting_makes_another_method(folder: Path) -> None:
    write_runs(folder / "b", with_changes(preset("reacher"), algorithm={"batch_size": 64}), [0.9])
    # Threads and device leave the method alone; a seed of its own is needed.
    threads = with_changes(preset("reacher"), system={"simulator_threads": 1, "seed": 7})
    write_run(folder / "c", threads, [0.5])
    comparison = compare(read_curves(folder))
    assert comparison.methods == (
        "CRL depth 4, batch_size 128",
        "CRL depth 4, batch_size 64",
        "SAC",
    )
    assert len(comparison.runs["reacher", "CRL depth 4, batch_size 128"]) == 4


def test_a_seed_counts_once(folder: Path) -> None:
    write_run(folder / "again", seeded(preset("reacher"), 1), [0.5] * 6)
    with pytest.raises(CurveError, match=r"again and .*_1 are the same run with the same seed 1"):
        compare(read_curves(folder))
    with pytest.raises(CurveError, match="no runs"):
        compare([])


def test_numbers_of_a_comparison(folder: Path) -> None:
    comparison = compare(read_curves(folder))
    estimate = comparison.estimate("CRL depth 4")
    # The middle two of six lose one at each end: 0.4, then 0.5 0.6 0.7 0.8, then 0.9.
    assert estimate.point == pytest.approx(0.65) and estimate.seeds == (3, 3)
    expected = stratified_bootstrap_interval([[0.5, 0.9, 0.4], [0.6, 0.8, 0.7]])
    assert expected is not None and estimate.interval == pytest.approx(tuple(expected))
    # All of ours beat all of theirs on reacher; 0.4 loses against 0.45 elsewhere.
    assert comparison.improvement("CRL depth 4", "SAC").point == pytest.approx((1 + 8 / 9) / 2)
    test = comparison.test("CRL depth 4", "SAC")
    assert test.difference == pytest.approx((0.4 + 0.35) / 2) and test.permutations == 400
    curves = comparison.runs["reacher", "CRL depth 4"]
    # Tops 0.6, 0.8, 0.7 are reached at the second of six evaluations, halves at the first.
    assert median_reached(curves, 0.7, "seconds") == pytest.approx(20.0)
    assert median_reached(curves, 0.3, "env_steps") == pytest.approx(20_000)
    assert median_reached(curves, 0.75, "seconds") == float("inf")


def test_a_method_does_not_rise_by_losing_seeds_on_a_hard_task(tmp_path: Path) -> None:
    """CRL is better by 0.05 on both tasks, and two of SAC's runs on the harder one are missing."""
    for task, level, missing in (("reacher", 0.9, 0), ("point_u_maze", 0.1, 2)):
        write_runs(tmp_path, preset(task), [level] * 4)
        write_runs(tmp_path, preset(task, algo="sac"), [level - 0.05] * (4 - missing))
    comparison = compare(read_curves(tmp_path))
    assert comparison.ranked() == ["CRL depth 4", "SAC"]
    assert comparison.estimate("CRL depth 4").point == pytest.approx(0.5)
    sac = comparison.estimate("SAC")
    assert sac.point == pytest.approx(0.45) and sac.interval == pytest.approx((0.45, 0.45))
    assert overall_line(comparison, "SAC", "env_steps").y_X[-1] == pytest.approx(0.45)
    report = comparison_report(comparison, command="")
    (found,) = [finding for finding in report.findings if finding.startswith("Over all tasks")]
    assert found.startswith("Over all tasks CRL depth 4 is first with 0.500") and "1.00" in found


def test_lines_are_means_of_the_seeds(folder: Path) -> None:
    comparison = compare(read_curves(folder))
    line = task_line(comparison, "reacher", "SAC", "env_steps")
    assert line.x_X.tolist() == [20_000, 40_000, 60_000, 80_000, 100_000, 120_000]
    np.testing.assert_allclose(line.y_X, [0.15, *[0.3] * 5])
    interval = stratified_bootstrap_interval([[0.2, 0.3, 0.4]])
    assert line.band is not None and interval is not None
    np.testing.assert_allclose([end[-1] for end in line.band], interval)
    overall = overall_line(comparison, "CRL depth 4", "env_steps")
    assert (overall.x_X[0], overall.x_X[-1]) == (pytest.approx(1 / 6, abs=1e-5), 1.0)
    assert overall.y_X[-1] == pytest.approx(0.65)
    # By wall-clock SAC ends at 30 s; its value is kept until the last run ends.
    clock = overall_line(comparison, "SAC", "seconds")
    assert clock.x_X[-1] == 30.0
    assert clock.y_X[-1] == pytest.approx(np.mean([0.2, 0.2, 0.3, 0.4]))


def test_by_wall_clock_a_curve_ends_with_the_last_of_its_runs(tmp_path: Path) -> None:
    """Only the slow seed is good at the end: without its last minutes the method looks worse."""
    for seed, (seconds, values) in enumerate([(60.0, [0.2, 0.6]), (120.0, [0.0, 0.8])]):
        write_run(tmp_path / str(seed), seeded(preset("reacher"), seed), values, seconds=seconds)
    comparison = compare(read_curves(tmp_path))
    line = task_line(comparison, "reacher", "CRL depth 4", "seconds")
    assert line.x_X[-1] == 120.0 and line.y_X[-1] == pytest.approx(0.7)
    curves = picture(comparison_report(comparison, command=""), "curves")
    assert "By wall-clock a run that has ended keeps its last value" in curves.caption


def words(report: Any) -> str:
    parts = [part for section in report.sections for part in section.parts]
    told = [part.text if isinstance(part, Text) else part.caption for part in parts]
    return "\n".join([*report.findings, *told])


def test_the_report_says_seeds_rewards_settings_and_what_is_missing(folder: Path) -> None:
    comparison = compare(read_curves(folder))
    report = comparison_report(comparison, command="torch-crl compare", failed={"x": "killed"})
    text = words(report)
    assert report.findings[0].startswith("Not finished") and "x (killed)" in report.findings[0]
    assert "reacher: CRL depth 4 is at the goal for a share of 0.700" in text
    assert "next SAC with 0.300" in text and "3 seeds" in text
    assert "120,000 env steps asked for, 10 evaluations of 128 episodes of 200 steps" in text
    assert "the mean of the last 5 of 6 evaluations: the last 83 % of the run." in text
    assert "Reward of the baselines: sparse (1 at the goal, else 0)." in text
    assert "least that these seeds could show is 0.005" in text
    assert "no interval" not in text.lower()
    assert {"command", "commit", "date", "report written on"} <= set(report.facts)
    assert [row[2] for row in score_table(comparison).rows] == [3, 3, 3, 3]
    assert {run["reward"] for run in report.data["runs"]} == {None, "sparse"}


def test_the_table_of_scores_is_whole_at_80_columns(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command.print_scores(score_table(compare(read_curves(folder))))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for number in ("0.700", "120,000", "[0.600, 0.800]", "60 s"):
        assert number in out, number


def test_scores_without_intervals_are_whole_at_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs(tmp_path, preset("point_u_maze"), [0.6])
    monkeypatch.setenv("COLUMNS", "80")
    command.print_scores(score_table(compare(read_curves(tmp_path))))
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    # Names take several lines, and nothing is cut off.
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    for text in ("method", "0.600", "(no interval)", "1,600,000"):
        assert text in out, text


def test_one_seed_gives_no_interval_and_the_report_says_so(tmp_path: Path) -> None:
    write_runs(tmp_path, preset("reacher"), [0.6])
    write_runs(tmp_path, preset("reacher", algo="sac"), [0.6, 0.7])
    comparison = compare(read_curves(tmp_path))
    report = comparison_report(comparison, command="")
    assert report.findings[-1] == (
        "No interval can be given where there is one seed: CRL depth 4 on reacher."
    )
    assert task_line(comparison, "reacher", "CRL depth 4", "seconds").band is None
    assert "0.600 (no interval)" in report.findings[0] or "0.650 [" in report.findings[0]


def test_nothing_is_reached_soon_where_nobody_reaches_the_goal(folder: Path) -> None:
    for name, algo in (("a", "crl"), ("b", "sac")):
        write_run(folder / name, preset("point_u4_maze", algo=algo), [0.0] * 6)
    report = comparison_report(compare(read_curves(folder)), command="")
    (section,) = [section for section in report.sections if section.title == "How soon"]
    over_run, levels = section.parts
    assert {row[0] for row in levels.rows} == {"reacher", "point_u_maze"}  # type: ignore[union-attr]
    nowhere = [row for row in over_run.rows if row[0] == "point_u4_maze"]  # type: ignore[union-attr]
    assert [row[-1].point for row in nowhere] == [0.0, 0.0]


def test_who_learns_sooner_has_more_of_the_run(tmp_path: Path) -> None:
    # With equal ends.
    for name, block, early in (("a", "published", 0.0), ("b", "pre_norm", 0.6)):
        recipe = with_changes(preset("reacher"), networks={"block": block})
        write_run(tmp_path / name, recipe, [early] * 3 + [0.6] * 6)
    comparison = compare(read_curves(tmp_path))
    slow, fast = (
        comparison.over_run("reacher", f"CRL depth 4, block {block}").point
        for block in ("published", "pre_norm")
    )
    assert (slow, fast) == pytest.approx((0.4, 0.6))
    assert comparison.estimate("CRL depth 4, block published").point == pytest.approx(0.6)


def test_published_curves_lie_under_those_of_their_depth(tmp_path: Path) -> None:
    short = with_changes(preset("ant_big_maze", depth=8), budget={"env_steps": 10_000_000})
    write_runs(tmp_path, short, [0.1, 0.2])
    write_runs(tmp_path, preset("reacher"), [0.5, 0.6])
    comparison = compare(read_curves(tmp_path))
    assert "published" not in words(comparison_report(comparison, command=""))
    report = comparison_report(comparison, command="", published=True)
    assert "Dotted, on ant_big_maze: the authors' means over 5 seeds" in words(report)
    assert "Nothing is published of this task, objective, evaluation and depth: reacher." in words(
        report
    )
    curves = picture(report, "curves")
    ant, reacher = curves.views["env steps"].axes
    (published,) = [curve for curve in published_curves(task="ant_big_maze") if curve.depth == 8]
    assert len(ant.lines) == 2 and len(reacher.lines) == 1
    # As far as ours go: nine epochs and the prefill are less than 10 M env steps.
    np.testing.assert_allclose(ant.lines[1].get_ydata(), published.share_P[:9])
    assert len(curves.views["wall-clock"].axes[0].lines) == 1


def test_curves_of_another_evaluation_are_not_laid_under(tmp_path: Path) -> None:
    recipe = with_changes(preset("ant_big_maze", depth=8), task={"episode_length": 500})
    write_runs(tmp_path, recipe, [0.1, 0.2])
    report = comparison_report(compare(read_curves(tmp_path)), command="", published=True)
    assert f"{NOTHING} ant_big_maze." in words(report)
    assert "Dotted" not in words(report) and "Hollow" not in words(report)


def test_published_scores_stand_where_the_runs_of_their_objective_end(tmp_path: Path) -> None:
    # The scores are of the training layout, the curves of another one.
    assert preset("ant_big_maze").task.eval_name != "ant_big_maze"
    for objective in ("crl", "chrono"):
        recipe = with_changes(
            preset("ant_big_maze", depth=4),
            task={"eval_name": "ant_big_maze"},
            algorithm={"objective": objective},
        )
        write_runs(tmp_path / objective, recipe, [0.1, 0.2])
    report = comparison_report(compare(read_curves(tmp_path)), command="", published=True)
    assert "Hollow points at the end of our runs, on ant_big_maze:" in words(report)
    assert "after 100 M env steps" in words(report) and "Dotted" not in words(report)
    (axes,) = picture(report, "curves").views["env steps"].axes
    points = {line.get_ydata()[0]: line for line in axes.lines if len(line.get_ydata()) == 1}
    # Depth 4 in the table of arXiv 2609.36238: 421 for CRL, 832 for ChronoSRL.
    assert sorted(points) == pytest.approx([0.4206, 0.8320], abs=5e-5)
    assert {line.get_xdata()[0] for line in points.values()} == {recipe.budget.env_steps}
    assert {line.get_markerfacecolor() for line in points.values()} == {"white"}


def test_the_command_reads_runs_and_writes_the_report(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["compare", "--runs", str(folder), "--out", str(out)]) == 0
    shown = capsys.readouterr()
    assert "SAC" in shown.out and "report: " in shown.err
    document = json.loads((out / "report.json").read_text())
    scores = {(row["task"], row["method"]): row for row in document["data"]["scores"]}
    assert scores["reacher", "SAC"]["time_at_goal_share"]["point"] == pytest.approx(0.3)
    assert document["facts"]["command"].startswith("torch-crl compare --runs")
    names = {path.name for path in out.glob("*.png")}
    assert {"scores.png", "curves_env_steps.png", "curves_wall_clock.png"} <= names
    page = (out / "report.html").read_text()
    assert page.count("<img") == len(names) and "SAC" in page


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"budget": {"env_steps": 99}},
            r"budget\.env_steps \(--env-steps\) differs: 99 in .*other; 120000 in",
        ),
        (
            {"task": {"num_eval_envs": 9}},
            r"task\.num_eval_envs \(--num-eval-envs\) differs: 9 in .*other; 128 in",
        ),
    ],
)
def test_the_command_refuses_other_budgets_and_evaluations(
    folder: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    write_run(folder / "other", with_changes(preset("reacher"), **changes), [0.5] * 6)
    assert main(["compare", "--runs", str(folder), "--out", str(folder.parent / "out")]) == 1
    message = capsys.readouterr().err
    assert re.search(told, message) and "other" in message
    assert not (folder.parent / "out").exists()


def test_the_command_takes_finished_runs_only_and_names_the_others(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    late = write_run(folder / "late", preset("reacher"), [0.1], env_steps=50_000, finished=False)
    command = ["compare", "--runs", str(folder), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "late is not finished: 50,000 of 120,000 env steps" in capsys.readouterr().err
    assert main([*command, "--finished-only"]) == 0
    told = f"{late} (50,000 of 120,000 env steps)"
    assert told in capsys.readouterr().err
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert told in document["findings"][0]
    assert len(document["data"]["runs"]) == 12


def test_names_and_reasons_from_files_are_text_in_the_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    recipe = with_changes(preset("reacher"), task={"name": evil, "eval_name": evil})
    write_run(tmp_path / "run", recipe, [0.1, 0.2])
    report = comparison_report(
        compare(read_curves(tmp_path)), command=evil, published=True, failed={evil: evil}
    )
    page = write_report(report, tmp_path / "out").read_text()
    # The page's own script is the only one.
    assert page.count("<script") == 1 and page.count("alert(1)") > 10


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "name tasks to train on"),
        (["reacher", "--finished-only"], "--finished-only goes with --runs"),
        (["reacher", "--runs", "runs"], "leave out reacher"),
        (["reacher", "--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["reachr"], "reacher"),
        (["reacher", "--algos", "sacher"], "nearest: sac_her"),
        (["reacher", "--depths", "6"], "6"),
        (["--runs", "nowhere"], "nowhere holds no run"),
    ],
)
def test_the_command_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], told: str
) -> None:
    assert main(["compare", *flags, "--out", str(tmp_path / "out")]) == 1
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_command_trains_what_it_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {}

    def run_trials(trials: list[Trial], folder: Path, **options: Any) -> SweepResult:
        asked.update(options, names=[trial.name for trial in trials])
        *good, bad = trials
        finished = tuple(write_run(folder / trial.name, trial.recipe, [0.2, 0.5]) for trial in good)
        return SweepResult(finished=finished, failed={bad.name: "exit status 1; no memory"})

    monkeypatch.setattr(driver, "run_trials", run_trials)
    command = ["compare", "reacher", "--algos", "crl", "sac", "--seeds", "2", "--parallel", "2"]
    command += ["--env-steps", "4000", "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert asked["launch"] == Launch(parallel=2)
    assert asked["names"] == [f"reacher_{algo}_seed{n}" for algo in ("crl", "sac") for n in (0, 1)]
    assert "failed: reacher_sac_seed1: exit status 1; no memory" in capsys.readouterr().err
    document = json.loads((tmp_path / "out" / "report.json").read_text())
    assert document["findings"][0].startswith("Not finished")
    assert len(document["data"]["runs"]) == 3


def test_runs_that_would_end_too_far_apart_are_refused_before_they_are_trained() -> None:
    """PPO and contrastive RL round their env steps up to other numbers of steps."""
    near = comparison_trials(["reacher"], algos=["crl", "ppo"], settings={"env_steps": 200_000})
    assert len(near) == 6
    message = "crl would end at 15,360 env steps and ppo at 16,384.*raise --env-steps"
    with pytest.raises(RecipeError, match=message):
        comparison_trials(["reacher"], algos=["crl", "ppo"], settings={"env_steps": 15_000})
