"""LayerNorm, activation and residual in one kernel, against plain torch in fp64."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.kernels.check import DEVICE, assert_as_exact, error, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all
from torch_crl.kernels.norm_act import ACTIVATIONS, norm_act

SIZES = [(1, 1), (1, 64), (3, 7), (63, 100), (512, 96), (5, 1024), (2, 4096)]


def run(
    rows: int,
    width: int,
    *,
    residual: bool,
    dtype: torch.dtype = torch.float32,
    device: str = DEVICE,
    exact: bool = False,
    **options: Any,
) -> dict[str, Tensor]:
    """y and all gradients. `exact` computes in fp64 from the numbers that `dtype` can hold."""
    generator = Generator().manual_seed(rows * width)

    def leaf(*shape: int, offset: float = 0.0, narrow: bool = True) -> Tensor:
        x = torch.randn(*shape, generator=generator, dtype=torch.float64) + offset
        x = x.to(dtype if narrow else torch.float32)
        return x.to(device, torch.float64 if exact else x.dtype).requires_grad_()

    x, skip, upstream = (leaf(rows, width, offset=offset) for offset in (3.0, 0.0, 0.0))
    weight, bias = leaf(width, offset=1.0, narrow=False), leaf(width, narrow=False)
    y = norm_act(x, weight, bias, skip if residual else None, **options)
    y.backward(upstream.detach())
    gradients = {"dx": x.grad, "dweight": weight.grad, "dbias": bias.grad, "dresidual": skip.grad}
    return {"y": y.detach()} | {name: g for name, g in gradients.items() if g is not None}


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize(("rows", "width"), SIZES)
def test_kernel_is_as_exact_as_plain_torch(
    rows: int, width: int, residual: bool, activation: str
) -> None:
    options: dict[str, Any] = {"residual": residual, "activation": activation, "scale": 0.7}
    with poisoned():
        results = run(rows, width, implementation="triton", **options)
    assert results.keys() >= {"y", "dx", "dweight", "dbias"}
    truth = run(rows, width, device="cpu", exact=True, **options)
    plain, floor = run(rows, width, **options), 2e-6
    if width == 1:
        # Nothing is left to normalise: x - mean is 0 up to rounding, and 1 / std is 1000.
        floor = 1e-2
        assert results.pop("dx").abs().max() <= 1e-4
    assert_as_exact(results, plain, truth, floor=floor)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_numbers_have_wide_statistics(dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"residual": True, "activation": "swish", "dtype": dtype}
    results = run(37, 200, implementation="triton", **options)
    assert results["y"].dtype == results["dx"].dtype == dtype
    assert results["dweight"].dtype == torch.float32
    truth = run(37, 200, device="cpu", exact=True, **options)
    step = torch.finfo(dtype).eps
    for name, value in results.items():
        assert error(value, truth[name]) < step, name


def test_strides_do_not_matter() -> None:
    x = torch.randn(10, 12, device=DEVICE).T
    weight, bias = torch.randn(20, device=DEVICE)[::2], torch.randn(10, device=DEVICE)
    results = [
        norm_act(x, weight, bias, activation="swish", implementation=implementation)
        for implementation in ("reference", "triton")
    ]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-6)


def test_torch_library_sees_one_op() -> None:
    from torch_crl.kernels.norm_act import kernel

    x, residual = (torch.randn(6, 20, device=DEVICE, requires_grad=True) for _ in range(2))
    weight, bias = (torch.randn(20, device=DEVICE, requires_grad=True) for _ in range(2))
    for skip in (None, residual):
        torch.library.opcheck(kernel.norm_act_forward, (x, weight, bias, skip, "swish", 0.5))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"weight_D": torch.ones(5)}, r"weight \(5,\)"),
        ({"residual_BD": torch.ones(3, 2)}, r"a residual of the shape of x, \(2, 4\)"),
        ({"implementation": "fast"}, "implementation must be one of"),
        (
            {name: torch.ones(*shape, 5000) for name, shape in (("x_BD", (1,)),)}
            | {name: torch.ones(5000) for name in ("weight_D", "bias_D")}
            | {"implementation": "triton"},
            "up to 4096",
        ),
    ],
)
def test_what_does_not_fit_is_told(arguments: dict[str, Any], told: str) -> None:
    good = {"x_BD": torch.ones(2, 4), "weight_D": torch.ones(4), "bias_D": torch.ones(4)}
    with pytest.raises(ValueError, match=told):
        norm_act(**(good | {"activation": "swish"} | arguments))


def test_every_width_compiles_without_spills() -> None:
    from torch_crl.kernels.norm_act import kernel

    jobs = []
    for function in (kernel.norm_act_fwd_kernel, kernel.norm_act_bwd_kernel):
        for width in (256, 1024, 4096):
            rows, padded, warps = kernel.tile_of(width)
            constants = {"RELU": False, "RESIDUAL": True, "EPS": 1e-6, "TILES": 4}
            constants |= {"BM": rows, "BD": padded}
            constants = {n: value for n, value in constants.items() if n in function.arg_names}
            types = {
                name: "*fp32" if name.startswith("p_") else "fp32" if name == "scale" else "i32"
                for name in function.arg_names
                if name not in constants
            }
            for arch in SHARED_MEMORY:
                options = {"num_warps": warps}
                jobs.append(
                    Job(kernel.__name__, function.__name__, types, constants, options, arch)
                )
    for job, used in zip(jobs, compile_all(jobs), strict=True):
        assert used.stack_bytes == 0, (job, used)
        assert used.shared_bytes <= SHARED_MEMORY[job.arch], (job, used)
