"""Runs a Gluon kernel for Hopper on the CPU, program by program, on torch tensors.

Gluon has no interpreter. Here its functions run as the Python that they are, with `gl` replaced by
torch: layouts say where numbers are and change none, so they are ignored; their agreement is the
compiler's to check. The warps of a program that do different work are threads, of which one runs
until it has to wait; then the first in a chosen order goes on. What runs beside them is as late as
can be: a copy to shared memory fills its target with NaN and arrives when somebody waits for it,
products read when they are waited for, and a copy from there has to find the same numbers then as
when it was started. Where all wait for each other, the model says so. The barriers
 between the warps of one kind of work are the compiler's to check.
"""

import inspect
import itertools
import threading
from collections.abc import Callable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Pointer:
    """Addresses of elements of a tensor."""

    def __init__(self, flat: Tensor, offset: Tensor) -> None:
        self.flat, self.offset = flat, offset

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.flat, self.offset + other)

    def __sub__(self, other: Any) -> "Pointer":
        return Pointer(self.flat, self.offset - other)

    def load(self) -> Tensor:
        return self.flat[self._inside()]

    def store(self, value: Tensor) -> None:
        self.flat[self._inside()] = value.expand(self.offset.shape)

    def _inside(self) -> Tensor:
        assert ((self.offset >= 0) & (self.offset < len(self.flat))).all(), "outside of the tensor"
        return self.offset


class Descriptor:
    """Rows in memory."""

    def __init__(self, given: Any) -> None:
        self.rows = torch.as_strided(given.base, given.shape, given.strides)
        self.block, self.dtype, self.layout = given.block_shape, given.base.dtype, given.layout

    def part(self, place: Sequence[Any]) -> Tensor:
        row, column = map(int, place)
        part = self.rows[row : row + self.block[0], column : column + self.block[1]]
        assert list(part.shape) == list(self.block), "outside of the tensor"
        return part


class Shared:
    """A buffer in shared memory or a part of it, and what of the buffer awaits a fence."""

    def __init__(self, data: Tensor, unfenced: list[Tensor]) -> None:
        self.data, self.dtype, self.unfenced = data, data.dtype, unfenced

    def index(self, i: Any) -> "Shared":
        return Shared(self.data[int(i)], self.unfenced)

    def slice(self, start: int, length: int, dim: int) -> "Shared":
        return Shared(self.data.narrow(dim, start, length), self.unfenced)

    def permute(self, axes: Sequence[int]) -> "Shared":
        return Shared(self.data.permute(*axes), self.unfenced)

    def store(self, value: Tensor) -> None:
        self.data.copy_(value)
        self.unfenced.append(self.data)

    def load(self, _layout: object) -> Tensor:
        return self.data.clone()

    def read_by_engines(self) -> Tensor:
        """For the matrix unit and the copy engine, which see what was written before a fence."""
        assert not any(map(self._overlaps, self.unfenced)), "read without a fence"
        return self.data

    def _overlaps(self, other: Tensor) -> bool:
        (start, stop), (other_start, other_stop) = _extent(self.data), _extent(other)
        return start < other_stop and other_start < stop


def _extent(x: Tensor) -> tuple[int, int]:
    last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
    return x.storage_offset(), x.storage_offset() + last + 1


class Barrier:
    """An mbarrier: a phase ends when `count` have arrived and all expected bytes are there."""

    def __init__(self, count: int) -> None:
        self.count = self.missing = count
        self.phase, self.bytes = 0, 0
        self.copies: list[Callable[[], int]] = []

    def arrive(self, expected: int = 0) -> None:
        assert self.missing > 0, "too many arrivals"
        self.missing -= 1
        self.bytes += expected
        self._end()

    def passed(self, phase: int) -> bool:
        while self.copies:
            self.bytes -= self.copies.pop(0)()
        self._end()
        return self.phase % 2 != phase

    def _end(self) -> None:
        if self.missing == 0 and self.bytes == 0 and not self.copies:
            self.phase += 1
            self.missing = self.count


