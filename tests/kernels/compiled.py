"""Compiles Triton kernels for GPUs that are not there and tells what the code needs.

In a process of its own, since under TRITON_INTERPRET a process cannot compile.
"""

import importlib
import re
import subprocess
import tempfile
import traceback
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers.answering import answer_all, ask

# Triton may be missing, or have another name as a package.
_TRITON = next((each.version for each in metadata.distributions(name="triton")), "")
limits_of_compiler = pytest.mark.xfail(
    not _TRITON.startswith("3.7."),
    reason="limits of registers hold for Triton 3.7; others spill a few more",
    raises=AssertionError,
)
# What a block may have, in bytes.
SHARED_MEMORY = {80: 166_912, 90: 232_448, 100: 232_448}


class Job(NamedTuple):
    """One kernel with everything that decides its code."""

    module: str
    kernel: str
    types: dict[str, Any]
    """Argument to Triton type, or types of a tuple; every pointer is taken as aligned to 16 bytes.
    """
    constants: dict[str, Any]
    options: dict[str, int]
    arch: int
    gluon: bool = False
    """Whether the kernel is written in Gluon."""


class Resources(NamedTuple):
    """What one program of the kernel takes."""

    registers: int
    stack_bytes: int
    """Spilled registers, wherever."""
    spills_in_loop: int
    """Loads and stores of spilled registers inside the longest loop."""
    shared_bytes: int
    wide_copies: int
    """Asynchronous copies of 16 bytes to shared memory in the code."""
    warpgroup_products: int
    """Products of four warps together, on Hopper."""
    engine_copies: int
    """Copies of blocks to shared memory by the copy engine."""
    wide_loads: int
    """Loads of 16 bytes at once in the code."""


def compile_all(jobs: list[Job]) -> list[Resources]:
    """In another process."""
    answer = ask("tests.kernels.compiled", [job._asdict() for job in jobs])
    if not isinstance(answer, list):
        raise RuntimeError(answer["failed"])
    return [Resources(*values) for values in answer]


def _compile(job: Job) -> Resources:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.experimental.gluon._runtime import GluonASTSource

    kernel = getattr(importlib.import_module(job.module), job.kernel)
    signature = {name: job.types.get(name, "constexpr") for name in kernel.arg_names}
    # JSON knows no tuples.
    signature = {n: tuple(t) if isinstance(t, list) else t for n, t in signature.items()}
    aligned = {
        path: [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        for path, each in _paths(index, signature[name])
        if each.startswith("*")
    }
    language = GluonASTSource if job.gluon else ASTSource
    source = language(fn=kernel, signature=signature, constexprs=job.constants, attrs=aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", job.arch, 32), options=dict(job.options)
    )
    cubin = compiled.asm["cubin"]
    usage = _dump("--dump-resource-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+) .*LOCAL:(\d+)", usage)
    assert found, usage
    registers, stack, local = map(int, found.groups())
    return Resources(
        registers,
        stack + local,
        # The code of a large kernel takes a second to write out.
        _spills_in_loop(_dump("-sass", cubin)) if stack + local else 0,
        compiled.metadata.shared,
        compiled.asm["ptx"].count("cp.async.cg.shared.global"),
        compiled.asm["ptx"].count("wgmma.mma_async"),
        compiled.asm["ptx"].count("cp.async.bulk.tensor.2d.shared"),
        len(re.findall(r"ld\.global\.v4\.[bf]32", compiled.asm["ptx"])),
    )


def _dump(option: str, cubin: bytes) -> str:
    import triton

    cuobjdump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(cuobjdump), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _paths(index: int, of_argument: str | tuple[str, ...]) -> list[tuple[tuple[int, ...], str]]:
    """Where an argument, or each of a tuple, stands among all of them, and its type."""
    if isinstance(of_argument, str):
        return [((index,), of_argument)]
    return [((index, k), each) for k, each in enumerate(of_argument)]


def _spills_in_loop(code: str) -> int:
    instructions = [
        (int(address, 16), text)
        for address, text in re.findall(r"/\*([0-9a-f]{4,})\*/\s+([^;]+);", code)
    ]
    loops = [
        (int(target[1], 16), address)
        for address, text in instructions
        if "BRA" in text and (target := re.search(r"0x([0-9a-f]+)", text))
    ]
    # A kernel ends with a branch to itself, which is no loop.
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    return sum(
        1
        for address, text in instructions
        if first <= address <= last and re.search(r"\b(LDL|STL)\b", text)
    )


def _answer(jobs: list[dict[str, Any]]) -> object:
    """The resources of each job, or what went wrong."""
    try:
        return [_compile(Job(**job)) for job in jobs]
    except Exception:
        return {"failed": traceback.format_exc()}


if __name__ == "__main__":
    answer_all(_answer)
