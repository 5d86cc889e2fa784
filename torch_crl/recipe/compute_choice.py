"""Which implementation and precision a run computes with, chosen from its recipe and device."""

from torch_crl.agent.blocks import BLOCKS
from torch_crl.agent.compute import Compute
from torch_crl.kernels.tower import PERSISTENT_MEMORY, PERSISTENT_PRECISIONS, PERSISTENT_WIDTHS
from torch_crl.recipe.costs import BLOCK
from torch_crl.recipe.record import Recipe
from torch_crl.system.devices import resolve_device


def choose_compute(recipe: Recipe) -> Compute:
    """What the recipe asks for, with `auto` replaced by what is fastest on its device.

    The recipe must have passed `compute_problems`.
    """
    system = recipe.system
    on_gpu = resolve_device(system.device).type == "cuda"
    tower = system.tower
    if tower == "auto":
        tower = "reference"
        if on_gpu and BLOCKS[recipe.networks.block].has_kernels:
            tower = "norm_act" if _persistent_problem(recipe) else "persistent"
    graph = on_gpu if system.cuda_graph == "auto" else system.cuda_graph == "on"
    return Compute(
        tower=tower,
        precision=_precision(recipe),
        recompute=system.recompute,
        cuda_graph=graph,
    )


def compute_problems(recipe: Recipe) -> list[str]:
    """What the recipe asks of this machine and cannot get, each with its flag."""
    system = recipe.system
    device = resolve_device(system.device)
    problems = []
    if not BLOCKS[recipe.networks.block].has_kernels and system.tower not in ("auto", "reference"):
        problems.append(
            f"--tower {system.tower} has the published block only, and --block is "
            f"{recipe.networks.block}; 'reference' and 'auto' have every block"
        )
    if device.type != "cuda":
        if system.tower in ("norm_act", "persistent"):
            problems.append(
                f"--tower {system.tower} needs a CUDA device, and the run is on {device}; "
                "'reference' runs anywhere"
            )
        if system.cuda_graph == "on":
            problems.append(f"--cuda-graph on needs a CUDA device, and the run is on {device}")
    elif system.tower == "persistent":
        problem = _persistent_problem(recipe)
        problems += [f"--tower persistent {problem}; 'norm_act' takes any"] if problem else []
    depths = {recipe.networks.actor_depth, recipe.networks.critic_depth}
    if system.recompute % BLOCK or not 0 <= system.recompute <= max(depths):
        problems.append(
            f"--recompute must be 0 or a multiple of {BLOCK} up to the depth, got "
            f"{system.recompute}"
        )
    return problems


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
    # Here, so that Triton is imported only where its kernels may run.
    from torch_crl.kernels.launch import shared_memory

    memory = shared_memory(resolve_device(recipe.system.device))
    if memory < PERSISTENT_MEMORY[width]:
        return (
            f"takes {PERSISTENT_MEMORY[width]:,} bytes of shared memory at width {width}, and "
            f"this GPU has {memory:,}"
        )
    return None
