"""Energies of matching rows in one kernel against plain torch in fp64."""

from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.kernels.check import DEVICE, assert_as_exact, poisoned
from tests.kernels.compiled import Job, compile_all
from torch_crl.kernels.infonce import ENERGIES
from torch_crl.kernels.paired_energies import paired_energies


def draw(batch: int, size: int) -> list[Tensor]:
    generator = Generator().manual_seed(size)
    return [torch.randn(batch, size, generator=generator).to(DEVICE) for _ in range(2)]


@pytest.mark.parametrize("size", [1, 7, 64, 300])
@pytest.mark.parametrize("energy", ENERGIES)
def test_energies_of_matching_rows(energy: str, size: int) -> None:
    phi, psi = draw(37, size)
    phi[3] = psi[3]
    weight = torch.linspace(-1.0, 2.0, 37, device=DEVICE)

    def of(implementation: Any, dtype: torch.dtype, expanded: bool = False) -> dict[str, Tensor]:
        x, y = (each.to(dtype, copy=True).requires_grad_() for each in (phi, psi))
        found = paired_energies(x, y, energy=energy, implementation=implementation)
        # The gradient of a sum is one number, expanded.
        (found if expanded else found * weight.to(dtype)).sum().backward()
        assert x.grad is not None and y.grad is not None
        return {"energy": found.detach(), "phi": x.grad, "psi": y.grad}

    for expanded in (False, True):
        with poisoned():
            ours = of("triton", torch.float32, expanded)
        plain = of("reference", torch.float32, expanded)
        truth = {n: x.cpu() for n, x in of("reference", torch.float64, expanded).items()}
        assert_as_exact(ours, plain, truth)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_is_not_swallowed() -> None:
    phi, psi = draw(5, 8)
    phi[2, 3] = torch.nan
    energy = paired_energies(phi, psi, energy="norm", implementation="triton")
    assert energy.isnan().nonzero().flatten().tolist() == [2]


def test_what_does_not_fit_is_told() -> None:
    phi, psi = draw(4, 3)
    with pytest.raises(ValueError, match=r"phi \(4, 3\) and psi \(1, 3\) must both be"):
        paired_energies(phi, psi[:1], energy="norm", implementation="triton")
    with pytest.raises(ValueError, match=r"psi torch.float16; .* takes torch.float32"):
        paired_energies(phi, psi.half(), energy="norm", implementation="triton")


def test_torch_library_sees_ops_with_all_that_they_promise() -> None:
    from torch_crl.kernels.paired_energies import kernel

    phi, psi = (x.requires_grad_() for x in draw(5, 3))
    torch.library.opcheck(kernel._forward, (phi, psi, "norm"))


def test_compiles_without_spills() -> None:
    from torch_crl.kernels.paired_energies import kernel

    rows, padded = kernel.tile_of(64)
    constants: dict[str, Any] = {"ENERGY": "norm", "BM": rows, "BR": padded}
    jobs = []
    for name in ("paired_fwd_kernel", "paired_bwd_kernel"):
        rest = [each for each in getattr(kernel, name).arg_names if each not in constants]
        types = {each: "*fp32" if each.startswith("p_") else "i32" for each in rest}
        options = {"num_warps": kernel.NUM_WARPS}
        jobs.append(Job(kernel.__name__, name, types, constants, options, 90))
    for job, used in zip(jobs, compile_all(jobs), strict=True):
        assert used.stack_bytes == 0, (job, used)
