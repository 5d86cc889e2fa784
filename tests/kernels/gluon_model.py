"""Runs a Gluon kernel on the CPU, program by program, on torch tensors.

Gluon has no interpreter. Here its functions run as the Python that they are, with `gl` replaced by
torch: layouts say where numbers are and change none, so they are ignored; their agreement is the
compiler's to check. What is checked: that nobody reads shared memory before the barrier behind its
writing, or writes it before the barrier behind its reading.
"""

import itertools
from collections.abc import Callable
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Pointer:
    """Addresses of elements of a tensor."""

    def __init__(self, flat: Tensor, offset: Tensor) -> None:
        self.flat, self.offset = flat, offset
        self.dtype = SimpleNamespace(element_ty=flat.dtype)

    def __add__(self, other: Any) -> "Pointer":
        return Pointer(self.flat, self.offset + other)

    def __sub__(self, other: Any) -> "Pointer":
        return Pointer(self.flat, self.offset - other)

    def where(self, mask: Any) -> tuple[Tensor, Tensor]:
        """The mask, of the shape of the addresses, and the addresses; all must be in bounds."""
        mask = torch.as_tensor(True if mask is None else mask).expand(self.offset.shape)
        inside = (self.offset >= 0) & (self.offset < len(self.flat))
        assert inside[mask].all(), "an access outside of the tensor"
        return mask, torch.where(inside, self.offset, 0)


class Shared:
    """A buffer in shared memory, with the barriers that were met before it was used."""

    def __init__(self, machine: "Machine", dtype: torch.dtype, shape: list[int]) -> None:
        self.machine, self.data = machine, torch.full(shape, torch.nan, dtype=dtype)
        self.parts = [machine.part() for _ in range(shape[0])]

    def index(self, i: Any) -> "SharedPart":
        return SharedPart(self.machine, self.data[int(i)], self.parts[int(i)])


class SharedPart:
    """One of the parts of a buffer, or a slice of it."""

    def __init__(self, machine: "Machine", data: Tensor, used: SimpleNamespace) -> None:
        self.machine, self.data, self.used = machine, data, used

    def store(self, value: Tensor) -> None:
        assert self.machine.barriers > self.used.read, "written before all have read it"
        self.used.written = self.machine.barriers
        self.data.copy_(value)

    def slice(self, start: int, length: int, dim: int) -> "SharedPart":
        return SharedPart(self.machine, self.data.narrow(dim, start, length), self.used)

    def load(self, _layout: object) -> Tensor:
        assert self.machine.barriers > self.used.written, "read before all have written it"
        self.used.read = self.machine.barriers
        return self.data.clone()


class Machine:
    """What `gl` has, for one program at a time."""

    def __init__(self) -> None:
        self.ids = (0, 0, 0)
        self.barriers = 0

    def part(self) -> SimpleNamespace:
        """When a part of shared memory was used last."""
        return SimpleNamespace(read=-1, written=self.barriers)

    def barrier(self) -> None:
        self.barriers += 1

    def names(self) -> SimpleNamespace:
        """`gl`."""

        def load(pointer: Pointer, mask: Any = None, other: float = 0.0) -> Tensor:
            mask, offset = pointer.where(mask)
            return torch.where(mask, pointer.flat[offset], other)

        def store(pointer: Pointer, value: Tensor, mask: Any = None) -> None:
            mask, offset = pointer.where(mask)
            pointer.flat[offset[mask]] = value.expand(mask.shape)[mask].to(pointer.flat.dtype)

        def reduce(values: tuple[Tensor, ...], axis: int, combine: Callable[..., Any]) -> Any:
            first, second = values
            zero = torch.zeros(())
            assert combine(zero, zero, zero + 1, zero + 2) == (1, 2), "only sums are known"
            return first.sum(axis), second.sum(axis)

        return SimpleNamespace(
            load=load,
            store=store,
            reduce=reduce,
            sum=lambda x, axis: x.sum(axis),
            program_id=lambda axis: torch.tensor(self.ids[axis]),
            arange=lambda start, stop, _layout: torch.arange(start, stop),
            zeros=lambda shape, dtype, _layout: torch.zeros(shape, dtype=dtype),
            where=lambda c, x, y: torch.where(torch.as_tensor(c), x, y),
            exp=torch.exp,
            rsqrt=torch.rsqrt,
            maximum=lambda x, y: torch.maximum(x, torch.as_tensor(y)),
            permute=lambda x, axes: x.permute(axes),
            convert_layout=lambda x, _layout, assert_trivial: x,
            allocate_shared_memory=lambda dtype, shape, _: Shared(self, dtype, shape),
            static_range=range,
            int64=torch.int64,
            float32=torch.float32,
            **dict.fromkeys(
                ("NVMMADistributedLayout", "DotOperandLayout", "SliceLayout"),
                lambda *_, **__: None,
            ),
            SwizzledSharedLayout=lambda *_, **__: None,
            constexpr=None,
            tuple=tuple,
        )


def runnable(module: ModuleType, kernel: str) -> Any:
    """The kernel of a module, to be launched as kernel[grid](*arguments, **constants)."""
    machine = Machine()
    names: dict[str, Any] = dict(vars(module))
    names |= {
        "gl": machine.names(),
        "_barrier": machine.barrier,
        "mma_v2": lambda left, right, total: total + left.float() @ right.float(),
    }
    for name, value in vars(module).items():
        function = getattr(value, "fn", None)
        if isinstance(function, FunctionType):
            names[name] = FunctionType(function.__code__, names)

    class Kernel:
        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*arguments: Any, num_warps: int, maxnreg: int, **constants: Any) -> None:
                given = [
                    Pointer(_flat(x), torch.tensor(x.storage_offset()))
                    if isinstance(x, Tensor)
                    else torch.tensor(x)
                    for x in arguments
                ]
                for machine.ids in itertools.product(*map(range, grid)):
                    names[kernel](*given, **constants)

            return launch

    return Kernel()


def _flat(x: Tensor) -> Tensor:
    """All of the memory that a tensor is part of."""
    return torch.as_strided(x, (x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
