"""A tower with one kernel a layer: what `test_tower.py` does not ask, and the compiled code."""

import pytest
import torch

from tests.kernels.check import DEVICE, assert_as_exact, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all
from tests.kernels.test_tower import each_block, exact, run, stack
from torch_crl.kernels.tower import Stack, tower


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
@pytest.mark.parametrize(
    ("width", "live", "frozen"), [(24, [40], 0), (100, [3, 17], 6), (520, [9], 2)]
)
@each_block
def test_every_width_is_as_exact_as_plain_torch(
    width: int, live: list[int], frozen: int, precision: str, block: str
) -> None:
    sizes, options = (8, width, live, frozen), {"precision": precision, "block": block}
    with poisoned():
        results = run(*sizes, implementation="norm_act", **options)
    assert_as_exact(results, run(*sizes, **options), exact(*sizes, block=block))


@each_block
def test_without_parameters_to_train_only_rows_get_gradients(block: str) -> None:
    parameters = stack(4, 24, torch.Generator().manual_seed(0))
    gradients = []
    for trained in (True, False):
        leaves = Stack(*(p.to(DEVICE, torch.float32).requires_grad_(trained) for p in parameters))
        x = torch.linspace(-1.0, 1.0, 120, device=DEVICE).view(5, 24).requires_grad_()
        (y,) = tower([x], [leaves], block=block, implementation="norm_act", precision="fp16")
        y.square().sum().backward()
        assert x.grad is not None and (leaves[0].grad is not None) == trained
        gradients.append(x.grad)
    assert gradients[0].equal(gradients[1])


def test_few_programs_keep_sums_at_any_width() -> None:
    from torch_crl.kernels.layers import common

    for rows, width in ((1, 24), (512, 256), (512, 4096), (4096, 1024)):
        count = common.programs_of(rows, rows, width)
        assert 1 <= count <= 128
        assert common.programs_of(rows, rows // 2, width) in (count // 2, (count + 1) // 2)


# What the kernels are told about a layer: in a block, behind one, and at both ends of a tower.
PLACES = {
    "layer_fwd_kernel": [{"ENDS": True, "NEXT": True}],
    "layer_bwd_kernel": [{}],
    "pre_norm_fwd_kernel": [
        {"FIRST": False, "STARTS": False, "LAST": False},
        {"FIRST": False, "STARTS": True, "LAST": False},
        {"FIRST": True, "STARTS": True, "LAST": False},
        {"FIRST": False, "STARTS": True, "LAST": True},
    ],
    "pre_norm_bwd_kernel": [
        {"FIRST": False, "ENDS": False, "LAST": False},
        {"FIRST": False, "ENDS": True, "LAST": False},
        {"FIRST": True, "ENDS": True, "LAST": False},
        {"FIRST": False, "ENDS": True, "LAST": True},
    ],
}


def jobs(kernel_name: str) -> list[Job]:
    """Each place at width 256 on Hopper, and the first one on all generations and at 4096."""
    from torch_crl.kernels.layers import pre_norm, published
    from torch_crl.kernels.norm_act.kernel import tile_of

    module = pre_norm if kernel_name.startswith("pre_norm") else published
    arguments = getattr(module, kernel_name).arg_names
    first, *others = PLACES[kernel_name]
    cases = [(256, arch, first) for arch in SHARED_MEMORY] + [(4096, 90, first)]
    cases += [(256, 90, place) for place in others]
    found = []
    for width, arch, place in cases:
        rows, padded, warps = tile_of(width)
        constants = {"SAVE": True, "RELU": False, "TF32": True, "EPS": 1e-6}
        constants |= {"BM": rows, "BD": padded, "TILES": 2}
        constants = {each: value for each, value in constants.items() if each in arguments} | place
        types = {each: "i32" for each in arguments if each not in constants}
        types |= {each: "*fp32" for each in types if each.startswith("p_")}
        types |= {each: "fp32" for each in types if each in ("scale", "unscale")}
        narrow = ("p_next", "p_xhat", "p_values", "p_dh")
        types |= {each: "*fp16" for each in types if each in narrow}
        found.append(
            Job(module.__name__, kernel_name, types, constants, {"num_warps": warps}, arch)
        )
    return found


@pytest.mark.parametrize("kernel_name", PLACES)
def test_compiles_without_spills(kernel_name: str) -> None:
    wanted = jobs(kernel_name)
    for job, used in zip(wanted, compile_all(wanted), strict=True):
        assert used.stack_bytes == 0, (job, used)
        assert used.shared_bytes <= SHARED_MEMORY[job.arch], (job, used)
