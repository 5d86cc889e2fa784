"""A step of Adam in Triton against torch's in fp64: interpreted without a GPU, real with one."""

import copy

import pytest
import torch
from torch import Generator, Tensor

from tests.kernels.check import DEVICE, error
from tests.kernels.compiled import SHARED_MEMORY, Job, compile_all, limits_of_compiler
from torch_crl.agent import optimizer as optimizer_module
from torch_crl.agent.optimizer import adam, load_optimizer_state, optimizer_state
from torch_crl.kernels.tower.rounded import RoundedWeights

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("multiprocessors", [132, 1])
def test_rounded_weights_follow_their_weights(
    dtype: torch.dtype, multiprocessors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With few of them a program takes several parts.
    monkeypatch.setattr(kernel, "multiprocessors", lambda _: multiprocessors)
    # Fewer than have copies.
    monkeypatch.setattr(kernel, "TOGETHER", 2)
    generator = Generator().manual_seed(0)
    shapes = [(5,), (4, 40, 40), (3000,), (4, 40, 40), (2, 8, 8), (1,), (7, 130)]
    parameters = [
        torch.randn(shape, generator=generator).to(DEVICE).requires_grad_() for shape in shapes
    ]
    plain = [parameter.detach().clone().requires_grad_() for parameter in parameters]
    kept = [
        RoundedWeights([parameters[3], parameters[1]], dtype),
        RoundedWeights([parameters[4]], dtype),
    ]
    ours = adam({1e-2: parameters[:3], 1e-1: parameters[3:]}, torch.device(DEVICE), "triton", kept)
    theirs = adam({1e-2: plain[:3], 1e-1: plain[3:]}, torch.device(DEVICE), "triton")
    for _ in range(3):
        for parameter, other in zip(parameters, plain, strict=True):
            drawn = torch.randn(parameter.shape, generator=generator)
            parameter.grad, other.grad = drawn.to(DEVICE), drawn.to(DEVICE)
        ours.step()
        theirs.step()
        for index in (1, 3, 4):
            copies = [each.copy_of(parameters[index]) for each in kept]
            (ours_16,) = (each for each in copies if each is not None)
            exact = parameters[index].detach()
            if DEVICE == "cpu" and dtype == torch.bfloat16:
                # Triton's interpreter cuts off digits where a GPU rounds.
                exact = (exact.view(torch.int32) & -(1 << 16)).view(torch.float32)
            assert ours_16.equal(exact.to(dtype)), index
    # They change nothing else.
    assert all(map(torch.equal, parameters, plain))


def test_rounded_weights_tell_which_they_are_and_notice_what_torch_writes() -> None:
    weights = [torch.full((4, 8, 8), float(k), device=DEVICE) for k in range(3)]
    kept = RoundedWeights(weights, torch.float16)

    def values(*which: int) -> list[float] | None:
        found = kept.of([weights[k] for k in which], torch.float16)
        if found is None:
            return None
        assert found.shape == (len(which), 4, 8, 8) and found.dtype == torch.float16
        return [float(each.mean()) for each in found]

    assert values(0, 1) == [0, 1] and values(1, 2) == [1, 2] and values(2) == [2]
    assert values(1, 0) is None and values(0, 2) is None
    assert kept.of([weights[0].clone()], torch.float16) is None
    assert kept.of(weights[:1], torch.bfloat16) is None
    weights[1].mul_(7)
    assert values(0, 1) == [0, 7] and values(1) == [7]
    weights[2].copy_(torch.ones(4, 8, 8))
    kept.round()
    followed = kept.copy_of(weights[2])
    assert followed is not None and followed.eq(1).all()
    for other in (copy.deepcopy(kept), copy.copy(kept), RoundedWeights()):
        assert other.of(weights, torch.float16) is None and other.copy_of(weights[0]) is None
        other.round()


def test_rounded_weights_are_followed_by_our_step_only(monkeypatch: pytest.MonkeyPatch) -> None:
    # Also those of networks that torch's step would be faster for without them.
    monkeypatch.setattr(optimizer_module, "MOST_ELEMENTS", 0)
    weight = torch.ones(4, 8, 8, device=DEVICE, requires_grad=True)
    kept = [RoundedWeights([weight], torch.float16)]
    ours = adam({1e-3: [weight]}, torch.device(DEVICE), "triton", kept)
    weight.grad = torch.ones_like(weight)
    ours.step()
    copied = kept[0].copy_of(weight)
    assert copied is not None and copied.equal(weight.detach().half()) and copied[0, 0, 0] < 1
    with pytest.raises(ValueError, match="on Triton kernels"):
        adam({1e-3: [weight]}, torch.device(DEVICE), "reference", kept)


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


@limits_of_compiler
def test_kernel_spills_nothing_and_loads_four_numbers_at_once() -> None:
    count = kernel.TOGETHER
    pointers = ["*fp32"] * count
    types = dict.fromkeys(("parameters", "gradients", "means", "squares", "steps"), pointers)
    types |= {name: ["i32"] * count for name in ("first_programs", "sizes")}
    types |= {"rates": ["fp32"] * count, "programs_with_copy": "i32", "parts": "i32"}
    constants = {"BETA1": 0.9, "BETA2": 0.999, "EPS": 1e-8, "LOG_BETA1": -0.1, "LOG_BETA2": -1e-3}
    constants["N"] = kernel.ELEMENTS
    module = "torch_crl.kernels.adam.kernel"
    jobs = [
        Job(
            module,
            "adam_kernel",
            types | {"copies": ["*fp16"] * copies},
            constants,
            {"num_warps": kernel.WARPS},
            arch,
        )
        for arch in SHARED_MEMORY
        for copies in (0, 3)
    ]
    for used in compile_all(jobs):
        # Eight programs fit on a multiprocessor, and their loads hide each other's latency.
        assert used.stack_bytes == 0 and used.registers <= 32 and not used.shared_bytes, used
        # Although no size is known to be a multiple of four: parameter, gradient and moments.
        assert used.wide_loads == 4, used