class Machine:
    """What `gl` and its Hopper part have, for one program at a time."""

    def __init__(self, order: Sequence[int]) -> None:
        self.order, self.ids = order, (0, 0, 0)
        self.threads: list[_Thread] = []

    def begin(self, ids: tuple[int, ...]) -> None:
        self.ids = ids
        self.barriers: dict[int, Barrier] = {}
        self.buffers: list[Shared] = []
        self.stores: dict[int, list[Callable[[], None]]] = {}

    def end(self) -> None:
        for barrier in self.barriers.values():
            assert not barrier.copies, "a copy that nobody waited for"
        assert not any(self.stores.values()), "a result that nobody waited for"

    def names(self) -> dict[str, Any]:
        """Those that a kernel's module imports from Gluon."""
        language = SimpleNamespace(
            load=Pointer.load,
            store=Pointer.store,
            reduce=_sum_both,
            sum=lambda x, axis: x.sum(axis),
            program_id=lambda axis: self.ids[axis],
            arange=lambda start, stop, _layout: torch.arange(start, stop),
            zeros=lambda shape, dtype, _layout: torch.zeros(shape, dtype=dtype),
            where=lambda c, x, y: torch.where(torch.as_tensor(c), x, y),
            rsqrt=torch.rsqrt,
            maximum=lambda x, y: torch.maximum(x, torch.as_tensor(y)),
            convert_layout=lambda x, _layout: x,
            inline_asm_elementwise=run_assembly,
            allocate_shared_memory=self._allocate,
            warp_specialize=self._specialize,
            static_range=range,
            int64=torch.int64,
            float32=torch.float32,
            constexpr=None,
            **dict.fromkeys(
                (
                    "NVMMADistributedLayout",
                    "NVMMASharedLayout",
                    "SliceLayout",
                    "BlockedLayout",
                    "SwizzledSharedLayout",
                ),
                lambda *_, **__: None,
            ),
        )
        return {
            "gl": language,
            "barrier": lambda: None,
            "columns_layout": lambda *_: None,
            "fence_async_shared": lambda: [buffer.unfenced.clear() for buffer in self.buffers],
            "mbarrier": SimpleNamespace(
                MBarrierLayout=lambda: None,
                init=lambda at, count: self.barriers.update({_place(at): Barrier(count)}),
                arrive=lambda at, count: self._arrive(self._barrier(at)),
                expect=lambda at, size, pred: self._barrier(at).arrive(size) if pred else None,
                wait=lambda at, phase: self._wait(self._barrier(at), int(phase)),
            ),
            "async_load": self._bring,
            "async_store": self._take_away,
            "tma": SimpleNamespace(store_wait=self._wait_for_stores),
            "warpgroup_mma": lambda left, right, total, is_async: (left, right, total),
            "warpgroup_mma_wait": lambda _, deps: _multiplied(deps[0]),
        }

    def _allocate(self, dtype: torch.dtype, shape: Sequence[int], _layout: object) -> Shared:
        poison = torch.nan if dtype.is_floating_point else 0
        self.buffers.append(Shared(torch.full(list(shape), poison, dtype=dtype), []))
        return self.buffers[-1]

    def _barrier(self, at: Shared) -> Barrier:
        return self.barriers[_place(at)]

    def _bring(
        self, source: Descriptor, place: Any, arrival: Shared, target: Shared, pred: Any
    ) -> None:
        if not pred:
            return
        part = source.part(place)
        # What was written there by others has to be seen by the engine before it writes.
        target.read_by_engines()
        target.data.fill_(torch.nan)

        def copy() -> int:
            target.data.copy_(part)
            return part.numel() * part.element_size()

        self._barrier(arrival).copies.append(copy)

    def _take_away(self, target: Descriptor, place: Any, source: Shared) -> None:
        early, part = source.read_by_engines().clone(), target.part(place)

        def copy() -> None:
            same = torch.equal(early.nan_to_num(7.5), source.data.nan_to_num(7.5))
            assert same, "written while it is copied"
            part.copy_(source.data)

        self.stores.setdefault(threading.get_ident(), []).append(copy)

    def _wait_for_stores(self, pendings: int) -> None:
        stores = self.stores.get(threading.get_ident(), [])
        while len(stores) > pendings:
            stores.pop(0)()

    def _specialize(self, work: Sequence[tuple[Any, Any]], *_: object) -> None:
        self.threads = [_Thread(*each) for each in work]
        while running := [self.threads[i] for i in self.order if i < len(self.threads)]:
            ready = [thread for thread in running if not thread.done and thread.may_go_on()]
            if not ready:
                break
            ready[0].go_on()
        assert all(thread.done for thread in self.threads), "all wait for each other"

    def _arrive(self, barrier: Barrier) -> None:
        barrier.arrive()
        self._thread().pause(lambda: True)

    def _thread(self) -> "_Thread":
        return next(t for t in self.threads if t.ident == threading.get_ident())

    def _wait(self, barrier: Barrier, phase: int) -> None:
        # Also where it need not wait, so that one that comes first in the order can go on.
        self._thread().pause(lambda: barrier.passed(phase))


