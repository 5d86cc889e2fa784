"""The named studies on made-up curves whose answer is known, and two of them end to end."""

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.run_directories import write_run
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.sizes import BlockName, TowerSizes
from torch_crl.cli.main import main
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.curves import Curve
from torch_crl.study.report import Table
from torch_crl.study.studies import (
    STUDIES,
    actor_critic,
    batch,
    common,
    cost,
    limits,
    transitions,
    width,
)
from torch_crl.study.study import (
    SCALES,
    Answer,
    Scale,
    Study,
    cost_of,
    make_report,
    run_study,
    seeds_of,
)
from torch_crl.sweep import driver
from torch_crl.sweep.driver import SweepResult
from torch_crl.sweep.grid import Trial, check_trials, grid
from torch_crl.sweep.worker import work
from torch_crl.system.machine import machine
from torch_crl.training import trainer
from torch_crl.training.crl_run import CrlRun

EVALUATIONS = 16


def made_up(trials: Sequence[Trial], level_of: Callable[[Recipe], float]) -> list[Curve]:
    """Flat curves; seeds differ by one percent of the episode."""
    return [
        curve_of(trial, np.full(EVALUATIONS, level_of(trial.recipe) + trial.recipe.system.seed))
        for trial in trials
    ]


def curve_of(trial: Trial, values: np.ndarray) -> Curve:
    """A curve with these percents of the episode at the goal."""
    budget = trial.recipe.budget
    share = np.arange(1, len(values) + 1) / len(values)
    return Curve(
        run_dir=Path(trial.name),
        recipe=trial.recipe,
        env_steps_E=budget.env_steps * share,
        updates_E=budget.env_steps * share / budget.env_steps_per_update,
        seconds_E=3600 * share,
        metrics={
            "time_at_goal": values / 100 * trial.recipe.task.episode_length,
            "time_at_goal_share": values / 100,
            "success_any": np.ones_like(values),
        },
        finished=True,
    )


def tables(answer: Answer) -> list[Table]:
    return [part for s in answer.sections for part in s.parts if isinstance(part, Table)]


def seeded(trials: Sequence[Trial], seeds: int) -> list[Trial]:
    """The trials of seed 0 with more seeds."""
    return [
        Trial(name=f"{trial.name}{seed}", recipe=with_changes(trial.recipe, system={"seed": seed}))
        for trial in trials
        if trial.recipe.system.seed == 0
        for seed in range(seeds)
    ]


