"""What a critic learns of goals that come several times in a batch, against closed forms.

A step leads to place p with probability q_p. The critic has one number f_p for each place, and its
row is compared with its own goal and with others, whose places are drawn from m. If others of the
same place are negatives too, the optimum of InfoNCE is f = log(q / m) up to a constant. If they are
left out, the shares w_p of m_p exp f_p satisfy w (1 - w) ~ q in large batches. There is no such w
if a place is more likely than all others together: its share goes to 1, whatever its probability.
"""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from torch_crl.kernels.infonce import reduce_energies

COUNTS = torch.tensor([5000, 3000, 1500, 500])
"""Number of the other goals of each place."""


def shares(q: Sequence[float], *, masked: bool) -> Tensor:
    """Shares [P] of m exp f where the expected loss of a row has its minimum."""
    f_P = torch.zeros(len(q), dtype=torch.float64, requires_grad=True)
    others = torch.arange(len(q)).repeat_interleave(COUNTS)
    optimizer = torch.optim.LBFGS(
        [f_P], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        # Only differences of f matter.
        loss = f_P.mean().square()
        for place, probability in enumerate(q):
            group_C = torch.cat([torch.tensor([place]), others])
            scores = reduce_energies(
                f_P[group_C][None],
                columns=False,
                softplus=False,
                group_C=group_C if masked else None,
            )
            loss = loss + probability * (scores.row_logsumexp_B - scores.diagonal_B)[0]
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    weight_P = COUNTS * f_P.detach().exp()
    return weight_P / weight_P.sum()


@pytest.mark.parametrize("q", [[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.7, 0.1]])
def test_with_the_same_place_the_optimum_is_the_log_ratio(q: list[float]) -> None:
    # The row's own goal is one of 10,001, and not one of the others.
    torch.testing.assert_close(
        shares(q, masked=False), torch.tensor(q, dtype=torch.float64), atol=2e-3, rtol=0
    )


def test_without_the_same_place_shares_are_distorted() -> None:
    q = [0.4, 0.3, 0.2, 0.1]
    share_P = shares(q, masked=True)
    ratio_P = share_P * (1 - share_P) / torch.tensor(q, dtype=torch.float64)
    torch.testing.assert_close(
        ratio_P / ratio_P.mean(), torch.ones_like(ratio_P), atol=1e-2, rtol=0
    )
    assert (share_P - torch.tensor(q)).abs().max() > 0.1


def test_without_the_same_place_a_likely_one_looks_certain() -> None:
    for likely in (0.6, 0.8):
        rest = (1 - likely) / 3
        assert shares([rest, rest, likely, rest], masked=True)[2] > 0.95
