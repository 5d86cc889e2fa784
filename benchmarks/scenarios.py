"""Scenarios to measure, and how each kind is run. Updates have the sizes of `ant`.

update      one gradient update, from random indices to new parameters
floor       what an update cannot be faster than here: its matmuls and Adam's memory traffic
profile     the kernels of an update by time, on CUDA
baseline    one gradient update of SAC or PPO by Stable-Baselines3, with our towers
act         the sampling policy for all envs
env         one control step of all envs, physics and resets
collect     whole collections: acting, physics, writing into the replay buffer
kernels     the parts of an update on their own, and the tiles that the tower can run with
end_to_end  collections and their updates as `torch-crl train` makes them, without evaluations
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor

from torch_crl.benchmarks.kernels import kernel_rows
from torch_crl.benchmarks.peers.eager_torch import EagerCrl
from torch_crl.benchmarks.replays import profiled
from torch_crl.benchmarks.scenario import Row as Row
from torch_crl.benchmarks.scenario import Scenario as Scenario
from torch_crl.benchmarks.timing import Timing, time_calls
from torch_crl.distributed.ranks import ALONE, Ranks, group_of_one
from torch_crl.experience.collector import Collector
from torch_crl.experience.replay import Transition
from torch_crl.recipe.compute_choice import choose_compute
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.system.devices import resolve_device
from torch_crl.system.threads import torch_threads
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun

STATE, GOAL, ACTION = 29, 2, 8


def quick(*, depths: Sequence[int] = (4, 16, 64), batch: int = 256) -> list[Scenario]:
    """The scenarios of `torch-crl bench`: they take a minute on two cores, less on a GPU."""
    updates = [
        Scenario(kind="update", depth=depth, implementation=implementation, batch=batch)
        for depth in depths
        for implementation in ("ours", "eager_torch")
    ]
    floors = [Scenario(kind="floor", depth=depth, batch=batch) for depth in depths]
    return [*updates, *floors, Scenario(kind="act"), Scenario(kind="env")]


def run_scenario(scenario: Scenario, *, device: str = "auto") -> list[Row]:
    """Rows of results; if the GPU's memory is too small, a single row with `out_of_memory`."""
    resolved = resolve_device(device)
    if resolved.type == "cuda":
        free_cuda_memory()
        torch.cuda.reset_peak_memory_stats(resolved)
    described = {key: value for key, value in asdict(scenario).items() if key != "seconds"}
    try:
        rows = RUNNERS[scenario.kind](scenario, resolved)
    except torch.cuda.OutOfMemoryError:
        return [described | {"device": str(resolved), "out_of_memory": True}]
    if resolved.type == "cuda":
        peak = torch.cuda.max_memory_allocated(resolved) / 1e9
        rows = [{"peak_gb": peak} | row for row in rows]
    return [described | {"device": str(resolved)} | row for row in rows]


def free_cuda_memory() -> None:
    """Free what earlier runs of this process hold."""
    # A run and its CUDA graphs refer to each other.
    gc.collect()
    # Each stream that a graph was captured on has a workspace of 32 MiB.
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()


def recipe_of(scenario: Scenario, device: torch.device) -> Recipe:
    """The preset of the task with the sizes and the system of a scenario."""
    return with_changes(
        preset(scenario.task, depth=scenario.depth),
        task={"num_envs": scenario.envs},
        networks={"width": scenario.width, "block": scenario.block},
        algorithm={"batch_size": scenario.batch, "objective": scenario.objective},
        budget={"replay_rows": 200},
        system={
            "device": str(device),
            "simulator": scenario.simulator,
            "overlap": scenario.overlap,
            "precision": scenario.precision,
            "tower": scenario.tower,
            "cuda_graph": scenario.cuda_graph,
            "recompute": scenario.recompute,
        },
    )


def random_run(recipe: Recipe, ranks: Ranks = ALONE) -> CrlRun:
    """A run whose replay is full of random steps, so that no simulator has to fill it."""
    run = build_run(recipe, ranks=ranks)
    generator = Generator(run.learner.device).manual_seed(0)

    def draw(size: int) -> Tensor:
        shape = (recipe.task.num_envs, size)
        return torch.randn(shape, generator=generator, device=run.learner.device)

    trajectory = torch.zeros(recipe.task.num_envs, dtype=torch.int32, device=run.learner.device)
    for _ in range(recipe.budget.replay_rows):
        run.replay.add(
            Transition(
                state=draw(STATE),
                action=draw(ACTION).tanh(),
                achieved=draw(GOAL),
                trajectory=trajectory,
                unstable=torch.zeros_like(trajectory, dtype=torch.bool),
            )
        )
    return run


def _update(scenario: Scenario, device: torch.device) -> list[Row]:
    recipe = recipe_of(scenario, device)
    if scenario.implementation == "jax":
        timing, extra = _jax_update(scenario, device)
    elif scenario.implementation in ("ours", "one_rank"):
        in_pieces = scenario.implementation == "one_rank"
        run = random_run(recipe, group_of_one(device) if in_pieces else ALONE)
        extra = {"compute": str(run.learner.actor.compute)}
        # Covers the three warm-up calls of the CUDA graph and the call that captures it.
        timing = time_calls(run.update, device=device, seconds=scenario.seconds, warmup=5)
    else:
        timing, extra = _torch_update(scenario, device)
    cost = recipe.update_cost
    rate = {"tflop_per_second": cost.flop / timing.p50 / 1e9, "parameters": cost.parameters}
    return [timing.row() | rate | extra]


