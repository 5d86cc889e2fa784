"""Choice of the implementation and precision of a run's computations, by recipe and device."""

from functools import cache
from importlib import import_module

import torch

from torch_crl.agent.blocks import BLOCKS
from torch_crl.agent.compute import Compute, Tower
from torch_crl.kernels import blas
from torch_crl.kernels.norm_act import LARGEST_WIDTH
from torch_crl.kernels.tower import (
    BLOCK,
    PERSISTENT_MEMORY,
    PERSISTENT_PRECISIONS,
    PERSISTENT_WIDTHS,
)
from torch_crl.recipe.record import Recipe
from torch_crl.system.devices import resolve_device
from torch_crl.system.threads import usable_cpus

# With fewer operations per layer, a second thread gains nothing, or a tenth with compiled kernels;
# measured in benchmarks/LOG.md.
_SHARED_LAYER_FLOP: dict[Tower, float] = {"reference": 3e6, "numba": 1e7}
# Compiled kernels share only the products among threads. On so many they are faster than plain
# torch at any size, by the same measurements; more have not been tried.
_NUMBA_THREADS = 2
# Loading the compiled kernels takes a second or two; an update gains one to several milliseconds.
_UPDATES_WORTH_NUMBA = 5_000


def choose_compute(recipe: Recipe) -> Compute:
    """The implementation that the recipe asks for; `auto` becomes the fastest one on its device.

    The recipe must have passed `compute_problems`.
    """
    system = recipe.system
    on_gpu = resolve_device(system.device).type == "cuda"
    if system.tower != "auto":
        tower: Tower = system.tower
    else:
        tower = _fastest_tower(recipe) if on_gpu else _fastest_cpu_tower(recipe)
    graph = on_gpu if system.cuda_graph == "auto" else system.cuda_graph == "on"
    return Compute(
        tower=tower,
        precision=_precision(recipe),
        recompute=system.recompute,
        cuda_graph=graph,
    )


def compute_problems(recipe: Recipe) -> list[str]:
    """Settings of the recipe that this machine cannot carry out, each with its flag."""
    system = recipe.system
    device = resolve_device(system.device)
    problems = []
    # What numba lacks is told below.
    if not BLOCKS[recipe.networks.block].has_kernels and system.tower in ("norm_act", "persistent"):
        with_kernels = ", ".join(name for name, each in BLOCKS.items() if each.has_kernels)
        problems.append(
            f"--tower {system.tower} is for --block {with_kernels}, got "
            f"{recipe.networks.block}; 'reference' and 'auto' have every block"
        )
    if device.type != "cuda":
        if system.tower in ("norm_act", "persistent"):
            problems.append(
                f"--tower {system.tower} needs a CUDA device, and the run is on {device}; "
                "'reference' runs anywhere"
            )
        if system.tower == "numba":
            problems += [f"--tower numba {problem}" for problem in _numba_problems(recipe)]
        if system.cuda_graph == "on":
            problems.append(f"--cuda-graph on needs a CUDA device, and the run is on {device}")
    elif system.tower == "numba":
        problems.append(f"--tower numba runs on the CPU, and the run is on {device}")
    elif system.tower == "persistent" and (problem := _persistent_problem(recipe)):
        problems.append(f"--tower persistent {problem}; 'norm_act' has fewer limits")
    elif system.tower == "norm_act" and recipe.networks.width > LARGEST_WIDTH:
        problems.append(
            f"--tower norm_act is for widths up to {LARGEST_WIDTH}, got {recipe.networks.width}; "
            "'reference' takes any"
        )
    depths = {recipe.networks.actor_depth, recipe.networks.critic_depth}
    # Any depth goes with 0, also one that is refused itself.
    if system.recompute and (system.recompute % BLOCK or system.recompute > max(depths)):
        problems.append(
            f"--recompute must be 0 or a multiple of {BLOCK} up to the depth, got "
            f"{system.recompute}"
        )
    return problems


def thread_count(recipe: Recipe) -> int:
    """CPU threads for updates: as set, else every CPU, or one where layers are too small to share.

    Threads that wait for each other at every operation are very slow if another process runs.
    """
    tower, plain = choose_compute(recipe).tower, _SHARED_LAYER_FLOP["reference"]
    shared = _layer_flop(recipe) >= _SHARED_LAYER_FLOP.get(tower, plain)
    # What takes the place of BLAS there computes on one thread.
    shared &= not (tower == "numba" and blas.leaves_avx512_unused())
    return recipe.system.torch_threads or (_every_thread() if shared else 1)


