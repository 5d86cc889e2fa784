"""Functions of hazards in one kernel each way against plain torch in fp64, and their code."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.kernels.check import DEVICE, assert_as_exact, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all
from torch_crl.agent.objectives.time_to_goal import hazard_nll, hazard_value

SIZES = [(1, 1), (3, 2), (20, 33), (7, 1000)]
MODULE = "torch_crl.kernels.hazards.kernel"
pytest.importorskip(MODULE, reason="triton is not installed")


def labels(rows: int, steps: int) -> dict[str, Tensor]:
    """Arrivals at any step and none; among them arrivals at once and nothing seen at all."""
    generator = Generator().manual_seed(rows)
    drawn = {
        "event_B": torch.rand(rows, generator=generator) < 0.7,
        "time_B": torch.randint(0, steps + 1, (rows,), generator=generator),
        "censor_B": torch.randint(0, steps + 1, (rows,), generator=generator),
    }
    if rows > 2:
        drawn["event_B"][:3] = torch.tensor([True, False, False])
        drawn["time_B"][0] = drawn["censor_B"][1] = 0
        drawn["censor_B"][2] = steps
    return {name: each.to(DEVICE) for name, each in drawn.items()}


def run(
    rows: int,
    steps: int,
    *,
    level: float,
    implementation: str = "reference",
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Both functions, and gradients of their sums with random weights."""
    generator = Generator().manual_seed(rows + steps)
    # As a tower's output has them: the logits of being there are a column.
    output = torch.randn(rows, 3, generator=generator).to(DEVICE, dtype)
    hazard = (torch.randn(rows, steps, generator=generator) + level).to(DEVICE, dtype)
    weights = torch.randn(2, rows, generator=generator).to(DEVICE, dtype)
    found = {}
    arrivals = labels(rows, steps)
    options: dict[str, Any] = {"implementation": implementation}
    for weight, name in zip(weights, ("nll", "value"), strict=True):
        leaves = [x.clone().requires_grad_() for x in (output, hazard)]
        logits = leaves[0][:, 1], leaves[1]
        if name == "nll":
            result = hazard_nll(*logits, **arrivals, **options)
        else:
            result = hazard_value(*logits, discount=0.99, **options)
        (result * weight).sum().backward()
        found[name] = result.detach()
        for whose, leaf in zip(("start", "hazards"), leaves, strict=True):
            assert leaf.grad is not None
            found[f"{name}, gradient of {whose}"] = leaf.grad
    return found


@pytest.mark.parametrize("level", [-6.0, 0.0, 6.0])
@pytest.mark.parametrize(("rows", "steps"), SIZES)
def test_as_exact_as_plain_torch(rows: int, steps: int, level: float) -> None:
    with poisoned():
        ours = run(rows, steps, level=level, implementation="triton")
    plain = run(rows, steps, level=level)
    exact = run(rows, steps, level=level, dtype=torch.float64)
    assert_as_exact(ours, plain, {name: x.cpu() for name, x in exact.items()})


def test_logits_of_any_size() -> None:
    arrivals = labels(4, 6)
    results = {}
    for implementation in ("triton", "reference"):
        options: dict[str, Any] = {"implementation": implementation}
        for logit in (-1e4, -50.0, 50.0, 1e4):
            start, hazard = (
                torch.full(shape, logit, device=DEVICE, requires_grad=True)
                for shape in ((4,), (4, 6))
            )
            value = hazard_value(start, hazard, discount=0.9, **options)
            both = hazard_nll(start, hazard, **arrivals, **options) + value
            gradients = torch.autograd.grad(both.sum(), (start, hazard))
            results[implementation, logit] = [both.detach(), *gradients]
    for (implementation, logit), found in results.items():
        for got, expected in zip(found, results["reference", logit], strict=True):
            assert got.isfinite().all(), (implementation, logit)
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_a_mean_and_nan() -> None:
    """A mean's gradient is one number for all rows, and what is not a number stays so."""
    gradients = []
    for implementation in ("triton", "reference"):
        hazard = torch.zeros(3, 4, device=DEVICE, requires_grad=True)
        start = torch.zeros(3, device=DEVICE)
        options: dict[str, Any] = {"implementation": implementation}
        hazard_value(start, hazard, discount=0.9, **options).mean().backward()
        assert hazard.grad is not None
        gradients.append(hazard.grad)
        with torch.no_grad():
            hazard[1, 2] = torch.nan
        value = hazard_value(start, hazard, discount=0.9, **options)
        assert value.isnan().tolist() == [False, True, False]
    torch.testing.assert_close(*gradients)


def test_torch_library_sees_ops_with_all_that_they_promise() -> None:
    from torch_crl.kernels.hazards import kernel

    arrivals = labels(5, 7)
    start = torch.randn(5, device=DEVICE, requires_grad=True)
    hazard = torch.randn(5, 7, device=DEVICE, requires_grad=True)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(kernel._nll, (start, hazard, *arrivals.values()), test_utils=checks)
    torch.library.opcheck(kernel._value, (start, hazard, -0.01), test_utils=checks)


def test_kernels_compile_and_spill_nothing() -> None:
    from torch_crl.kernels.hazards import kernel

    types = dict.fromkeys(("K", "upstream_stride", "start_stride"), "i32")
    types |= {"p_event": "*i1", "p_time": "*i64", "p_censor": "*i64", "log_discount": "fp32"}
    jobs = []
    for name in ("nll_fwd_kernel", "nll_bwd_kernel", "value_fwd_kernel", "value_bwd_kernel"):
        arguments = [each for each in getattr(kernel, name).arg_names if each != "BK"]
        of_each = {each: types.get(each, "*fp32") for each in arguments}
        for arch in SHARED_MEMORY:
            options = {"num_warps": kernel.NUM_WARPS}
            jobs.append(Job(MODULE, name, of_each, {"BK": 1024}, options, arch))
    for job, used in zip(jobs, compile_all(jobs), strict=True):
        assert used.stack_bytes == 0, (job, used)
