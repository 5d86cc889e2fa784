"""A step of Adam in Triton against torch's in fp64: interpreted without a GPU, real with one."""

import pytest
import torch
from torch import Generator, Tensor

from tests.kernels.check import DEVICE, error
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all
from torch_crl.agent.optimizer import adam, load_optimizer_state, optimizer_state

kernel = pytest.importorskip("torch_crl.kernels.adam.kernel", reason="triton is not installed")

SHAPES = [(4, 32, 33), (2048,), (), (1,), (3, 5), (2049,)]
RATES = [3e-4, 3e-3, 1e-2]


def draw(generator: Generator, dtype: torch.dtype) -> list[Tensor]:
    drawn = [torch.randn(shape, generator=generator) for shape in SHAPES]
    return [x.to(DEVICE, dtype) for x in drawn]


def groups(parameters: list[Tensor]) -> dict[float, list[Tensor]]:
    return {rate: parameters[2 * k : 2 * k + 2] for k, rate in enumerate(RATES)}


def stepped(implementation: str, dtype: torch.dtype, steps: int = 20) -> list[Tensor]:
    generator = Generator().manual_seed(0)
    parameters = [x.requires_grad_() for x in draw(generator, dtype)]
    optimizer = adam(groups(parameters), torch.device(DEVICE), implementation)
    for step in range(steps):
        for parameter, gradient in zip(parameters, draw(generator, dtype), strict=True):
            parameter.grad = gradient * 10 ** (-step / 4)
        optimizer.step()
    moments = [optimizer.state[x][name] for x in parameters for name in ("exp_avg", "exp_avg_sq")]
    assert {float(optimizer.state[x]["step"]) for x in parameters} == {steps}
    return [x.detach() for x in parameters] + moments


@pytest.mark.parametrize("steps", [1, 20])
def test_steps_are_as_exact_as_those_of_torch(steps: int) -> None:
    ours, plain, truth = (
        stepped(implementation, dtype, steps)
        for implementation, dtype in (
            ("triton", torch.float32),
            ("reference", torch.float32),
            ("reference", torch.float64),
        )
    )
    for index, (got, other, exact) in enumerate(zip(ours, plain, truth, strict=True)):
        allowed = 2 * error(other, exact.cpu()) + 2e-7
        assert error(got, exact.cpu()) <= allowed, index


def test_more_tensors_than_one_launch_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    together = stepped("triton", torch.float32)
    monkeypatch.setattr(kernel, "TOGETHER", 4)
    for got, expected in zip(stepped("triton", torch.float32), together, strict=True):
        assert got.equal(expected)


def test_a_parameter_without_gradient_stays_and_gradients_may_be_strided() -> None:
    still, moved = (torch.ones(3, 5, device=DEVICE, requires_grad=True) for _ in range(2))
    optimizer = adam({0.1: [still, moved]}, torch.device(DEVICE), "triton")
    moved.grad = torch.arange(15.0, device=DEVICE).view(5, 3).T
    optimizer.step()
    assert still.eq(1).all() and not optimizer.state[still]
    # The first step of Adam is the rate times the sign of the gradient.
    torch.testing.assert_close(moved.detach(), 1 - 0.1 * moved.grad.sign(), rtol=0, atol=1e-6)


def test_steps_go_on_from_a_saved_state() -> None:
    def run(splits: list[int]) -> Tensor:
        parameter = torch.ones(100, device=DEVICE, requires_grad=True)
        generator, tensors = Generator().manual_seed(0), None
        for steps in splits:
            optimizer = adam({1e-2: [parameter]}, torch.device(DEVICE), "triton")
            if tensors is not None:
                load_optimizer_state({"x": parameter}, optimizer, tensors)
            for _ in range(steps):
                parameter.grad = torch.randn(100, generator=generator).to(DEVICE)
                optimizer.step()
            tensors = optimizer_state({"x": parameter}, optimizer)
        return parameter.detach()

    assert run([7]).equal(run([3, 4]))


def test_what_is_not_fp32_takes_the_step_of_torch() -> None:
    ours, theirs = (stepped(name, torch.float64) for name in ("triton", "reference"))
    assert all(map(torch.equal, ours, theirs))


def test_kernel_compiles_and_spills_nothing() -> None:
    count = 31
    pointers = ["*fp32"] * count
    types = dict.fromkeys(("parameters", "gradients", "means", "squares", "steps"), pointers)
    types |= {name: ["i32"] * count for name in ("first_programs", "sizes")}
    types |= {"rates": ["fp32"] * count}
    constants = {"BETA1": 0.9, "BETA2": 0.999, "EPS": 1e-8, "LOG_BETA1": -0.1, "LOG_BETA2": -1e-3}
    constants["N"] = 2048
    module = "torch_crl.kernels.adam.kernel"
    jobs = [
        Job(module, "adam_kernel", types, constants, {"num_warps": 4}, arch)
        for arch in SHARED_MEMORY
    ]
    for used in compile_all(jobs):
        assert used.stack_bytes == 0, used
