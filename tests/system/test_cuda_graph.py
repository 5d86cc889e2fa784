"""Capture and replay: on the CPU through a stand-in, on a GPU for real."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import ClassVar
from unittest.mock import MagicMock

import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.graph_stand_in import StandIn
from tests.helpers.recipes import tiny
from torch_crl.system.cuda_graph import CudaRecorder, GraphedFunction, between_graphs
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Counter:
    """Adds its input to a total that stays where it is."""

    def __init__(self) -> None:
        self.total = torch.zeros(2)
        self.graph = GraphedFunction(
            self.add,
            make_recorder=lambda: StandIn(torch.device("cpu"), []),
            fixed=lambda: {"total": self.total},
            warmup=2,
        )

    def add(self, x: Tensor) -> dict[str, Tensor]:
        self.total += x
        return {"total": self.total.clone()}


def test_every_call_counts_once() -> None:
    counter = Counter()
    totals = [counter.graph(torch.full((2,), 1.0))["total"].tolist() for _ in range(5)]
    assert totals == [[n, n] for n in (1, 2, 3, 4, 5)]
    assert counter.graph.captures == 1


def test_outputs_are_overwritten_by_the_next_replay() -> None:
    counter = Counter()
    for _ in range(3):
        output = counter.graph(torch.ones(2))["total"]
    counter.graph(torch.ones(2))
    assert output.tolist() == [4.0, 4.0]


@pytest.mark.parametrize("changed", [torch.ones(3), torch.ones(2, dtype=torch.float64)])
def test_other_inputs_are_refused(changed: Tensor) -> None:
    counter = Counter()
    for _ in range(3):
        counter.graph(torch.ones(2))
    with pytest.raises(ValueError, match=r"captured for inputs \[2\] torch.float32 on cpu; got"):
        counter.graph(changed)


def test_a_tensor_that_moved_is_refused_until_reset() -> None:
    counter = Counter()
    for _ in range(3):
        counter.graph(torch.ones(2))
    counter.total = torch.zeros(2)
    with pytest.raises(RuntimeError, match="total is not where it was"):
        counter.graph(torch.ones(2))
    counter.graph.reset()
    for n in range(1, 5):
        assert counter.graph(torch.ones(2))["total"].tolist() == [n, n]
    assert counter.graph.captures == 2


def collected(graph: str, device: str = "cpu", **options: object) -> CrlRun:
    """A run with data, which captures its updates or not."""
    recipe = tiny("ant", system={"device": device, "cuda_graph": graph})
    run = build_run(recipe, **options)  # type: ignore[arg-type]
    for _ in range(4):
        run.collect()
    return run


def assert_equal_after_updates(eager: CrlRun, graphed: CrlRun, *, updates: int) -> None:
    for _ in range(updates):
        expected = {name: float(value) for name, value in eager.update().items()}
        assert {name: float(value) for name, value in graphed.update().items()} == expected
        assert eager.update_sizes == graphed.update_sizes
    states = [run.learner.state_dict() for run in (eager, graphed)]
    for name, tensor in states[0].items():
        assert tensor.equal(states[1][name]), name


def test_replayed_updates_equal_eager_ones_bit_for_bit() -> None:
    graphed = collected("on", make_recorder=StandIn)
    assert_equal_after_updates(collected("off"), graphed, updates=10)
    assert graphed.update_graph is not None and graphed.update_graph.captures == 1
    assert graphed.updates_done >= graphed.updates_due and graphed.update_sizes
    act_graph = graphed.collector.act_graph
    assert act_graph is not None and act_graph.captures == 1


def test_loading_a_checkpoint_captures_again() -> None:
    graphed, eager = collected("on", make_recorder=StandIn), collected("off")
    for _ in range(6):
        graphed.update()
        eager.update()
    saved = eager.state_dict()
    for _ in range(3):
        graphed.update()
    graphed.load_state_dict(*saved)
    assert_equal_after_updates(eager, graphed, updates=6)
    assert graphed.update_graph is not None and graphed.update_graph.captures == 2
    graphed.collect()
    eager.collect()
    assert_equal_after_updates(eager, graphed, updates=2)


class FakeGraph:
    """Stands for a CUDA graph: what is called while one is open belongs to it."""

    all: ClassVar[list["FakeGraph"]] = []

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.generators: list[object] = []
        FakeGraph.all.append(self)

    def register_generator_state(self, generator: object) -> None:
        self.generators.append(generator)

    def pool(self) -> str:
        return "the first graph's"

    def replay(self) -> None:
        done.extend(self.calls)


done: list[str] = []


@pytest.mark.parametrize("version", ["2.11.0", "2.13.1+cu130", "2.14.0"])
def test_work_that_no_graph_can_hold_divides_a_capture(
    version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    opened: list[FakeGraph] = []
    pools: list[object] = []

    @contextmanager
    def capture(graph: FakeGraph, *, pool: object, **_: object) -> Iterator[None]:
        assert not opened
        opened.append(graph)
        pools.append(pool)
        try:
            yield
        finally:
            assert opened.pop() is graph

    FakeGraph.all.clear()
    done.clear()
    for name, fake in (("CUDAGraph", FakeGraph), ("graph", capture), ("Stream", MagicMock())):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    generator = Generator()
    recorder = CudaRecorder(torch.device("cuda"), [generator])

    def work(name: str) -> None:
        (opened[-1].calls if opened else done).append(name)

    def function() -> dict[str, Tensor]:
        work("towers")
        between_graphs(lambda: work("gather"))
        work("losses")
        between_graphs(lambda: work("sum"))
        work("Adam")
        return {}

    recorder.capture(function, [])
    # Nothing is done during the capture, and all of it in order at each replay.
    assert done == []
    recorder.replay()
    recorder.replay()
    assert done == 2 * ["towers", "gather", "losses", "sum", "Adam"]
    assert [graph.calls for graph in FakeGraph.all] == [["towers"], ["losses"], ["Adam"]]
    assert pools == [None, "the first graph's", "the first graph's"]
    # What newer versions do by themselves they warn of.
    registered = [] if version == "2.14.0" else [generator]
    assert all(graph.generators == registered for graph in FakeGraph.all)
    # Outside of a capture it is done at once, also after one that failed.
    with pytest.raises(ZeroDivisionError):
        recorder.capture(lambda: {"x": torch.zeros(1 // 0)}, [])
    assert not opened
    between_graphs(lambda: work("eager"))
    assert done[-1] == "eager"


@pytest.mark.gpu
@needs_cuda
def test_captured_updates_equal_eager_ones_on_the_gpu() -> None:
    eager, graphed = (collected(graph, "cuda") for graph in ("off", "on"))
    for _ in range(10):
        expected, got = eager.update(), graphed.update()
        for name, value in expected.items():
            assert float(got[name]) == pytest.approx(float(value), rel=1e-3, abs=1e-3), name
    for name, value in eager.update_sizes.items():
        assert float(graphed.update_sizes[name]) == pytest.approx(float(value), rel=1e-2), name
    assert graphed.update_graph is not None and graphed.update_graph.captures == 1
    ours, theirs = (run.learner.named_parameters() for run in (graphed, eager))
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@needs_cuda
def test_random_numbers_go_on_from_replay_to_replay() -> None:
    generator = Generator("cuda").manual_seed(0)
    graph = GraphedFunction(
        lambda: {"draw": torch.rand(4, generator=generator, device="cuda")},
        make_recorder=lambda: CudaRecorder(torch.device("cuda"), [generator]),
        fixed=dict,
        warmup=1,
    )
    draws = {tuple(graph()["draw"].tolist()) for _ in range(6)}
    assert len(draws) == 6


@pytest.mark.gpu
@needs_cuda
@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
def test_updates_never_wait_for_the_device() -> None:
    run = collected("on", "cuda")
    for _ in range(5):
        run.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            run.update()
    finally:
        torch.cuda.set_sync_debug_mode("default")