# Adam reads a parameter, its gradient and two moments and writes all but the gradient, in fp32.
_ADAM_BYTES = 28
_COPIED_NUMBERS = 2**24
_MOST_FLOOR_LAYERS = 64


def _floor(scenario: Scenario, device: torch.device) -> list[Row]:
    """Matmuls of the hidden layers' shapes, and a copy of 64 MB, at the rates measured here.

    Each layer has memory of its own, as in an update, where little stays in a cache until it is
    used again. The matmuls of the first and the last layers are taken to be as fast as those of
    hidden ones.
    """
    recipe = recipe_of(scenario, device)
    cost = recipe.update_cost
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    # On a GPU always as many, since a few products do not fill it.
    layers = _MOST_FLOOR_LAYERS
    if device.type != "cuda":
        layers = min(scenario.depth, layers)
    x_LBD, weight_LDD = (
        torch.randn(layers, rows, scenario.width, device=device, dtype=dtype)
        for rows in (scenario.batch, scenario.width)
    )
    source = torch.randn(_COPIED_NUMBERS, device=device)
    target = torch.empty_like(source)

    def products() -> None:
        """Forward, and the gradients of input and weight."""
        if device.type == "cuda":
            # Together, since a single one is too small for a GPU, and a chain of them no floor.
            _ = x_LBD @ weight_LDD.mT, x_LBD @ weight_LDD, x_LBD.mT @ x_LBD
            return
        for x_BD, weight_DD in zip(x_LBD, weight_LDD, strict=True):
            _ = x_BD @ weight_DD.T, x_BD @ weight_DD, x_BD.T @ x_BD

    seconds = scenario.seconds / 2
    run_products: Callable[[], object] = products
    if device.type == "cuda":
        # As one graph, since the host takes longer to launch small products than they take.
        run_products = _captured(products)
    elif choose_compute(recipe).tower == "numba":
        # Imported here, so that numba is needed only where it is installed.
        from torch_crl.benchmarks.compiled_products import products_of_layers

        run_products = products_of_layers(x_LBD, weight_LDD)
    of_products = time_calls(run_products, device=device, seconds=seconds).p50
    of_copy = time_calls(lambda: target.copy_(source), device=device, seconds=seconds).p50
    flop = 6 * layers * scenario.batch * scenario.width**2
    bytes_per_ms = 2 * source.nbytes / of_copy
    milliseconds = of_products * cost.flop / flop + _ADAM_BYTES * cost.parameters / bytes_per_ms
    return [
        Timing(milliseconds, milliseconds, milliseconds).row()
        | {"tflop_per_second": flop / of_products / 1e9, "copy_gb_per_second": bytes_per_ms / 1e6}
        | {"compute": str(dtype).removeprefix("torch.")}
    ]