class _Thread(threading.Thread):
    """Runs between `go_on` and the next `pause`, while the caller of `go_on` stands still."""

    def __init__(self, function: Callable[..., None], arguments: Sequence[Any]) -> None:
        super().__init__(daemon=True)
        self.work = lambda: function(*arguments)
        self.baton, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.may_go_on: Callable[[], bool] = lambda: True
        self.done, self.error = False, None
        self.start()

    def run(self) -> None:
        self.baton.acquire()
        try:
            with torch.no_grad():
                self.work()
        except BaseException as error:
            self.error = error
        self.done = True
        self.back.release()

    def go_on(self) -> None:
        self.baton.release()
        self.back.acquire()
        if self.error:
            raise self.error

    def pause(self, until: Callable[[], bool]) -> None:
        self.may_go_on = until
        self.back.release()
        self.baton.acquire()


def _place(at: Shared) -> int:
    return at.data.data_ptr()


def _sum_both(values: tuple[Tensor, Tensor], axis: int, combine: Callable[..., Any]) -> Any:
    zero = torch.zeros(())
    assert combine(zero, zero, zero + 1, zero + 2) == (1, 2), "only sums are known"
    return tuple(value.sum(axis) for value in values)


def _multiplied(product: Any) -> Tensor:
    if isinstance(product, Tensor):
        return product
    left, right, total = product
    operands = [part.read_by_engines().float() for part in (left, right)]
    return _multiplied(total) + operands[0] @ operands[1]


def run_assembly(
    code: str, _registers: str, arguments: list[Tensor], *, pack: int, **_: object
) -> Tensor:
    """The floating-point instructions that the kernels use; `pack` numbers share an execution."""
    flat = arguments[0].reshape(-1, pack)
    values: dict[str, Tensor] = {f"${pack + i}": flat[:, i] for i in range(pack)}
    operations: dict[str, Callable[..., Tensor]] = {
        "min": torch.fmin,
        "ex2": torch.exp2,
        "add": torch.add,
        "mul": torch.mul,
        "rcp": torch.reciprocal,
    }
    for line in code.splitlines():
        name, _, rest = line.strip().rstrip(";").partition(" ")
        operation = operations.get(name.partition(".")[0])
        if operation is None:
            assert name in ("", "{", "}", ".reg"), name
            continue
        target, *operands = rest.split(", ")
        values[target] = operation(
            *(
                torch.tensor(int(each[2:], 16), dtype=torch.int32).view(torch.float32)
                if each.startswith("0f")
                else values[each]
                for each in operands
            )
        )
    return torch.stack([values[f"${i}"] for i in range(pack)], 1).reshape(arguments[0].shape)


def as_python(
    modules: Sequence[ModuleType], machine: Machine, leave_out: str = ""
) -> dict[str, Any]:
    """All functions of modules; lines that contain a given `leave_out` do nothing."""
    gluon = machine.names()
    names: dict[str, Any] = {}
    for module in modules:
        names |= vars(module)
    names |= gluon
    for name in [*names]:
        function = getattr(names[name], "fn", None)
        if name in gluon or not inspect.isfunction(function):
            continue
        lines = inspect.getsource(function).splitlines(keepends=True)
        start = next(i for i, line in enumerate(lines) if line.startswith("def "))
        for i, line in enumerate(lines):
            if leave_out and leave_out in line:
                lines[i] = line[: len(line) - len(line.lstrip())] + "pass\n"
        exec(compile("".join(lines[start:]), name, "exec"), names)
    return names


def runnable(
    modules: Sequence[ModuleType], kernel: str, order: Sequence[int], leave_out: str
) -> Any:
    """A kernel, to be launched as kernel[grid](*arguments, **constants).

    `order` says which of its threads goes first where several could; see `as_python`.
    """
    machine = Machine(order)
    names = as_python(modules, machine, leave_out)

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*arguments: Any, num_warps: int, **constants: Any) -> None:
                given = [_argument(each) for each in arguments]
                for ids in itertools.product(*map(range, grid)):
                    machine.begin(ids)
                    names[kernel](*given, **constants)
                    machine.end()

            return launch

    return Kernel()


def _argument(given: Any) -> Any:
    if isinstance(given, Tensor):
        flat = torch.as_strided(
            given, (given.untyped_storage().nbytes() // given.element_size(),), (1,), 0
        )
        return Pointer(flat, torch.tensor(given.storage_offset()))
    if hasattr(given, "block_shape"):
        return Descriptor(given)
    return torch.tensor(given)
