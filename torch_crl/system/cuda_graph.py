"""Run a function by replaying a CUDA graph of it: one launch in place of thousands."""

import gc
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Generator, Tensor
from torch.torch_version import TorchVersion

Function = Callable[..., dict[str, Tensor]]


class Recorder(Protocol):
    """Captures a function call once and replays it."""

    def warm_up(self, function: Function, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Call the function normally, on the stream where it will be captured."""

    def capture(self, function: Function, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Record the device work of `function(*inputs)` without executing it."""

    def replay(self) -> None:
        """Execute the recorded work on the tensors' current contents."""


_capturing = threading.local()
"""`recorder` is the one whose capture is under way in this thread, if there is one."""


def between_graphs(work: Callable[[], object]) -> None:
    """Do work that a CUDA graph cannot hold, such as an exchange with other processes.

    Inside a capture it is not done but noted: the graph ends, another one begins, and every replay
    does the work between the two. Not for what autograd calls, which has threads of its own.
    """
    recorder: CudaRecorder | None = getattr(_capturing, "recorder", None)
    if recorder is None:
        work()
    else:
        recorder.divide(work)


class CudaRecorder:
    """CUDA graphs that draw new random numbers at every replay; one, if nothing divides it."""

    def __init__(self, device: torch.device, generators: Iterable[Generator]) -> None:
        """`generators` are all generators that the function draws from."""
        self._device = device
        self._generators = list(generators)
        # Autograd runs a backward pass on its forward pass's streams: both warm up on this one.
        self._stream = torch.cuda.Stream(device)
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._between: list[Callable[[], object]] = []
        """What is done after each graph but the last."""
        self._open: torch.cuda.graph | None = None

    def warm_up(self, function: Function, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `Recorder`."""
        present = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(present)
        with torch.cuda.stream(self._stream):
            outputs = function(*inputs)
        present.wait_stream(self._stream)
        return outputs

    def capture(self, function: Function, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """See `Recorder`."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        # If a finaliser freed GPU memory during the capture, that would become part of the graph.
        gc.collect()
        gc.disable()
        _capturing.recorder = self
        try:
            with torch.cuda.device(self._device), self._one_graph_after_another():
                return function(*inputs)
        finally:
            _capturing.recorder = None
            gc.enable()

    @contextmanager
    def _one_graph_after_another(self) -> Iterator[None]:
        self._begin_graph()
        try:
            yield
        except BaseException as error:
            self._end_graph(error)
            raise
        self._end_graph()

    def _begin_graph(self) -> None:
        graph = torch.cuda.CUDAGraph()
        # From PyTorch 2.14 on a graph finds the generators that are used in it by itself.
        if TorchVersion(torch.__version__) < "2.14":
            for generator in self._generators:
                graph.register_generator_state(generator)
        # Replayed in the order of the capture, so that they may share memory.
        pool = self._graphs[0].pool() if self._graphs else None
        # "thread_local": other threads, such as the simulator's, may use CUDA meanwhile.
        self._open = torch.cuda.graph(
            graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"
        )
        self._open.__enter__()
        self._graphs.append(graph)

    def _end_graph(self, error: BaseException | None = None) -> None:
        assert self._open is not None
        open_graph, self._open = self._open, None
        open_graph.__exit__(type(error) if error else None, error, None)

    def divide(self, work: Callable[[], object]) -> None:
        """See `between_graphs`."""
        self._end_graph()
        self._between.append(work)
        self._begin_graph()

    def replay(self) -> None:
        """See `Recorder`."""
        first, *others = self._graphs
        first.replay()
        for work, graph in zip(self._between, others, strict=True):
            work()
            graph.replay()


class GraphedFunction:
    """`function(*inputs)`: called normally a few times, then captured and replayed.

    What a caller must know:

    - A capture holds addresses. Tensors that the function reads or writes may change their
      content but must stay where they are: update them with `copy_` and the like. `fixed()` lists
      those that matter; a call raises RuntimeError if one of them has moved.
    - Python runs only at the capture. Numbers, branches and prints inside the function are those
      of the capture; what changes from call to call must be a tensor.
    - `inputs` are copied into buffers of the capture. If their shape, dtype or device differs from
      those at the capture, the call raises ValueError.
    - The returned tensors belong to the capture: the next call overwrites them.
    - After a tensor was replaced on purpose, as by loading a checkpoint, call `reset`; the next
      calls warm up and capture again.

    Every call does the work: the warm-up calls execute it, and the call that captures also replays.
    """

    def __init__(
        self,
        function: Function,
        *,
        make_recorder: Callable[[], Recorder],
        fixed: Callable[[], dict[str, Tensor]],
        warmup: int = 3,
    ) -> None:
        """`warmup` normal calls let libraries allocate and Triton compile before the capture."""
        self._function = function
        self._make_recorder = make_recorder
        self._fixed = fixed
        self._warmup = warmup
        self.captures = 0
        self.reset()

    def reset(self) -> None:
        """Drop the capture."""
        self._calls = 0
        self._recorder: Recorder | None = None
        self._inputs: list[Tensor] = []
        self._outputs: dict[str, Tensor] = {}
        self._addresses: dict[str, int] = {}

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """The function's named tensors; read them before the next call, which overwrites them."""
        self._calls += 1
        recorder = self._recorder = self._recorder or self._make_recorder()
        if self._calls <= self._warmup:
            return recorder.warm_up(self._function, inputs)
        if self._calls == self._warmup + 1:
            self._capture(recorder, inputs)
        self._refuse_changes(inputs)
        for buffer, tensor in zip(self._inputs, inputs, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        recorder.replay()
        return self._outputs

    def _capture(self, recorder: Recorder, inputs: Sequence[Tensor]) -> None:
        self._inputs = [tensor.clone() for tensor in inputs]
        self._addresses = {name: tensor.data_ptr() for name, tensor in self._fixed().items()}
        self._outputs = recorder.capture(self._function, self._inputs)
        self.captures += 1

    def _refuse_changes(self, inputs: Sequence[Tensor]) -> None:
        expected, given = ([_kind(t) for t in tensors] for tensors in (self._inputs, inputs))
        if expected != given:
            raise ValueError(
                f"captured for inputs {', '.join(expected)}; got {', '.join(given)}. Call reset() "
                "to capture anew"
            )
        for name, tensor in self._fixed().items():
            if self._addresses.get(name) != tensor.data_ptr():
                raise RuntimeError(
                    f"{name} is not where it was when the graph was captured, so a replay would "
                    "use the old tensor; write into it with copy_, or call reset()"
                )


def _kind(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {tensor.dtype} on {tensor.device}"
