"""Benchmarks run, say what they measured, and do not measure zeros."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from torch_crl.benchmarks import policies, precision
from torch_crl.benchmarks.picture import published_milliseconds
from torch_crl.benchmarks.scenarios import Scenario, random_run, recipe_of, run_scenario
from torch_crl.benchmarks.timing import time_calls
from torch_crl.cli.main import main
from torch_crl.kernels.tower import tower
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe

CPU = torch.device("cpu")


def test_time_of_a_call_is_divided_by_its_units() -> None:
    # Sleeping takes the same time beside other work.
    def work() -> None:
        time.sleep(0.002)

    one = time_calls(work, device=CPU, seconds=0.2)
    assert 0 < one.p20 <= one.p50 <= one.p80
    many = time_calls(lambda: [work() for _ in range(8)], device=CPU, seconds=0.2, units=8)
    assert 0.3 < many.p50 / one.p50 < 3.0


def test_published_times() -> None:
    # 10.99 hours for 100 M env steps, an update for 39.68 of them.
    assert published_milliseconds()[64] == pytest.approx(15.7, abs=0.05)


def test_scenarios_run_on_random_data_and_describe_themselves() -> None:
    small = Scenario(kind="update", depth=4, batch=8, width=16, envs=8, seconds=0.01)
    run = random_run(recipe_of(small, CPU))
    for name in ("state", "action"):
        assert (run.replay.storage[name] != 0).all()
    for scenario in (
        small,
        replace(small, implementation="eager_torch"),
        replace(small, kind="act"),
        replace(small, kind="env"),
        replace(small, kind="kernels"),
        replace(small, kind="floor"),
    ):
        for row in run_scenario(scenario, device="cpu"):
            assert row["kind"] == scenario.kind and row["ms_p50"] > 0 and row["device"] == "cpu"


def test_the_floor_is_made_of_the_rates_beside_it() -> None:
    scenario = Scenario(kind="floor", depth=8, batch=64, width=32, seconds=0.1)
    (row,) = run_scenario(scenario, device="cpu")
    cost = recipe_of(scenario, CPU).update_cost
    products = cost.flop / row["tflop_per_second"] / 1e9
    # Read: parameter, gradient, two moments; written: all but the gradient; four bytes each.
    adam = 7 * 4 * cost.parameters / row["copy_gb_per_second"] / 1e6
    assert row["ms_p50"] == pytest.approx(products + adam)


def test_bench_writes_table_json_and_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--depths", "4", "--batch", "8", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "eager_torch" in shown and "steps/s" in shown
    document = json.loads((tmp_path / "bench.json").read_text())
    assert {row["kind"] for row in document["rows"]} == {"update", "floor", "act", "env"}
    assert document["machine"]["torch"] == torch.__version__
    assert (tmp_path / "bench.png").stat().st_size > 10_000


def test_policies_are_timed_in_every_runtime_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "WIDTH", 16)
    monkeypatch.setitem(policies.policy_rows.__kwdefaults__, "seconds", 0.05)
    assert main(["bench", "--policies", "--depths", "4", "--out", str(tmp_path)]) == 0
    assert "load_policy" in capsys.readouterr().out
    rows = json.loads((tmp_path / "policies.json").read_text())["rows"]
    assert len(rows) == len(policies.runtimes()) >= 2
    for row in rows:
        assert row["calls"] >= 20 and 0.0 < row["ms_p50"] <= row["ms_p99"]
    assert (tmp_path / "policies.png").stat().st_size > 10_000


@pytest.mark.parametrize("flags", [["--depths", "6"], ["--batch", "0"], ["--device", "cuda:99"]])
def test_bench_refuses(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *flags]) == 1
    assert flags[0] in capsys.readouterr().err


@pytest.mark.parametrize("algo", ["sac", "ppo"])
def test_updates_of_baselines_have_a_row(algo: str) -> None:
    pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed")
    scenario = Scenario(
        kind="baseline", implementation=algo, task="reacher", batch=64, width=16, seconds=0.01
    )
    (row,) = run_scenario(scenario, device="cpu")
    assert row["ms_p50"] > 0 and row["compute"].startswith(algo)


@pytest.mark.parametrize("block", ["published", "pre_norm"])
def test_precision_rows_rank_as_their_mantissas(
    block: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales = []

    def spied(*arguments: Any, **options: Any) -> Any:
        scales.append((options["block"], options["branch_scale"]))
        return tower(*arguments, **options)

    monkeypatch.setattr(precision, "tower", spied)

    def scaled(task: str, *, depth: int) -> Recipe:
        networks = {"branch": "scaled", "width": 64}
        return with_changes(preset(task, depth=depth), networks=networks)

    monkeypatch.setattr(precision, "preset", scaled)
    rows = [row for row in precision.measure(block, 32) if row["updates"] == 0]
    # The networks that are measured are those that are trained.
    assert set(scales) == {(block, 0.5)}
    errors = {row["precision"]: row["weight_gradient"] for row in rows}
    assert errors["fp32"] < 1e-5 < errors["fp16"] < errors["bf16"]
    assert errors["fp16"] == pytest.approx(errors["tf32"], rel=0.2)


def test_an_update_by_compiled_kernels_has_the_floor_of_their_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("numba", reason="numba is not installed")
    from torch_crl.benchmarks.compiled_products import products_of_layers

    x_LBD, weight_LDD = torch.randn(2, 8, 16), torch.randn(2, 16, 16)
    products_of_layers(x_LBD, weight_LDD)()
    seen = []

    def measured(*operands: torch.Tensor) -> Any:
        seen.append([x.shape for x in operands])
        return products_of_layers(*operands)

    monkeypatch.setattr("torch_crl.benchmarks.compiled_products.products_of_layers", measured)
    scenario = Scenario(kind="floor", depth=4, batch=64, width=32, seconds=0.1)
    for chosen, expected in (("numba", [[(4, 64, 32), (4, 32, 32)]]), ("reference", [])):
        run_scenario(replace(scenario, tower=chosen), device="cpu")
        assert seen == expected
        seen.clear()
