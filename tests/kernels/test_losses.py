"""The losses in one kernel each against plain torch in fp64, and the code that they compile to."""

import itertools
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from tests.kernels.check import DEVICE, assert_as_exact, poisoned
from tests.kernels.compiled import Job, compile_all
from torch_crl.agent.losses import CONTRASTIVE_LOSSES, critic_loss, policy_losses
from torch_crl.kernels.infonce import PairScores

BATCHES = [1, 7, 512, 1500]
SCORES = ("diagonal", "row_logsumexp", "column_logsumexp", "row_softplus")


def draw(batch: int, count: int) -> list[Tensor]:
    generator = Generator().manual_seed(batch)
    return [torch.randn(batch, generator=generator).to(DEVICE) for _ in range(count)]


def run_critic(
    batch: int,
    *,
    loss: str,
    whole: bool = False,
    weighted: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = DEVICE,
    goals: int = 0,
    **options: Any,
) -> dict[str, Tensor]:
    """The loss times 3, its metrics, and the gradients by the scores."""
    kind = CONTRASTIVE_LOSSES[loss]
    tensors = [x.to(device, dtype) for x in draw(batch, 8)]
    scores = [x.clone().requires_grad_() for x in tensors[:4]]
    mask_B, weight_B = (tensors[6] > 0).to(dtype), tensors[7]
    whole_B = mask_B if whole else None
    if whole:
        # What a mask leaves out may be as large as it likes.
        with torch.no_grad():
            for score in scores[2:]:
                score[mask_B == 0] = -1e30
    value, metrics = critic_loss(
        PairScores(
            scores[0],
            scores[1],
            scores[2] if kind.columns else None,
            scores[3] if kind.softplus else None,
            *tensors[4:6],
            goals=goals or batch,
        ),
        contrastive_loss=loss,
        logsumexp_penalty=0.1,
        whole_B=whole_B,
        weight_B=weight_B if weighted else None,
        **options,
    )
    (3.0 * value).backward()
    found = {"loss": value.detach()} | metrics
    for name, score in zip(SCORES, scores, strict=True):
        if score.grad is not None:
            found[f"gradient by {name}"] = score.grad
    return found


@pytest.mark.parametrize("loss", ["forward_info_nce", "binary_nce"])
def test_more_goals_than_rows(loss: str) -> None:
    options: dict[str, Any] = {"loss": loss, "goals": 21}
    ours = run_critic(7, **options, implementation="triton")
    truth = run_critic(7, **options, dtype=torch.float64, device="cpu")
    assert_as_exact(ours, run_critic(7, **options), truth)
    diagonal, row_sum = (x.double() for x in (draw(7, 8)[0], draw(7, 8)[5]))
    negative = float((row_sum.mean() - diagonal.mean()) / 20)
    assert float(ours["logits_negative"]) == pytest.approx(negative, rel=1e-5)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("loss", CONTRASTIVE_LOSSES)
def test_critic_is_as_exact_as_plain_torch(loss: str, batch: int) -> None:
    for whole, weighted in itertools.product((False, True), repeat=2):
        options: dict[str, Any] = {"loss": loss, "whole": whole, "weighted": weighted}
        with poisoned():
            ours = run_critic(batch, **options, implementation="triton")
        plain = run_critic(batch, **options)
        truth = run_critic(batch, **options, dtype=torch.float64, device="cpu")
        kind = CONTRASTIVE_LOSSES[loss]
        assert ("gradient by column_logsumexp" in ours) == kind.columns
        assert ours.keys() == plain.keys()
        assert_as_exact(ours, plain, truth)


def test_no_whole_row_at_all() -> None:
    tensors = draw(5, 6)
    arguments = PairScores(
        tensors[0], tensors[1].requires_grad_(), None, None, *tensors[4:], goals=len(tensors[0])
    )
    loss, metrics = critic_loss(
        arguments,
        contrastive_loss="forward_info_nce",
        logsumexp_penalty=0.1,
        whole_B=torch.zeros(5, device=DEVICE),
        implementation="triton",
    )
    assert metrics["contrastive_loss"] == 0.0
    assert loss.item() == pytest.approx(0.1 * float(tensors[1].detach().square().mean()))


