"""The model of runs on many ranks: by hand, with 1,024 fake ranks, and on a slow network."""

import math
import time
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

from tests.helpers.ranks import Stage, stages_on_ranks
from tests.helpers.recipes import tiny
from torch_crl.cli.main import main
from torch_crl.distributed.ranks import Ranks, join
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.scaling import LINKS, Conditions, Link, predict, slowest_of, traffic
from torch_crl.training.building import build_run

THIS = "tests.recipe.test_scaling"


def test_traffic_by_hand() -> None:
    recipe = preset("ant", depth=64)
    parameters = recipe.update_cost.parameters
    assert traffic(recipe) == (512 * 64 * 4, 512 * 64 * 4 + 4 * (parameters + 1), 3)
    symmetric = with_changes(recipe, algorithm={"contrastive_loss": "symmetric_info_nce"})
    assert traffic(symmetric).gathered == 2 * 512 * 64 * 4
    local = with_changes(recipe, algorithm={"negatives": "local"})
    assert traffic(local) == (0, 4 * (parameters + 1), 1)


def test_time_of_an_update_and_of_a_run_by_hand() -> None:
    recipe = preset("ant", depth=64)
    link = Link(10.0, 0.0, "")
    conditions = Conditions(ranks=4, link=link, update=2e-3, env_step=1e-6, jitter=0.0, disk=1e9)
    found, moved = predict(recipe, conditions), traffic(recipe)
    assert found.slowest == 2e-3
    assert found.exchange == pytest.approx((moved.gathered + 2 * moved.summed) * 0.75 / 10e9)
    collecting = recipe.total_env_steps / 4 * 1e-6
    assert found.run == pytest.approx(
        recipe.total_updates * (2e-3 + found.exchange) + collecting, rel=1e-6
    )
    alone = predict(recipe, Conditions(ranks=1, link=link, update=2e-3, env_step=1e-6))
    assert alone.exchange == 0.0 and alone.slowest == 2e-3


def test_failures_cost_half_an_interval_and_a_start_each() -> None:
    recipe = preset("ant", depth=64)
    sure = {"ranks": 4, "link": LINKS["400g"], "update": 2e-3, "env_step": 1e-6}
    whole = predict(recipe, Conditions(**sure))  # type: ignore[arg-type]
    failing = predict(recipe, Conditions(**sure, failures_per_hour=0.01))  # type: ignore[arg-type]
    lost = whole.run / recipe.budget.checkpoints / 2 + 60.0
    assert failing.failures == pytest.approx(4 * 0.01 / 3600 * failing.run)
    assert failing.run == pytest.approx(whole.run + failing.failures * lost)
    assert failing.best_interval == pytest.approx(
        math.sqrt(2 * failing.checkpoint / (4 * 0.01 / 3600))
    )
    hopeless = predict(recipe, Conditions(**sure, failures_per_hour=100.0))  # type: ignore[arg-type]
    assert hopeless.run == math.inf


def test_the_slowest_of_many() -> None:
    assert slowest_of(1, 0.3) == 1.0 == slowest_of(8, 0.0)
    # The mean of the largest of two normal numbers is 1 / sqrt(pi) standard deviations.
    assert slowest_of(2, 0.01) == pytest.approx(1 + 0.01 / math.sqrt(math.pi), rel=2e-4)
    assert slowest_of(2, 0.05) < slowest_of(8, 0.05) < slowest_of(1024, 0.05) < 1.25


def small_recipe() -> Recipe:
    sizes = {"num_envs": 1024, "num_eval_envs": 1024, "episode_length": 10}
    recipe = tiny(task=sizes, algorithm={"batch_size": 2048})
    return with_changes(recipe, budget={"env_steps": 11_000, "prefill_rows": 5})


