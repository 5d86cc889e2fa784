"""A squashed Gaussian's action and density in one kernel, against plain torch in fp64."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.kernels.check import DEVICE, assert_as_exact, poisoned
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all
from torch_crl.kernels.squashed_gaussian import squashed_gaussian
from torch_crl.kernels.squashed_gaussian.reference import action_distribution

SIZES = [(1, 1), (3, 7), (200, 1), (63, 17), (512, 8), (5, 64), (2, 100), (1, 1024)]


def run(
    output: Tensor, noise: Tensor, *, implementation: str, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Action, log-density, and the gradients of each alone and of both with random weights."""
    generator = Generator().manual_seed(1)
    upstream = [torch.randn(x.shape, generator=generator) for x in (noise, noise[:, 0])]
    output = output.detach().to(dtype).requires_grad_()
    results = squashed_gaussian(output, noise.to(dtype), implementation=implementation)
    found = {"action": results[0].detach(), "log_prob": results[1].detach()}
    for name, used in (("action", [0]), ("log_prob", [1]), ("both", [0, 1])):
        (gradient,) = torch.autograd.grad(
            [results[i] for i in used],
            output,
            [upstream[i].to(output) for i in used],
            retain_graph=True,
        )
        found |= {f"mean_grad of {name}": gradient.chunk(2, 1)[0]}
        found |= {f"raw_grad of {name}": gradient.chunk(2, 1)[1]}
    return found


@pytest.fixture(params=["triton", "numba"])
def kernel(request: Any) -> str:
    if request.param == "numba":
        pytest.importorskip("numba", reason="numba is not installed")
    return str(request.param)


def device_of(kernel: str) -> str:
    return "cpu" if kernel == "numba" else DEVICE


def draw(
    batch: int, size: int, *, scale: float = 1.0, kernel: str = "triton"
) -> tuple[Tensor, Tensor]:
    generator = Generator().manual_seed(batch * size)
    output = torch.randn(batch, 2 * size, generator=generator) * scale
    noise, device = torch.randn(batch, size, generator=generator), device_of(kernel)
    return output.to(device), noise.to(device)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 4.0])
@pytest.mark.parametrize(("batch", "size"), SIZES)
def test_kernel_is_as_exact_as_plain_torch(
    batch: int, size: int, scale: float, kernel: str
) -> None:
    inputs = draw(batch, size, scale=scale, kernel=kernel)
    with poisoned():
        ours = run(*inputs, implementation=kernel)
    plain = run(*inputs, implementation="reference")
    exact = [x.cpu() for x in inputs]
    truth = run(*exact, implementation="reference", dtype=torch.float64)
    assert_as_exact(ours, plain, truth)


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_every_entry_of_an_action_is_exact(kernel: str) -> None:
    # With no noise the action is tanh(mean): one by one, over all of its range.
    mean = torch.cat([torch.logspace(-30, 0.3, 4000), torch.linspace(0.0, 12.0, 4001)])
    mean = torch.cat([mean, -mean, torch.tensor([0.0, 100.0, -1e30, torch.inf, -torch.inf])])
    output = torch.stack([mean, torch.zeros_like(mean)], 1).to(device_of(kernel))
    action, _ = squashed_gaussian(output, torch.zeros_like(output[:, :1]), implementation=kernel)
    exact = mean.double().tanh()
    error = (action[:, 0].cpu().double() - exact).abs()
    # A GPU's exponential is itself two units in the last place off.
    assert (error <= 4 * torch.finfo(torch.float32).eps * exact.abs()).all()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
def test_density_of_saturated_actions_is_that_of_the_reference(kernel: str) -> None:
    # 1 - action^2 is a few steps of fp32, or 0: what counts is the 1e-6, and how it is added.
    mean = torch.cat([torch.linspace(5.0, 9.5, 3000), torch.tensor([12.0, 30.0, 90.0, 1e30])])
    output = torch.stack([torch.cat([mean, -mean]), torch.zeros(2 * len(mean))], 1)
    output = output.to(device_of(kernel))
    noise = torch.zeros_like(output[:, :1])
    ours, plain = (
        run(output, noise, implementation=implementation)
        for implementation in (kernel, "reference")
    )
    same = ours["action"] == plain["action"]
    # Where the last digit of the action differs, so does its density.
    assert same.float().mean() > 0.98
    # The loops multiply 1 - a by 1 + a, which keeps digits that 1 - a^2 loses.
    bounds = {"rtol": 1e-5, "atol": 1e-6} if kernel == "triton" else {"rtol": 1e-4, "atol": 3e-4}
    for name in ("log_prob", "mean_grad of both", "raw_grad of both"):
        rows = same[:, 0]
        torch.testing.assert_close(ours[name][rows], plain[name][rows], **bounds)
    assert same[ours["action"].abs() == 1.0].all()
    assert (ours["mean_grad of both"][ours["action"].abs() == 1.0] == 0.0).all()


@pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")
@pytest.mark.parametrize("entry", ["mean", "raw", "noise"])
def test_nan_is_not_swallowed(entry: str, kernel: str) -> None:
    output, noise = draw(6, 3, kernel=kernel)
    tensor, column = {"mean": (output, 1), "raw": (output, 4), "noise": (noise, 1)}[entry]
    tensor[2, column] = torch.nan
    found = run(output, noise, implementation=kernel)
    assert found["action"].isnan().nonzero().tolist() == [[2, 1]]
    assert found["log_prob"].isnan().nonzero().flatten().tolist() == [2]
    assert found["mean_grad of log_prob"].isnan().nonzero().tolist() == [[2, 1]]


