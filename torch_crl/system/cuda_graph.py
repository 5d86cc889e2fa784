"""Run a function by replaying one capture of it: a single launch in place of thousands."""

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import torch
from torch import Generator, Tensor

Function = Callable[..., dict[str, Tensor]]


class Recorder(Protocol):
    """Captures a call once and repeats it."""

    def warm_up(self, function: Function, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Call the function where it will be captured."""

    def capture(self, function: Function, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """Record what `function(*inputs)` does on the device, without doing it."""

    def replay(self) -> None:
        """Do it again, on what the tensors hold now."""


class CudaRecorder:
    """A `torch.cuda.CUDAGraph` whose random numbers go on from replay to replay."""

    def __init__(self, device: torch.device, generators: Iterable[Generator]) -> None:
        """`generators` are all that the function draws from."""
        self._device = device
        # Autograd runs a backward on the streams of its forward, so both warm up on this one.
        self._stream = torch.cuda.Stream(device)
        self._graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self._graph.register_generator_state(generator)

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
        # A finaliser that frees GPU memory in the middle of it would become part of the graph.
        gc.collect()
        gc.disable()
        try:
            # Other threads, such as the simulator's, may go on with what they do.
            with (
                torch.cuda.device(self._device),
                torch.cuda.graph(
                    self._graph, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                return function(*inputs)
        finally:
            gc.enable()

    def replay(self) -> None:
        """See `Recorder`."""
        self._graph.replay()


class GraphedFunction:
    """`function(*inputs)`, called as it is a few times, then captured and replayed.

    What a caller must know:

    - A capture holds addresses. Tensors that the function reads or writes may change their
      content and must stay where they are: update with `copy_` and the like. `fixed()` lists
      those that matter; a call raises RuntimeError if one has moved.
    - Python ran once. Numbers, branches and prints inside the function are those of the capture;
      what changes from call to call must be a tensor.
    - `inputs` are copied into buffers of the capture. Others than at the first call, by shape,
      dtype or device, raise ValueError.
    - The returned tensors belong to the capture: the next call overwrites them.
    - After anything was rebound on purpose (a checkpoint loaded, say) call `reset`; the next
      calls warm up and capture again.

    Every call counts: the warm-up calls are real ones, and the call that captures also replays.
    """

    def __init__(
        self,
        function: Function,
        *,
        make_recorder: Callable[[], Recorder],
        fixed: Callable[[], dict[str, Tensor]],
        warmup: int = 3,
    ) -> None:
        """`warmup` calls let libraries allocate and Triton compile before the capture."""
        self._function = function
        self._make_recorder = make_recorder
        self._fixed = fixed
        self._warmup = warmup
        self.captures = 0
        self.reset()

    def reset(self) -> None:
        """Forget the capture."""
        self._calls = 0
        self._recorder: Recorder | None = None
        self._inputs: list[Tensor] = []
        self._outputs: dict[str, Tensor] = {}
        self._addresses: dict[str, int] = {}

    def __call__(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Named tensors, to be read before the next call."""
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