@pytest.mark.parametrize("name", STUDIES)
def test_the_trials_of_every_study_are_valid(name: str) -> None:
    for scale in SCALES:
        trials = STUDIES[name].trials(scale)
        assert len({trial.name for trial in trials}) == len(trials)
        check_trials(trials[:: max(1, len(trials) // 12)])


@pytest.mark.parametrize("name", [name for name in STUDIES if name != "limits"])
@pytest.mark.parametrize("scale", ["small", "full"])
def test_seeds_are_enough_to_show_something_on_one_task(name: str, scale: Scale) -> None:
    seeds = {trial.recipe.system.seed for trial in STUDIES[name].trials(scale)}
    assert 2 / math.comb(2 * len(seeds), len(seeds)) < 0.05


def test_depth_finds_the_jump_that_was_put_in() -> None:
    levels = {4: 10.0, 8: 12.0, 16: 50.0}
    trials = seeded(STUDIES["depth"].trials("smoke"), 5)
    curves = made_up(trials, lambda recipe: levels[recipe.networks.critic_depth])
    found = STUDIES["depth"].answer(curves)
    critical = found.data["critical_depth"]["reacher"]
    assert critical.depth == 16 and critical.stability[16] == 1.0
    assert critical.jump.rise == pytest.approx(0.38)
    # 2 of C(10, 5) ways, for two steps.
    assert critical.jump.p_value == pytest.approx(2 * 2 / math.comb(10, 5))
    assert found.findings[0].startswith("reacher: the largest jump is at depth 16, +0.38 of the")
    assert "it is more than luck (corrected p = 0.016" in found.findings[0]


@pytest.mark.parametrize(
    ("name", "better"),
    [("loss", "sac_her"), ("block", "pre_norm"), ("block", "relu")],
)
def test_variants_are_compared_with_the_base_at_equal_depth(name: str, better: str) -> None:
    def level(recipe: Recipe) -> float:
        networks, algorithm = recipe.networks, recipe.algorithm
        ours = better in (networks.block, networks.activation, algorithm.algo)
        return 2.0 * networks.critic_depth + (30.0 if ours else 0.0)

    trials = seeded(STUDIES[name].trials("smoke"), 4)
    found = STUDIES[name].answer(made_up(trials, level))
    rows = tables(found)[-1].rows
    differences = {(row[0], row[1]): row[2] for row in rows}
    assert differences.pop((better, 4)) == pytest.approx(0.3)
    assert differences.pop((better, 8)) == pytest.approx(0.3)
    assert differences and list(differences.values()) == pytest.approx([0.0] * len(differences))
    gains = tables(found)[-2].rows
    assert all(row[4] == pytest.approx(0.08) for row in gains)


def test_three_seeds_tell_nothing_apart() -> None:
    trials = STUDIES["objective"].trials("smoke")
    level = {"crl": 20.0, "survival": 20.0, "chrono": 60.0}
    # Of 20 and 70 ways to divide the seeds, two are as far apart.
    for seeds, told, p in ((3, "do not tell", "0.1"), (4, "beyond chance: ChronoSRL", "0.029")):
        found = STUDIES["objective"].answer(
            made_up(seeded(trials, seeds), lambda recipe: level[recipe.algorithm.objective])
        )
        assert told in found.findings[0] and f"p = {p}" in found.findings[1]


def test_minutes_of_other_kernels_have_no_ratio() -> None:
    trials = seeded(STUDIES["objective"].trials("smoke"), 4)
    curves = made_up(trials, lambda recipe: 20.0 + recipe.networks.critic_depth)
    first = next(curve for curve in curves if curve.recipe.algorithm.objective == "chrono")
    rest = [curve for curve in curves if curve is not first]
    found = STUDIES["objective"].answer([*rest, replace(first, computed="fp32, towers: numba")])
    titles = {section.title: section.parts for section in found.sections}
    (against,) = titles["Against contrastive RL"]
    depth = first.recipe.networks.critic_depth
    for row in against.rows:
        assert (row[-1] is None) == (row[1] == f"ChronoSRL depth {depth}")


def test_objectives_are_compared_with_plain_contrastive_rl() -> None:
    """At depth 4 chrono is 30 % ahead, at depth 8 as good; survival is 10 % behind."""

    def level(recipe: Recipe) -> float:
        depth, objective = recipe.networks.critic_depth, recipe.algorithm.objective
        ahead = {"crl": 0.0, "survival": -10.0, "chrono": 30.0 if depth == 4 else 0.0}
        return 20.0 + 2.0 * depth + ahead[objective]

    trials = seeded(STUDIES["objective"].trials("smoke"), 4)
    found = STUDIES["objective"].answer(made_up(trials, level))
    assert found.findings[0] == (
        "Ahead of plain contrastive RL beyond chance: ChronoSRL depth 4 on reacher."
    )
    assert found.findings[1].startswith(
        "reacher (arm of two joints): ChronoSRL depth 4 is first, at the goal for a share of 0.595"
    )
    assert found.findings[1].endswith(
        "CRL depth 4 has 0.295 [0.280, 0.310] in 1 of the time (p = 0.029)."
    )
    titles = {section.title: section.parts for section in found.sections}
    (against,) = titles["Against contrastive RL"]
    assert {row[1:3]: row[3] for row in against.rows} == pytest.approx(
        {
            ("SRL depth 4", "CRL depth 4"): -0.1,
            ("SRL depth 8", "CRL depth 8"): -0.1,
            ("ChronoSRL depth 4", "CRL depth 4"): 0.3,
            ("ChronoSRL depth 8", "CRL depth 8"): 0.0,
        }
    )
    (deeper,) = titles["What depth adds"]
    assert {row[1:3]: row[3] for row in deeper.rows} == pytest.approx(
        {
            ("CRL depth 8", "CRL depth 4"): 0.08,
            ("SRL depth 8", "SRL depth 4"): 0.08,
            ("ChronoSRL depth 8", "ChronoSRL depth 4"): -0.22,
        }
    )


def test_what_was_not_learned_or_not_compared_is_no_advice() -> None:
    trials = [
        trial
        for trial in STUDIES["objective"].trials("small")
        if trial.recipe.task.name in ("pusher_easy", "arm_reach")
        and trial.recipe.algorithm.chunk == 1
        and (trial.recipe.task.name, trial.recipe.algorithm.objective) != ("arm_reach", "chrono")
    ]
    found = STUDIES["objective"].answer(
        # The seeds of made-up curves differ by one percent, but not here.
        [
            # A twentieth of a percent of the time is passing by.
            curve_of(trial, np.full(5, 90.0 if trial.recipe.task.name == "arm_reach" else 0.05))
            for trial in trials
        ]
    )
    assert found.findings[0] == (
        "One method alone was run on arm_reach. No method was at the goal for 1% of its last "
        "evaluations on pusher_easy."
    )
    assert found.findings[1].endswith("0.900 [0.900, 0.900]; nothing else was run.")
    assert found.findings[2] == (
        "pusher_easy (robot arm with an object): hardly ever at the goal in the last evaluations, "
        "at most for a share of 0.000500 [0.000500, 0.000500]; tried: CRL depth 4, ChronoSRL depth "
        "4."
    )


def test_a_kind_of_task_is_told_of_registered_ones_only() -> None:
    (trial, *_) = STUDIES["objective"].trials("smoke")
    names = ("ant", "gymnasium:AntMaze_UMaze-v5", "ant_farm:make")
    found = STUDIES["objective"].answer(
        [
            curve_of(
                replace(trial, recipe=with_changes(trial.recipe, task={"name": name})),
                np.full(5, 90.0),
            )
            for name in names
        ]
    )
    told = [finding.partition(": CRL")[0] for finding in found.findings[1:]]
    assert told == ["ant (walking)", *names[1:]]


def test_chunks_are_compared_with_none_at_the_same_depth() -> None:
    trials = [trial for trial in STUDIES["objective"].trials("small") if "ant" in trial.name]

    def level(recipe: Recipe) -> float:
        plain = recipe.algorithm.objective == "crl" and recipe.algorithm.chunk == 1
        return 50.0 if plain else 45.0

    found = STUDIES["objective"].answer(made_up(trials, level))
    assert found.findings[0].startswith("Start with contrastive RL at the least depth: it is first")
    assert found.findings[1].startswith("ant (walking): CRL depth 4, chunk 1 is first")
    (against,) = [s.parts[0] for s in found.sections if s.title == "Against contrastive RL"]
    assert {row[1:3] for row in against.rows} == {
        ("CRL depth 4, chunk 3", "CRL depth 4, chunk 1"),
        ("Safe-CRL depth 4", "CRL depth 4, chunk 1"),
        ("ChronoSRL depth 4", "CRL depth 4, chunk 1"),
    }


def test_a_heat_map_shows_each_cell_in_its_place() -> None:
    axes = {"critic_depth": (4, 8), "actor_depth": (4, 16), "seed": range(2)}
    trials = grid(["reacher"], axes=axes, settings=common.SETTINGS["smoke"])[:-2]
    curves = made_up(trials, lambda recipe: recipe.networks.actor_depth + 50.0)
    cells = common.grouped(curves, "networks.critic_depth", "networks.actor_depth")
    picture = common.heat_map_picture({"reacher": cells}, rows="critic", columns="actor")  # type: ignore[dict-item]
    axes_of_panel = picture.views["means"].axes[0]
    shown = {text.get_position(): text.get_text() for text in axes_of_panel.texts}
    # (column, row) to the mean of two seeds; the deepest pair was not run.
    assert shown == {(0, 0): "0.545", (1, 0): "0.665", (0, 1): "0.545"}


def test_tasks_of_different_episode_lengths_count_alike() -> None:
    lengths = {"reacher": 100, "point_u_maze": 1000}
    trials = [
        Trial(
            name=f"{task}_{loss}_{seed}",
            recipe=with_changes(
                preset(task),
                task={"episode_length": length},
                algorithm={"contrastive_loss": loss},
                system={"seed": seed},
            ),
        )
        for task, length in lengths.items()
        for loss in ("forward_info_nce", "binary_nce")
        for seed in range(4)
    ]
    # Binary NCE is at the goal for half of each episode, the other never.
    curves = [
        curve_of(
            trial,
            np.full(5, 50.0) * (trial.recipe.algorithm.contrastive_loss == "binary_nce"),
        )
        for trial in trials
    ]
    found = STUDIES["loss"].answer(curves)
    (row,) = tables(found)[-1].rows
    assert row[2] == pytest.approx(0.5)
    assert "+0.5 of the episode at the goal" in found.findings[0]


def test_actor_and_critic_are_told_apart() -> None:
    # Only the critic's depth pays.
    trials = seeded(actor_critic.trials("smoke"), 4)
    curves = made_up(trials, lambda recipe: 3.0 * recipe.networks.critic_depth)
    found = actor_critic.answer(curves)
    assert found.findings[:3] == (
        "reacher: deepening the actor: +0 of the episode at the goal, p = 1.",
        "reacher: deepening the critic: +0.36 of the episode at the goal, p = 0.029.",
        "reacher: deepening both: +0.36 of the episode at the goal, p = 0.029.",
    )
    assert "is critic 16, actor 4" in found.findings[3]


def test_batch_splits_equal_updates_from_equal_samples() -> None:
    trials = batch.trials("smoke")
    # Score is the number of samples at depth 16, and a constant at depth 4.
    curves = made_up(
        trials,
        lambda recipe: (
            float(recipe.total_updates * recipe.algorithm.batch_size) / 1000
            if recipe.networks.critic_depth == 16
            else 7.0
        ),
    )
    cells = batch.split(curves)
    updates, samples = cells["equal updates"], cells["equal samples"]
    assert set(updates) == set(samples) == {(4, 32), (4, 128), (16, 32), (16, 128)}
    for key in updates:
        ours, theirs = updates[key][0].recipe, samples[key][0].recipe
        assert ours.total_updates == updates[4, 32][0].recipe.total_updates
        seen = theirs.total_updates * theirs.algorithm.batch_size
        first = samples[4, 32][0].recipe
        assert seen == first.total_updates * first.algorithm.batch_size
    assert [row[3] for row in batch.gains(samples)] == pytest.approx([0, 0])
    at_4, at_16 = batch.gains(updates)
    count = updates[16, 32][0].recipe.total_updates
    assert at_4[3] == 0 and at_16[3] == pytest.approx(count * 96 / 1000 / 100)


def test_batch_splits_alike_where_runs_are_missing() -> None:
    curves = made_up(batch.trials("smoke")[::2], lambda _: 1.0)
    assert {curve.recipe.networks.critic_depth for curve in curves} == {4}

    def names(curves: Sequence[Curve]) -> set[tuple[str, str]]:
        return {
            (kind, curve.run_dir.name)
            for kind, cells in batch.split(curves).items()
            for same in cells.values()
            for curve in same
        }

    everything = names(curves)
    for count in range(1, len(curves)):
        for there in itertools.combinations(curves, count):
            kept = {curve.run_dir.name for curve in there}
            assert names(there) == {each for each in everything if each[1] in kept}


def test_batch_gives_every_task_the_settings_of_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(batch.TASKS, "smoke", ("reacher", "point_u_maze"))  # type: ignore[arg-type]
    sizes: dict[str, set[int]] = {}
    for trial in batch.trials("smoke"):
        recipe = trial.recipe
        sizes.setdefault(recipe.task.name, set()).add(recipe.algorithm.batch_size)
    assert sizes == {"reacher": {32, 128}, "point_u_maze": {32, 128}}


@pytest.mark.parametrize("task", ["reacher", "humanoid"])
def test_wide_networks_have_the_parameters_of_deep_ones(task: str) -> None:
    deep = preset(task, depth=64)
    wide = preset(task, depth=4)
    units = width.width_of_equal_parameters(wide, deep.update_cost.parameters)

    def gap(units: int) -> int:
        networks = {"width": units}
        cost = with_changes(wide, networks=networks).update_cost
        return abs(cost.parameters - deep.update_cost.parameters)

    assert units > deep.networks.width
    assert gap(units) <= min(gap(units - 1), gap(units + 1))
    own = width.width_of_equal_parameters(wide, wide.update_cost.parameters)
    assert own == wide.networks.width


def test_width_compares_networks_of_equal_parameters() -> None:
    trials = seeded(width.trials("smoke"), 4)
    curves = made_up(trials, lambda recipe: float(recipe.networks.critic_depth))
    (row,) = tables(width.answer(curves))[-1].rows
    task, deep, deep_count, wide, wide_count, difference, p, _ = row
    assert (task, deep) == ("reacher", "depth 16, width 32")
    assert str(wide).startswith("depth 4, width 6")
    assert wide_count == pytest.approx(deep_count, rel=0.02)
    assert difference == pytest.approx(0.12) and p == pytest.approx(2 / 70)


def test_width_compares_no_networks_of_unequal_parameters() -> None:
    """The wide network of the deepest one is missing, for example because it had no memory."""
    trials = [trial for trial in width.trials("small") if trial.recipe.task.name == "reacher"]
    widest = max(trial.recipe.networks.width for trial in trials)
    there = [trial for trial in trials if trial.recipe.networks.width < widest]
    found = width.answer(made_up(there, lambda recipe: float(recipe.networks.critic_depth)))
    rows = tables(found)[-1].rows
    assert [row[1] for row in rows] == ["depth 8, width 64", "depth 16, width 64"]
    assert all(row[4] == pytest.approx(row[2], rel=0.01) for row in rows)
    assert found.findings[-1] == (
        "reacher: depth 32, width 64 is compared with nothing, since no run of depth 4 has as many "
        "parameters."
    )


@pytest.mark.parametrize("unit", ["transitions", "updates"])
def test_a_slow_start_is_counted_in_what_it_was_made_of(unit: str) -> None:
    trials = transitions.trials("smoke")
    noise = np.random.default_rng(0)
    curves = []
    for trial in trials:
        curve = curve_of(trial, np.zeros(32))
        # The onset is at 2,000 env steps, or at 50 updates.
        steps = 2_000.0 if unit == "transitions" else 50 * trial.recipe.budget.env_steps_per_update
        ramp = 60 * ((curve.env_steps_E - steps) / 500).clip(0, 1)
        curves.append(curve_of(trial, ramp + noise.normal(scale=0.5, size=32)))
    found = transitions.starts(curves)
    assert [row.env_steps_per_update for row in found] == [16, 64]
    for row in found:
        steps = 2_000.0 if unit == "transitions" else 50 * row.env_steps_per_update
        assert row.found.ramp.onset == pytest.approx(steps, abs=150)
        assert row.found.slow_start_p < 0.05
    (sentence,) = transitions.agreement(found)
    assert sentence.endswith(f"it is nearer to a count of {unit}.")
    # Onsets that differ by a factor of 2 both in transitions and, the other way round, in updates.
    tied = [
        row._replace(
            found=replace(row.found, ramp=replace(row.found.ramp, onset=onset)),
            updates=onset / row.env_steps_per_update,
        )
        for row, onset in zip(found, (1000.0, 2000.0), strict=True)
    ]
    (sentence,) = transitions.agreement(tied)
    assert sentence.endswith("2 in transitions and 2 in updates: it is equally near to both.")
    findings = transitions.answer(curves).findings
    assert len(findings) == 3
    # A smooth start would be found too, so nothing is called a threshold.
    assert all("a slow start, with little learned before" in found for found in findings[:2])
    assert not any("threshold" in found for found in findings)


def test_the_cheapest_good_depth_may_differ_in_training_and_use() -> None:
    points = [
        cost.Point(depth=4, score=10.0, hours=1.0, latency_ms=0.1),
        cost.Point(depth=8, score=96.0, hours=3.0, latency_ms=0.2),
        cost.Point(depth=16, score=100.0, hours=2.0, latency_ms=0.4),
    ]
    assert cost.recommendations("ant", points) == [
        "ant: the cheapest depth with 95% of the best mean score is 16 by training "
        "(2 wall-clock hours) and 8 by latency (0.2 ms)."
    ]
    nothing = [cost.Point(depth=4, score=0.0, hours=1.0, latency_ms=0.1)]
    assert cost.recommendations("ant", nothing) == ["ant: no depth ever stayed at the goal."]


def test_cost_reports_on_runs_that_were_kept_without_their_policies(tmp_path: Path) -> None:
    for trial in STUDIES["cost"].trials("smoke"):
        write_run(tmp_path / "runs" / trial.name, trial.recipe, [0.1, 0.3])
    command = ["study", "cost", "--scale", "smoke", "--report-only", "--out", str(tmp_path)]
    assert main(command) == 0
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["findings"][0].endswith(
        "wall-clock hours); by latency none can be told, since the runs of depth 4, 8, 16 were "
        "kept without policies."
    )
    rows = document["tables"][0]["rows"]
    assert [(row[1], row[4], row[5], row[6]) for row in rows] == [
        (4, None, "yes", None),
        (8, None, "no", None),
        (16, None, "no", None),
    ]
    assert (tmp_path / "fronts.png").exists()
    # One depth without a latency may be the cheapest, so that no other is named.
    points = [
        cost.Point(depth=4, score=0.9, hours=1.0, latency_ms=None),
        cost.Point(depth=8, score=1.0, hours=2.0, latency_ms=0.1),
    ]
    (told,) = cost.recommendations("ant", points)
    assert "is 8 by training" in told and "the runs of depth 4 were kept" in told


def test_one_seed_and_failures_stand_in_the_report() -> None:
    trials = [trial for trial in STUDIES["depth"].trials("smoke") if not trial.recipe.system.seed]
    curves = made_up(trials, lambda recipe: float(recipe.networks.critic_depth))
    assert seeds_of(curves) == [1, 1, 1]
    failed = {"reacher_x": "killed by SIGKILL"}
    report = make_report(
        "depth", STUDIES["depth"], "smoke", curves, failed=failed, command="torch-crl study depth"
    )
    assert "One seed: no interval can be given and nothing can be tested." in report.findings
    assert "Left out, it failed: reacher_x: killed by SIGKILL" in report.findings
    assert "one seed, so its stability is unknown" in report.findings[0]
    assert report.facts["seeds of a setting"] == "1"
    assert report.facts["a score is the mean of"] == (
        "the last 5 of 16 evaluations: the last 31 % of the run"
    )


def test_at_small_and_full_a_score_is_of_the_last_tenth_at_most() -> None:
    for scale in ("small", "full"):
        for trial in STUDIES["depth"].trials(scale):
            assert 5 / trial.recipe.budget.evaluations <= 0.1


def test_petaflop_is_that_of_all_updates() -> None:
    recipe = preset("reacher", depth=8)
    assert recipe.petaflop == pytest.approx(recipe.update_cost.flop * recipe.total_updates / 1e15)
    assert preset("reacher", algo="sac").petaflop is None


def test_full_costs_what_the_published_runs_cost() -> None:
    def hours(task: str, depth: int) -> float:
        recipe = with_changes(preset(task, depth=depth), budget={"env_steps": 100_000_000})
        return cost_of([Trial(name="run", recipe=recipe)]).published_hours

    # Table 3 of arXiv 2503.14858v3.
    published = {4: 1.48, 8: 2.13, 16: 3.40, 32: 5.92, 64: 10.99}
    for depth, expected in published.items():
        assert hours("humanoid", depth) == pytest.approx(expected, rel=0.03)
    total = cost_of(STUDIES["depth"].trials("full"))
    assert total.runs == 250 and total.published_runs == 250
    assert "250 runs\n25,0" in str(total) and "PFLOP" in str(total)
    assert "published" not in str(cost_of(STUDIES["depth"].trials("smoke")))


def test_limits_measures_growth_and_gradients_at_tiny_size() -> None:
    sizes = limits.Sizes(depths=(4, 32), width=8, batch=8, updates=2)
    answer = limits.report(sizes)
    (table,) = tables(answer)
    rows = [limits.Limits(*row) for row in table.rows]  # type: ignore[arg-type]
    names = ("published", "scaled", "pre_norm", "pre_norm, scaled")
    assert [(row.network, row.depth) for row in rows] == list(itertools.product(names, (4, 32)))
    published, scaled, pre_norm = rows[:2], rows[2:4], rows[4:6]
    # The sum grows with the blocks, and less where they are scaled.
    assert published[1].stream_mean > 2 * published[0].stream_mean
    assert scaled[1].stream_mean < published[1].stream_mean
    assert published[0].stream_mean == pytest.approx(scaled[0].stream_mean)
    # Where outputs have no common sign, what tells samples apart grows with the sum.
    assert pre_norm[1].stream_spread > pre_norm[1].stream_mean
    assert published[1].stream_spread < 0.5 * published[1].stream_mean
    assert all(row.updates == 2 and row.actor_gradient > 0 for row in rows)


def test_the_critics_gradient_is_that_of_both_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    closed: list[CrlRun] = []
    update, close = CrlRun.update, CrlRun.close

    def spied(run: CrlRun) -> dict[str, torch.Tensor]:
        metrics = update(run)
        networks = run.learner.objective.networks  # type: ignore[union-attr]
        encoders = (networks.state_action_encoder, networks.goal_encoder)
        squares = [
            (p.grad.double() ** 2).sum()
            for encoder in encoders
            for p in encoder.parameters()
            if p.grad is not None
        ]
        seen.append(math.sqrt(float(torch.stack(squares).sum())))
        return metrics

    monkeypatch.setattr(CrlRun, "update", spied)
    monkeypatch.setattr(CrlRun, "close", lambda run: (closed.append(run), close(run))[1])
    answer = limits.report(limits.Sizes(depths=(4,), width=8, batch=8, updates=1))
    (table,) = tables(answer)
    rows = [limits.Limits(*row) for row in table.rows]  # type: ignore[arg-type]
    assert [row.critic_gradient for row in rows] == pytest.approx(seen, rel=1e-5)
    # The run that fills the replay, and one for each kind of network.
    assert len(closed) == len(rows) + 1 == 5


@pytest.mark.parametrize("block", ["published", "pre_norm"])
def test_growth_by_layer_ends_with_what_the_head_gets(block: BlockName) -> None:
    sizes = TowerSizes(
        input_size=3, output_size=2, width=8, depth=12, branch_scale=0.5, block=block
    )
    network = ResidualTower(sizes, generator=torch.Generator().manual_seed(0))
    rows_BI = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    seen: list[torch.Tensor] = []
    head = network.head
    network.head = lambda x, **options: (seen.append(x), head(x, **options))[1]  # type: ignore[method-assign]
    network(rows_BI)
    sizes = limits.growth_by_layer(network, rows_BI)
    assert len(sizes) == 3
    assert sizes[-1] == pytest.approx(float(seen[0].detach().abs().mean()), rel=1e-6)


def test_a_study_reads_its_finished_runs_and_writes_a_report(tmp_path: Path) -> None:
    settings = {**common.SETTINGS["smoke"], "env_steps": 4_000, "evaluations": 5, "width": 8}
    settings |= {"num_eval_envs": 4, "episode_length": 20, "env_steps_per_update": 200.0}
    axes = {"depth": (4, 8), "seed": (0,)}
    trials = grid(["reacher"], axes=axes, settings=settings)
    for trial in trials:
        trainer.train(trial.recipe, tmp_path / "runs" / trial.name, show=False)
    tiny = Study(question="?", statistic="!", trials=lambda _: trials, answer=cost.answer)
    report = run_study("cost", tiny, "smoke", tmp_path, command="torch-crl study", show=False)
    document = json.loads((tmp_path / "report.json").read_text())
    rows = document["tables"][0]["rows"]
    assert [row[1] for row in rows] == [4, 8]
    for row in rows:
        assert 0 < row[3] < 1 and 0 < row[4] < 1000
    assert any(text.startswith("One seed") for text in report.findings)
    assert document["findings"] == list(report.findings)
    assert document["tables"][0]["columns"][3] == "wall-clock of a run, hours"
    assert (
        f"on one device (--device cpu, {machine()['device']})"
        in (tmp_path / "report.html").read_text()
    )
    assert (tmp_path / "fronts_wall_clock.png").exists()


def test_a_report_without_training_names_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Found wanting where nothing is there.
    arguments = ["study", "objective", "--report-only", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "no trial finished:\n  - reacher_crl_objective-crl" in capsys.readouterr().err
    first, second, third, fourth, *_ = STUDIES["objective"].trials("smoke")
    runs = tmp_path / "runs"
    for trial in (first, second):
        write_run(runs / trial.name, trial.recipe, [0.1, 0.3])
    write_run(runs / third.name, with_changes(third.recipe, networks={"width": 16}), [0.1, 0.3])
    write_run(runs / fourth.name, fourth.recipe, [0.1, 0.3], finished=False)
    before = sorted(runs.rglob("*"))
    assert main(arguments) == 0
    assert sorted(runs.rglob("*")) == before
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["findings"][-1] == "Incomplete: 10 of 12 runs are missing (last table)."
    rows = document["tables"][-1]["rows"]
    assert rows[0][1] == "0" and "width" in rows[0][2]
    assert rows[1][1:] == ["1", "not finished"]
    assert rows[2][1:] == ["0, 1", "not run"]
    assert main([*arguments, "--dry-run"]) == 1
    assert "--report-only trains nothing" in capsys.readouterr().err


def test_a_study_runs_at_its_smoke_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_trials(trials: list[Trial], folder: Path, **options: object) -> SweepResult:
        # In this process, of which each worker's start would take longer than its training.
        folder.mkdir(parents=True)
        for trial in trials:
            work(trial.recipe, folder / trial.name)
        return SweepResult(finished=tuple(folder / trial.name for trial in trials), failed={})

    monkeypatch.setattr(driver, "run_trials", run_trials)
    out = tmp_path / "out"
    assert main(["study", "transitions", "--scale", "smoke", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert f"report: {out / 'report.html'}" in told and "\n- " in told
    document = json.loads((out / "report.json").read_text())
    assert document["facts"]["runs"] == "4" and document["facts"]["seeds of a setting"] == "2"
    assert [row[:3] for row in document["tables"][0]["rows"]] == [
        ["reacher", 4, 16.0],
        ["reacher", 4, 64.0],
    ]
    assert (out / "curves.png").exists()


def test_a_dry_run_states_the_cost_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["study", "block", "--scale", "smoke", "--dry-run", "--out", str(out)]) == 0
    told = capsys.readouterr().out
    runs = len(STUDIES["block"].trials("smoke"))
    assert told.startswith("study block, scale smoke: Which parts of the published residual")
    assert f"{runs} runs\n" in told and "PFLOP" in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "runs"), [([], "studies/depth_smoke/runs"), (["--out", "mine"], "mine/runs")]
)
def test_cost_takes_the_runs_of_depth(
    flags: list[str], runs: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def run_trials(trials: list[Trial], folder: Path, **options: object) -> SweepResult:
        asked.append(folder)
        return SweepResult(finished=(), failed={"all": "not now"})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(driver, "run_trials", run_trials)
    assert main(["study", "cost", *flags]) == 1
    assert main(["study", "depth", *flags]) == 1
    assert asked == [Path(runs), Path(runs)]
    assert STUDIES["cost"].trials("full") == STUDIES["depth"].trials("full")


def test_the_command_lists_refuses_and_states_the_cost(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in STUDIES)
    assert main(["study", "dept"]) == 1
    assert "no study 'dept'; there are depth, objective" in capsys.readouterr().err
    assert main(["study", "depth", "--scale", "full", "--out", str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "250 runs" in told.out and "hours for the published system" in told.out
    assert "--yes" in told.err
    assert not (tmp_path / "out").exists()
