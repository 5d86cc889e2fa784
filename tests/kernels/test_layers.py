"""A tower with one kernel a layer: what `test_tower.py` does not ask, and the compiled code."""

import pytest
import torch

from tests.kernels.check import DEVICE, assert_as_exact, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all
from tests.kernels.test_tower import exact, run, stack
from torch_crl.kernels.tower import Stack, tower


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
@pytest.mark.parametrize(
    ("width", "live", "frozen"), [(24, [40], 0), (100, [3, 17], 6), (520, [9], 2)]
)
def test_every_width_is_as_exact_as_plain_torch(
    width: int, live: list[int], frozen: int, precision: str
) -> None:
    sizes = (8, width, live, frozen)
    with poisoned():
        results = run(*sizes, implementation="norm_act", precision=precision)
    assert_as_exact(results, run(*sizes, precision=precision), exact(*sizes))


def test_without_parameters_to_train_only_rows_get_gradients() -> None:
    parameters = stack(4, 24, torch.Generator().manual_seed(0))
    gradients = []
    for trained in (True, False):
        leaves = Stack(*(p.to(DEVICE, torch.float32).requires_grad_(trained) for p in parameters))
        x = torch.linspace(-1.0, 1.0, 120, device=DEVICE).view(5, 24).requires_grad_()
        (y,) = tower([x], [leaves], implementation="norm_act", precision="fp16")
        y.square().sum().backward()
        assert x.grad is not None and (leaves[0].grad is not None) == trained
        gradients.append(x.grad)
    assert gradients[0].equal(gradients[1])


def test_few_programs_keep_sums_at_any_width() -> None:
    from torch_crl.kernels.layers import kernel

    for rows, width in ((1, 24), (512, 256), (512, 4096), (4096, 1024)):
        count = kernel.programs_of(rows, rows, width)
        assert 1 <= count <= 128
        assert kernel.programs_of(rows, rows // 2, width) in (count // 2, (count + 1) // 2)


def test_compiles_without_spills() -> None:
    from torch_crl.kernels.layers import kernel

    jobs = []
    for name in ("layer_fwd_kernel", "layer_bwd_kernel"):
        arguments = getattr(kernel, name).arg_names
        for width, archs in ((256, list(SHARED_MEMORY)), (4096, [90])):
            rows, padded, warps = kernel.tile_of(width)
            constants = {
                "ENDS": True,
                "NEXT": True,
                "SAVE": True,
                "RELU": False,
                "TF32": True,
                "EPS": 1e-6,
            }
            constants |= {"BM": rows, "BD": padded, "TILES": 2}
            constants = {each: value for each, value in constants.items() if each in arguments}
            types = {each: "i32" for each in arguments if each not in constants}
            types |= {each: "*fp32" for each in types if each.startswith("p_")}
            types |= {each: "fp32" for each in types if each in ("scale", "unscale")}
            types |= {each: "*fp16" for each in types if each in ("p_next", "p_xhat", "p_dh")}
            for arch in archs:
                options = {"num_warps": warps}
                jobs.append(Job(kernel.__name__, name, types, constants, options, arch))
    for job, used in zip(jobs, compile_all(jobs), strict=True):
        assert used.stack_bytes == 0, (job, used)
        assert used.shared_bytes <= SHARED_MEMORY[job.arch], (job, used)