def _captured(function: Callable[[], object]) -> Callable[[], object]:
    """The function as a replay of a CUDA graph."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    # Libraries take their memory at the first calls, which must not be captured.
    with torch.cuda.stream(aside):
        function()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def _peer_sizes(scenario: Scenario) -> dict[str, Any]:
    sizes = {"state_size": STATE, "goal_size": GOAL, "action_size": ACTION}
    return sizes | {"width": scenario.width, "depth": scenario.depth}


def _torch_update(scenario: Scenario, device: torch.device) -> tuple[Timing, Row]:
    compiled = scenario.implementation == "compiled_torch"
    peer = EagerCrl(**_peer_sizes(scenario), device=device, compiled=compiled)
    generator = Generator(device).manual_seed(0)
    state, action, goal = (
        torch.randn(scenario.batch, size, generator=generator, device=device)
        for size in (STATE, ACTION, GOAL)
    )
    automatic = "tf32" if device.type == "cuda" else "fp32"
    precision = automatic if scenario.precision == "auto" else scenario.precision
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    try:
        timing = time_calls(
            lambda: peer.update(state, action.tanh(), goal), device=device, seconds=scenario.seconds
        )
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return timing, {"compute": precision}


def _jax_update(scenario: Scenario, device: torch.device) -> tuple[Timing, Row]:
    # Imported here, so that JAX is needed only where it is measured.
    from torch_crl.benchmarks.peers.jax_crl import JaxCrl, backend, peak_bytes

    if device.type == "cuda" and backend() != "gpu":
        raise RuntimeError(f"JAX runs on {backend()}, and not on the GPU")
    precision = {"auto": "tf32"}.get(scenario.precision, scenario.precision)
    peer = JaxCrl(**_peer_sizes(scenario), batch_size=scenario.batch, precision=precision)
    updates = max(4, 2048 // scenario.depth)
    peak_before = peak_bytes()
    compile_seconds = peer.compile(updates)
    timing = time_calls(
        lambda: peer.run(updates),
        device=device,
        seconds=scenario.seconds,
        units=updates,
        warmup=1,
        wall_clock=True,
    )
    extra: Row = peer.describe() | {"compute": precision, "compile_seconds": compile_seconds}
    peak = peak_bytes()
    if peak is not None:
        # It is the peak of the whole process, which an earlier scenario may have reached.
        extra["peak_gb"] = peak / 1e9 if peak != peak_before else None
    return timing, extra


def _profile(scenario: Scenario, device: torch.device) -> list[Row]:
    run = random_run(recipe_of(scenario, device))
    return [row | {"compute": str(run.learner.actor.compute)} for row in profiled(run.update)]


# As many rows are collected as a batch has, so that PPO passes over one batch in each epoch.
_BASELINE_ENVS, _BASELINE_UPDATES = 64, 16


def _baseline(scenario: Scenario, device: torch.device) -> list[Row]:
    # Imported here, since the library is an extra.
    from torch_crl.baselines.run import build_baseline

    recipe = with_changes(
        preset(scenario.task, depth=scenario.depth, algo=scenario.implementation),
        task={"num_envs": _BASELINE_ENVS},
        networks={"width": scenario.width, "block": scenario.block},
        algorithm={"batch_size": scenario.batch},
        budget={
            "unroll_length": scenario.batch // _BASELINE_ENVS,
            "env_steps_per_update": scenario.batch / _BASELINE_UPDATES,
        },
        system={"device": str(device), "precision": scenario.precision},
    )
    run = build_baseline(recipe)
    run.collect()
    train: Callable[..., object] = run.model.train
    if scenario.implementation == "sac":
        train = partial(train, gradient_steps=_BASELINE_UPDATES, batch_size=scenario.batch)
    timing = time_calls(
        train, device=device, seconds=scenario.seconds, units=_BASELINE_UPDATES, wall_clock=True
    )
    run.close()
    return [timing.row() | {"compute": run.description}]


def _act(scenario: Scenario, device: torch.device) -> list[Row]:
    run = random_run(recipe_of(scenario, device))
    collector = run.collector
    assert isinstance(collector, Collector), "no overlap where only actions are timed"
    inputs = torch.randn(scenario.envs, STATE + GOAL, device=device)
    with torch.no_grad():
        timing = time_calls(
            lambda: (collector.act_graph or collector.act)(inputs),
            device=device,
            seconds=scenario.seconds,
            warmup=5,
        )
    rate = {"actions_per_second": 1e3 * scenario.envs / timing.p50}
    return [timing.row() | rate | {"compute": str(collector.actor.compute)}]


def _env(scenario: Scenario, device: torch.device) -> list[Row]:
    env = build_run(recipe_of(scenario, device)).collector.env
    action = torch.rand(scenario.envs, ACTION, generator=Generator().manual_seed(0)) * 2 - 1
    with torch_threads(1):
        timing = time_calls(
            lambda: env.step(action), device=torch.device("cpu"), seconds=scenario.seconds
        )
    return [timing.row() | {"env_steps_per_second": 1e3 * scenario.envs / timing.p50}]


def _collect(scenario: Scenario, device: torch.device) -> list[Row]:
    run = build_run(recipe_of(scenario, device))
    # The first collection compiles kernels and captures the CUDA graph.
    run.collect()
    timing = time_calls(
        run.collect, device=device, seconds=scenario.seconds, warmup=1, wall_clock=True
    )
    run.collector.env.check()
    return [
        timing.row()
        | {"env_steps_per_second": 1e3 * run.recipe.steps_per_collection / timing.p50}
        | {"compute": str(run.learner.actor.compute)}
    ]


def _end_to_end(scenario: Scenario, device: torch.device) -> list[Row]:
    run = build_run(recipe_of(scenario, device))
    recipe = run.recipe
    seconds: dict[str, list[float]] = {"collect": [], "update": []}
    for collection in range(recipe.prefill_collections + 3):
        begin = time.perf_counter()
        run.collect()
        run.collect_ahead()
        middle = time.perf_counter()
        while run.updates_done < run.updates_due:
            metrics = run.update()
        if run.updates_done:
            float(metrics["critic_loss"])
        # The first collection with updates also captures the update's CUDA graph.
        if collection > recipe.prefill_collections:
            seconds["collect"].append(middle - begin)
            seconds["update"].append(time.perf_counter() - middle)
    collect, update = (statistics.median(values) for values in seconds.values())
    return [
        {
            "env_steps_per_second": recipe.steps_per_collection / (collect + update),
            "collect_seconds": collect,
            "update_seconds": update,
            "updates": recipe.updates_per_collection,
            "compute": str(run.learner.actor.compute),
        }
    ]


RUNNERS: dict[str, Callable[[Scenario, torch.device], list[Row]]] = {
    "update": _update,
    "floor": _floor,
    "profile": _profile,
    "baseline": _baseline,
    "act": _act,
    "env": _env,
    "collect": _collect,
    "kernels": kernel_rows,
    "end_to_end": _end_to_end,
}