def _every_thread() -> int:
    return min(torch.get_num_threads(), usable_cpus())


def _layer_flop(recipe: Recipe) -> int:
    return 2 * recipe.algorithm.batch_size * recipe.networks.width**2


def _fastest_cpu_tower(recipe: Recipe) -> Tower:
    """`numba` where it can be used and pays: in runs that are not short, of small layers, on few
    threads or in bf16.
    """
    faster = (
        _layer_flop(recipe) <= _SHARED_LAYER_FLOP["numba"]
        or (recipe.system.torch_threads or _every_thread()) <= _NUMBA_THREADS
        # In bf16 plain torch only rounds as if, which is slow.
        or _precision(recipe) == "bf16"
    )
    pays = faster and recipe.total_updates >= _UPDATES_WORTH_NUMBA
    return "numba" if pays and not _numba_problems(recipe) else "reference"


@cache
def _import_error_of_numba() -> ImportError | None:
    """Why numba cannot be imported; it may be missing, or older than the NumPy beside it."""
    try:
        import_module("numba")
    except ImportError as error:
        return error
    return None


def _numba_problems(recipe: Recipe) -> list[str]:
    problems = []
    if recipe.by_library:
        problems.append(
            f"is for crl and gcbc, got --algo {recipe.algorithm.algo}, which 'reference' has"
        )
    if not BLOCKS[recipe.networks.block].has_cpu_kernels:
        compiled = " or ".join(name for name, each in BLOCKS.items() if each.has_cpu_kernels)
        problems.append(
            f"is for --block {compiled}, got {recipe.networks.block}; 'reference' has every block"
        )
    precision = _precision(recipe)
    if precision not in ("fp32", "bf16"):
        problems.append(
            f"is for --precision fp32 and bf16, got {precision}; 'reference' has all of them"
        )
    if precision == "bf16" and not blas.multiplies_bf16():
        problems.append(
            "has --precision bf16 only with instructions for it, AVX512_BF16 or AMX, and an MKL in "
            "torch; 'reference' computes the same anywhere, more slowly than fp32"
        )
    if recipe.system.recompute:
        problems.append(
            f"keeps all activations, got --recompute {recipe.system.recompute}; 'reference' can "
            "compute them again"
        )
    if error := _import_error_of_numba():
        missing = isinstance(error, ModuleNotFoundError) and error.name == "numba"
        says = "" if missing else f" that can be imported ({error})"
        problems.append(f"needs numba{says}: pip install 'numba>=0.60'; 'reference' does not")
    if blas.address("sgemm_") is None:
        problems.append(
            f"calls the BLAS of torch, and torch {torch.__version__} has none that others can "
            "call; 'reference' does not"
        )
    return problems


def _fastest_tower(recipe: Recipe) -> Tower:
    """The fastest implementation on a GPU that has this block and this width."""
    if not BLOCKS[recipe.networks.block].has_kernels or recipe.networks.width > LARGEST_WIDTH:
        return "reference"
    return "norm_act" if _persistent_problem(recipe) else "persistent"


def _precision(recipe: Recipe) -> str:
    if recipe.system.precision != "auto":
        return recipe.system.precision
    if resolve_device(recipe.system.device).type != "cuda":
        return "fp32"
    return "fp16" if BLOCKS[recipe.networks.block].has_kernels else "tf32"


def _persistent_problem(recipe: Recipe) -> str | None:
    width, precision = recipe.networks.width, _precision(recipe)
    if width not in PERSISTENT_WIDTHS:
        return f"is for widths {' and '.join(map(str, PERSISTENT_WIDTHS))}, got {width}"
    if precision not in PERSISTENT_PRECISIONS:
        return f"is for {' and '.join(PERSISTENT_PRECISIONS)}, got {precision}"
    # Imported here, so that Triton is loaded only where its kernels may run.
    from torch_crl.kernels.launch import shared_memory

    memory = shared_memory(resolve_device(recipe.system.device))
    if memory < PERSISTENT_MEMORY[width]:
        return (
            f"takes {PERSISTENT_MEMORY[width]:,} bytes of shared memory at width {width}, and "
            f"this GPU has {memory:,}"
        )
    return None
