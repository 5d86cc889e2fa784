"""What only a CUDA device can show; skipped where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.drawing import draws
from tests.helpers.ranks import Loopback
from tests.helpers.recipes import tiny, tiny_baseline
from torch_crl import load_policy
from torch_crl.distributed.ranks import ALONE
from torch_crl.encoders import trust_encoder
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.recipe.presets import with_changes
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun
from torch_crl.training.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_run_on_the_gpu_resumes_and_its_policy_loads_on_the_cpu(tmp_path: Path) -> None:
    recipe = tiny("ant", system={"device": "cuda"}, budget={"checkpoints": 4})
    train(recipe, tmp_path / "run", show=False)
    train(recipe, tmp_path / "run", resume=True, show=False)
    action = load_policy(tmp_path / "run")(torch.zeros(3, 29), torch.zeros(3, 2))
    assert action.device.type == "cpu" and action.isfinite().all()


@pytest.mark.parametrize("algo", ["gcbc", "ppo", "sac_her", "td3"])
@pytest.mark.parametrize("width", [16, 128])
def test_towers_of_other_algorithms_train_on_the_gpu(algo: str, width: int, tmp_path: Path) -> None:
    # Width 128 takes the persistent kernel, other widths one kernel a layer.
    if algo != "gcbc":
        pytest.importorskip("stable_baselines3")
    device = {"device": "cuda", "torch_threads": 1}
    recipe = tiny_baseline(algo, depth=4, networks={"width": width}, system=device)
    check(recipe)
    train(recipe, tmp_path / "run", show=False)
    action = load_policy(tmp_path / "run")(torch.zeros(3, 10), torch.zeros(3, 3))
    assert action.isfinite().all()


def test_replay_networks_and_optimiser_live_on_the_gpu() -> None:
    run = build_run(tiny("ant", system={"device": "cuda"}))
    for _ in range(4):
        run.collect()
    run.update()
    tensors = [*run.replay.state_dict().values(), *run.learner.named_parameters().values()]
    # The position of the ring is a number of the host.
    assert {tensor.device.type for tensor in tensors if tensor.dim()} == {"cuda"}


def first_losses(system: dict[str, Any]) -> dict[str, float]:
    """Of one update on a batch and with weights that do not depend on the device."""
    recipe = tiny(
        "ant",
        networks={"width": 128, "actor_depth": 8, "critic_depth": 8},
        algorithm={"batch_size": 32},
        system=system,
    )
    # The same data for all: collected in plain torch, whatever is tested.
    plain = {"device": "cpu", "tower": "reference", "precision": "fp32", "recompute": 0}
    run, on_cpu = build_run(recipe), build_run(with_changes(recipe, system=plain))
    for _ in range(4):
        on_cpu.collect()
    batch = on_cpu.replay.sample(32, discount=0.99, generator=on_cpu.sampler)
    metrics = run.learner.update(batch.to(run.learner.device))
    # The actor's noise differs between devices, so compare what is free of it.
    return {name: float(metrics[name]) for name in ("critic_loss", "contrastive_loss", "logsumexp")}


@pytest.mark.parametrize(
    ("system", "tolerance"),
    [
        ({"precision": "fp32", "tower": "reference"}, 1e-4),
        ({"precision": "fp32", "tower": "norm_act"}, 1e-4),
        ({"precision": "tf32", "tower": "norm_act"}, 1e-2),
        ({"precision": "fp16", "tower": "persistent"}, 1e-2),
        ({"precision": "bf16", "tower": "persistent"}, 5e-2),
        ({"precision": "fp16", "tower": "persistent", "recompute": 4}, 1e-2),
    ],
)
def test_updates_on_the_gpu_equal_those_on_the_cpu(
    system: dict[str, Any], tolerance: float
) -> None:
    expected = first_losses({"device": "cpu"})
    for name, value in first_losses({"device": "cuda"} | system).items():
        assert value == pytest.approx(expected[name], rel=tolerance), name


def updates_are_captured(run: CrlRun) -> None:
    """Of a run that has not begun: six updates are one capture, and their metrics are finite."""
    for _ in range(4):
        run.collect()
    for _ in range(6):
        metrics = run.update()
    assert run.update_graph is not None and run.update_graph.captures == 1
    assert all(value.isfinite() for value in metrics.values())


@pytest.mark.parametrize("tower", ["reference", "norm_act", "persistent"])
def test_activations_can_be_computed_again_inside_a_graph(tower: str) -> None:
    run = build_run(
        tiny(
            "ant",
            networks={"width": 128, "actor_depth": 8, "critic_depth": 8},
            system={"device": "cuda", "tower": tower, "recompute": 4},
        )
    )
    updates_are_captured(run)


@pytest.mark.parametrize("order", ["together", "critic_first"])
@pytest.mark.parametrize("objective", ["crl", "safe", "survival", "chrono"])
def test_every_objective_is_captured_with_its_labels(objective: str, order: str) -> None:
    algorithm = {"objective": objective, "update_order": order, "chunk": 2}
    algorithm |= {"contrastive_loss": "symmetric_info_nce", "actor_goals": "mixed"}
    device = {"device": "cuda"}
    run = build_run(tiny("ant", networks={"width": 128}, algorithm=algorithm, system=device))
    updates_are_captured(run)
    run.collect()


@pytest.mark.parametrize("block", ["shared", "gated", "pre_norm"])
def test_other_blocks_are_captured(block: str) -> None:
    networks = {"width": 128, "block": block, "actor_depth": 8, "critic_depth": 8}
    run = build_run(tiny("ant", networks=networks, system={"device": "cuda", "recompute": 4}))
    updates_are_captured(run)


@pytest.mark.parametrize("actor_block", ["same", "moe"])
@pytest.mark.parametrize("goals", ["words", pytest.param("pictures", marks=draws)])
def test_goals_of_other_spaces_and_mixtures_are_captured(goals: str, actor_block: str) -> None:
    encoder = "tests.helpers.encoders:plain"
    trust_encoder(encoder)
    space = {"goals": goals, "encoder": encoder, "goal_features": 8}
    if goals == "pictures":
        space |= {"picture_every": 5, "picture_size": 64}
    networks = {"width": 128, "actor_block": actor_block}
    run = build_run(tiny("reacher", networks=networks, goal_space=space, system={"device": "cuda"}))
    updates_are_captured(run)
    # The graph draws from what was collected after its capture, too.
    run.collect()
    run.update()
    assert run.update_graph is not None and run.update_graph.captures == 1


def test_a_run_chooses_the_persistent_kernel_and_a_graph() -> None:
    run = build_run(tiny("ant", networks={"width": 128}, system={"device": "cuda"}))
    compute = run.learner.actor.compute
    assert (compute.tower, compute.precision, compute.cuda_graph) == ("persistent", "fp16", True)
    wider = build_run(tiny("ant", networks={"width": 64}, system={"device": "cuda"}))
    assert wider.learner.actor.compute.tower == "norm_act"


def test_what_the_persistent_kernel_cannot_do_is_refused() -> None:
    for part, value in (("networks", {"width": 64}), ("system", {"precision": "fp32"})):
        recipe = with_changes(
            tiny("ant", networks={"width": 128}, system={"device": "cuda", "tower": "persistent"}),
            **{part: value},
        )
        with pytest.raises(RecipeError, match="--tower persistent is for"):
            check(recipe)


def collected(graph: str, task: str) -> Any:
    pytest.importorskip("mujoco_warp")
    system = {"device": "cuda", "simulator": "warp", "cuda_graph": graph}
    run = build_run(tiny(task, system=system))
    for _ in range(3):
        run.collect()
    return run


@pytest.mark.parametrize("task", ["reacher", "ant_u_maze", "humanoid"])
def test_a_captured_collection_equals_an_eager_one(task: str) -> None:
    eager, graphed = collected("off", task), collected("on", task)
    assert graphed.collector.step_graph.captures == 1
    for name, tensor in eager.replay.tensors().items():
        # Atomic sums are made in any order, and contacts make differences large.
        steps = 6 if task != "reacher" else len(tensor)
        expected, got = (t[:steps].double() for t in (tensor, graphed.replay.tensors()[name]))
        torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_a_captured_collection_never_waits_and_its_episodes_differ() -> None:
    run = collected("on", "ant")
    env = run.collector.env
    goals = env.goal_NG.clone()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(run.recipe.task.episode_length + 1):
            run.collector.step_graph()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (env.goal_NG != goals).any(-1).all()
    assert env.state_NS.isfinite().all()
    env.check()


@pytest.mark.parametrize("system", [{"simulator": "warp"}, {"overlap": "on"}])
def test_physics_on_the_gpu_or_beside_it_trains_and_resumes(
    system: dict[str, Any], tmp_path: Path
) -> None:
    if "simulator" in system:
        pytest.importorskip("mujoco_warp")
    recipe = tiny("ant", system={"device": "cuda", **system}, budget={"checkpoints": 2})
    result = train(recipe, tmp_path / "run", show=False)
    again = train(recipe, tmp_path / "run", resume=True, show=False)
    assert again.evaluation == result.evaluation


@pytest.mark.parametrize("depth", [4, 8])
def test_an_update_divided_at_its_exchanges_equals_the_whole_one(depth: int) -> None:
    recipe = tiny("ant", networks={"width": 128, "actor_depth": depth, "critic_depth": depth})
    recipe = with_changes(recipe, system={"device": "cuda"}, algorithm={"chunk": 2})
    found = []
    for ranks in (ALONE, Loopback()):
        run = build_run(recipe, ranks=ranks)
        while not run.updates_due:
            run.collect()
        for _ in range(12):
            run.update()
        recorder = run.update_graph._recorder  # type: ignore[union-attr]
        assert len(recorder._graphs) == (1 if ranks is ALONE else 4)  # type: ignore[union-attr]
        found.append({name: x.detach().clone() for name, x in run.named_parameters().items()})
        run.close()
    for name, whole in found[0].items():
        torch.testing.assert_close(found[1][name], whole, rtol=1e-3, atol=1e-5)