def test_strided_tensors_and_bitwise_repeatable(kernel: str) -> None:
    output, noise = draw(40, 3, kernel=kernel)
    strided = output.T.contiguous().T, torch.cat([noise, noise], 1)[:, 3:]
    assert not any(x.is_contiguous() for x in strided)
    first, second, third = (
        run(*pair, implementation=kernel) for pair in ((output, noise), (output, noise), strided)
    )
    for name, value in first.items():
        assert torch.equal(value, second[name]) and torch.equal(value, third[name]), name


def test_upstream_gradients_may_be_parts_of_larger_tensors() -> None:
    # As in the learner, where the action is a slice of concat(state, action).
    output, noise = draw(9, 4)
    state = torch.randn(9, 5, device=DEVICE)
    weight = torch.randn(9, 9, device=DEVICE)

    def gradient(implementation: str, transposed: bool) -> Tensor:
        leaf = output.clone().requires_grad_()
        action, log_prob = squashed_gaussian(leaf, noise, implementation=implementation)
        rows = torch.cat([state, action], 1)
        rows = (rows.T.contiguous() * weight).T if transposed else rows * weight
        # The sum's gradient is one number, expanded.
        (rows.sum() + log_prob.sum()).backward()
        assert leaf.grad is not None
        return leaf.grad

    for transposed in (False, True):
        # Where the tanh is nearly 1, its derivative has few correct digits; wrong strides show.
        torch.testing.assert_close(
            gradient("triton", transposed), gradient("reference", transposed), rtol=1e-4, atol=1e-5
        )


def test_reference_takes_any_dtype_and_gives_the_parts_put_together() -> None:
    output, noise = (x.double() for x in draw(5, 2))
    mean, log_std = action_distribution(output)
    action, log_prob = squashed_gaussian(output, noise, implementation="reference")
    before = mean + log_std.exp() * noise
    density = torch.distributions.Normal(mean, log_std.exp()).log_prob(before)
    # Without the published 1e-6, which is small where no action is near 1.
    expected = (density - torch.log1p(-before.tanh().square())).sum(1)
    torch.testing.assert_close(action, before.tanh())
    torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-4)


def test_torch_library_sees_one_op() -> None:
    from torch_crl.kernels.squashed_gaussian import kernel

    output, noise = draw(6, 3)
    torch.library.opcheck(kernel.squashed_gaussian_fwd, (output.requires_grad_(), noise))
    upstream = torch.randn(6, 3, device=DEVICE), torch.randn(6, device=DEVICE)
    backward = (*upstream, output.detach(), noise, torch.rand(6, 3, device=DEVICE))
    torch.library.opcheck(kernel.squashed_gaussian_bwd, backward)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"noise_BA": torch.ones(2, 4)}, r"output \(2, 6\) and noise \(2, 4\) must be \[B, 2 A\]"),
        ({"noise_BA": torch.ones(3, 3)}, r"noise \(3, 3\)"),
        ({"output_B2A": torch.ones(6), "noise_BA": torch.ones(3)}, r"output \(6,\)"),
        ({"output_B2A": torch.ones(0, 6), "noise_BA": torch.ones(0, 3)}, "at least 1"),
        ({"implementation": "fast"}, "'fast' is unknown; choose one of reference, numba, triton"),
        ({"noise_BA": torch.ones(2, 3).double()}, "noise is torch.float64 .* takes torch.float32"),
        ({"output_B2A": torch.ones(2, 6).half()}, "output is torch.float16"),
        ({"noise_BA": torch.ones(2, 3, device="meta")}, "noise is torch.float32 on meta"),
        (
            {"output_B2A": torch.ones(1, 4000), "noise_BA": torch.ones(1, 2000)},
            "2000 entries; the triton implementation takes up to 1024",
        ),
    ],
)
def test_what_does_not_fit_is_told(arguments: dict[str, Any], told: str) -> None:
    good = {"output_B2A": torch.ones(2, 6), "noise_BA": torch.ones(2, 3)}
    moved = {
        name: x.to(DEVICE) if isinstance(x, Tensor) and x.device.type == "cpu" else x
        for name, x in (good | {"implementation": "triton"} | arguments).items()
    }
    with pytest.raises(ValueError, match=told):
        squashed_gaussian(**moved)


def test_compiles_without_spills() -> None:
    from torch_crl.kernels.squashed_gaussian import kernel

    jobs = []
    for function in (kernel.squashed_gaussian_fwd_kernel, kernel.squashed_gaussian_bwd_kernel):
        for size in (1, 8, 17, 64, 1024):
            rows, padded = kernel.tile_of(size)
            constants = {"BM": rows, "BA": padded}
            types = {
                name: "*fp32" if name.startswith("p_") else "i32"
                for name in function.arg_names
                if name not in constants
            }
            options = {"num_warps": kernel.NUM_WARPS, "enable_fp_fusion": False}
            jobs += [
                Job(kernel.__name__, function.__name__, types, constants, options, arch)
                for arch in SHARED_MEMORY
            ]
    for job, used in zip(jobs, compile_all(jobs), strict=True):
        assert used.stack_bytes == 0, (job, used)
        assert used.shared_bytes <= SHARED_MEMORY[job.arch], (job, used)