def of_a_thousand() -> dict[str, Any]:
    """Bytes and number of the exchanges in an update of one of 1,024 ranks that are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=3, world_size=1024)
    ranks = Ranks(rank=3, size=1024, device_group=dist.group.WORLD, control=dist.group.WORLD)
    run = build_run(small_recipe(), ranks=ranks)
    run.collect()
    run.collect()
    gathered, summed = [], []
    gather, reduce = dist.all_gather, dist.all_reduce

    def counted_gather(parts: list[Tensor], own: Tensor, **options: Any) -> None:
        gathered.append(sum(part.nbytes for part in parts))
        gather(parts, own, **options)

    def counted_reduce(tensor: Tensor, **options: Any) -> None:
        summed.append(tensor.nbytes)
        reduce(tensor, **options)

    dist.all_gather, dist.all_reduce = counted_gather, counted_reduce
    run.update()
    columns, rows = run.replay.storage["state"].shape[1], run.batch_size
    dist.destroy_process_group()
    return {"gathered": gathered, "summed": summed, "columns": columns, "rows": rows}


def delayed() -> float:
    """Seconds of an update that this rank waits for a slow network."""
    ranks = join()
    run = build_run(small_recipe(), ranks=ranks)
    run.collect()
    run.collect()
    link, waited = slow_link(), []

    def ring(nbytes: int, steps: int) -> None:
        # Each step of a ring moves the W-th part: W - 1 of them gather, twice as many sum.
        begin = time.perf_counter()
        time.sleep(link.latency * math.log2(ranks.size))
        for _ in range(steps):
            time.sleep(nbytes / ranks.size / (1e9 * link.gigabytes_per_second))
        waited.append(time.perf_counter() - begin)

    gather, reduce = dist.all_gather, dist.all_reduce

    def slow_gather(parts: list[Tensor], own: Tensor, **options: Any) -> None:
        gather(parts, own, **options)
        ring(sum(part.nbytes for part in parts), ranks.size - 1)

    def slow_reduce(tensor: Tensor, **options: Any) -> None:
        reduce(tensor, **options)
        ring(tensor.nbytes, 2 * (ranks.size - 1))

    dist.all_gather, dist.all_reduce = slow_gather, slow_reduce
    try:
        for _ in range(8):
            run.update()
    finally:
        dist.all_gather, dist.all_reduce = gather, reduce
    return sum(waited) / 8


def slow_link() -> Link:
    """One on which an update of this size takes a tenth of a second."""
    return Link(1e-3, 5e-3, "")


def test_a_thousand_fake_ranks_and_four_on_a_slow_network() -> None:
    (fake,), four = stages_on_ranks(Stage(1, f"{THIS}:of_a_thousand"), Stage(4, f"{THIS}:delayed"))
    recipe = small_recipe()
    predicted, found = traffic(recipe), fake.returned
    assert found["columns"] == 1 and found["rows"] == 2
    assert sum(found["gathered"]) == predicted.gathered
    # Every gradient begins at a multiple of 128 bytes.
    assert predicted.summed <= sum(found["summed"]) <= predicted.summed + 128 * 40
    assert len(found["gathered"]) + len(found["summed"]) == predicted.collectives
    conditions = Conditions(ranks=4, link=slow_link(), update=0.0, env_step=0.0)
    exchange = predict(recipe, conditions).exchange
    for rank in four:
        assert rank.status == 0
        # A sleep is never shorter, and on a busy machine longer, than it was asked to be.
        assert 0.99 * exchange < rank.returned < 2 * exchange


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--update-ms", "1", "--env-steps-per-second", "1e5"]
    assert main(["scale", "ant", "--set", "depth=64", "--ranks", "1", "8", *quick]) == 0
    told = capsys.readouterr().out
    assert "an update gathers 131,072 bytes" in told and "475 GB/s" in told
    assert main(["scale", "ant", "--link", "12.5", *quick]) == 0
    assert "12.5 GB/s; as given" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--ranks", "3"], "3 ranks: --num-envs is the total of all ranks"),
        (["--link", "string"], "--link 'string' is none of nvlink"),
        (["--link", "-4"], "--link"),
        (["--set", "depth"], "should be a name, an equals sign and values"),
    ],
)
def test_what_it_cannot_predict(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["scale", "ant", *flags]) != 0
    assert told in capsys.readouterr().err