def test_scores_that_a_loss_does_not_read_get_no_gradient_from_it() -> None:
    tensors = [x.requires_grad_() for x in draw(6, 4)] + draw(6, 6)[4:]
    with poisoned():
        loss, _ = critic_loss(
            PairScores(*tensors, goals=6),
            contrastive_loss="forward_info_nce",
            logsumexp_penalty=0.1,
            implementation="triton",
        )
        loss.backward()
    assert tensors[0].grad is not None and tensors[1].grad is not None
    assert tensors[2].grad is None and tensors[3].grad is None


def test_masks_and_weights_of_any_stride_and_dtype() -> None:
    tensors, other = draw(6, 6), torch.rand(6, 2, dtype=torch.float64).to(DEVICE)
    losses = []
    for implementation in ("triton", "reference"):
        loss, _ = critic_loss(
            PairScores(tensors[0], tensors[1], None, None, *tensors[4:], goals=len(tensors[0])),
            contrastive_loss="forward_info_nce",
            logsumexp_penalty=0.1,
            whole_B=(other > 0.5).float()[:, 0],
            weight_B=other[:, 1],
            implementation=implementation,  # type: ignore[arg-type]
        )
        losses.append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_nan_is_not_swallowed() -> None:
    for place in (0, 1):
        tensors = draw(6, 6)
        tensors[place][2] = torch.nan
        loss, _ = critic_loss(
            PairScores(tensors[0], tensors[1], None, None, *tensors[4:], goals=len(tensors[0])),
            contrastive_loss="forward_info_nce",
            logsumexp_penalty=0.1,
            implementation="triton",
        )
        assert loss.isnan()


def run_policy(
    batch: int, *, dtype: torch.dtype = torch.float32, device: str = DEVICE, **options: Any
) -> dict[str, Tensor]:
    score, log_prob = (x.to(device, dtype).requires_grad_() for x in draw(batch, 2))
    log_alpha = torch.tensor(-0.7, device=device, dtype=dtype, requires_grad=True)
    loss, metrics = policy_losses(score, log_prob, log_alpha, target_entropy=-2.0, **options)
    (3.0 * loss).backward()
    leaves = {"score": score, "log_prob": log_prob, "log_alpha": log_alpha}
    gradients = {f"gradient by {name}": leaf.grad for name, leaf in leaves.items()}
    return {"loss": loss.detach()} | metrics | gradients  # type: ignore[return-value]


@pytest.mark.parametrize("batch", BATCHES)
def test_policy_is_as_exact_as_plain_torch(batch: int) -> None:
    with poisoned():
        ours = run_policy(batch, implementation="triton")
    plain = run_policy(batch)
    truth = run_policy(batch, dtype=torch.float64, device="cpu")
    assert ours.keys() == plain.keys()
    assert_as_exact(ours, plain, truth)


def test_torch_library_sees_ops_with_all_that_they_promise() -> None:
    from torch_crl.kernels.losses import kernel

    tensors = draw(6, 8)
    leaves = [x.requires_grad_() for x in tensors[:4]]
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    arguments = (leaves, *tensors[4:6], tensors[6].abs(), tensors[7], True, True, False, 6, 0.1)
    torch.library.opcheck(kernel._critic_loss, arguments, test_utils=checks)
    log_alpha = torch.zeros((), device=DEVICE, requires_grad=True)
    torch.library.opcheck(kernel._policy_losses, (*leaves[:2], log_alpha, -1.0), test_utils=checks)


def test_compiles_without_spills() -> None:
    from torch_crl.kernels.losses import kernel

    constants: dict[str, Any] = {"ROWS": True, "COLUMNS": True, "SOFTPLUS": False}
    constants |= {"MASKED": True, "WEIGHTED": True, "BB": kernel.block_of(10_000)}
    jobs = []
    for name in ("critic_loss_kernel", "policy_losses_kernel"):
        arguments = getattr(kernel, name).arg_names
        of_kernel = {key: value for key, value in constants.items() if key in arguments}
        types = {each: "*fp32" for each in arguments if each.startswith("p_")}
        types |= {"B": "i32", "C": "i32", "penalty": "fp32", "target_entropy": "fp32"}
        types = {each: kind for each, kind in types.items() if each in arguments}
        options = {"num_warps": kernel.NUM_WARPS}
        jobs.append(Job(kernel.__name__, name, types, of_kernel, options, 90))
    for job, used in zip(jobs, compile_all(jobs), strict=True):
        assert used.stack_bytes == 0, (job, used)
