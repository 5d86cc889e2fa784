"""Residual blocks that are mixtures of experts: each row passes one of E branches of each block.

    k = argmax softmax(G h),  h + scale p_k(h) f_k(h)

with h the input of a block, G its gate, p the softmax and f_k the four layers of expert k, each
act LN W x as in the published block (Switch Transformer, arXiv 2101.03961). p_k passes the gradient
to the gate. No row is dropped, however many choose one expert.

All shapes depend on the number of rows only, so that a CUDA graph can capture the computation. Rows
are put into blocks of R slots, each of which belongs to one expert: the rows of an expert fill
whole blocks one after the other, and what is left of its last one stays empty. One product of
matrices for all blocks, with the weights of their experts, is then a layer.

B rows, D width, L layers, E experts, S slots in K blocks of R, N residual blocks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from torch_crl.agent.compute import Compute
from torch_crl.agent.sizes import TowerSizes
from torch_crl.kernels.dense import expert_dense
from torch_crl.kernels.norm_act import ACTIVATIONS, EPSILON
from torch_crl.kernels.tower import BLOCK, Stack, default_gradient_scale


class Routes(NamedTuple):
    """Which way the rows took through a tower."""

    expert_NB: Tensor
    """int64: the expert of each residual block that each row passed."""
    probability_NBE: Tensor
    """The probabilities of the gates, with gradient."""


class Slots(NamedTuple):
    """Where the rows of a batch are computed."""

    slot_B: Tensor
    """int64: the slot of each row, in block `slot // R`."""
    expert_K: Tensor
    """int64: the expert of each block."""
    rows: int
    """R, the number of slots in a block."""


def slots_of(expert_B: Tensor, experts: int) -> Slots:
    """A slot for each row in the blocks of its expert. At most a quarter more slots than rows."""
    count = len(expert_B)
    rows = max(1, count // (4 * experts))
    # So many blocks are filled or begun at most, whatever the experts.
    blocks = count if count <= experts else (count - experts) // rows + experts
    seen_BE = (expert_B[:, None] == torch.arange(experts, device=expert_B.device)).cumsum(0)
    ends_E = ((seen_BE[-1] + rows - 1) // rows).cumsum(0)
    begins_E = functional.pad(ends_E, (1, 0))[:-1]
    place_B = seen_BE.gather(1, expert_B[:, None])[:, 0] - 1
    number_K = torch.arange(blocks, device=expert_B.device)
    # Blocks behind the last one of the last expert are empty, and as good as its own.
    expert_K = (ends_E <= number_K[:, None]).sum(1).clamp(max=experts - 1)
    return Slots(begins_E[expert_B] * rows + place_B, expert_K, rows)


def mixture(
    h_BD: Tensor, stack: Stack, gate_NED: Tensor, sizes: TowerSizes, compute: Compute
) -> tuple[Tensor, Routes]:
    """All residual blocks of a tower, on rows [B, D], and the ways of the rows.

    The parameters of a layer have the experts as their second axis, such as weights [L, E, D, D].
    """
    scale = default_gradient_scale([h_BD], compute.precision)

    def walk(h_BD: Tensor, stack: Stack, gate_NED: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        layers = [Stack(*each) for each in zip(*(p.unbind(0) for p in stack), strict=True)]
        expert_NB, probability_NBE = [], []
        for number, gate_ED in enumerate(gate_NED.unbind(0)):
            probability_BE = functional.linear(h_BD, gate_ED).softmax(-1)
            expert_B = probability_BE.argmax(-1)
            four = layers[BLOCK * number : BLOCK * (number + 1)]
            branch_BD = _branch(h_BD, expert_B, four, sizes, compute, scale)
            share_B1 = probability_BE.gather(1, expert_B[:, None])
            h_BD = torch.addcmul(h_BD, share_B1, branch_BD, value=sizes.branch_scale)
            expert_NB.append(expert_B)
            probability_NBE.append(probability_BE)
        return h_BD, torch.stack(expert_NB), torch.stack(probability_NBE)

    if not compute.recompute:
        h_BD, *routes = walk(h_BD, stack, gate_NED)
        return h_BD, Routes(*routes)
    parts = zip(*(parameter.split(compute.recompute) for parameter in stack), strict=True)
    ways = []
    for part, gate in zip(parts, gate_NED.split(compute.recompute // BLOCK), strict=True):
        h_BD, *routes = checkpoint(
            *(walk, h_BD, Stack(*part), gate), use_reentrant=False, preserve_rng_state=False
        )
        ways.append(routes)
    return h_BD, Routes(*(torch.cat(each) for each in zip(*ways, strict=True)))


def _branch(
    h_BD: Tensor,
    expert_B: Tensor,
    layers: Sequence[Stack],
    sizes: TowerSizes,
    compute: Compute,
    gradient_scale: float,
) -> Tensor:
    """The output [B, D] of each row's expert, which has a place in each of these layers."""
    slots = slots_of(expert_B, sizes.experts)
    empty_SD = h_BD.new_zeros(len(slots.expert_K) * slots.rows, h_BD.shape[1])
    x_KRD = empty_SD.index_copy(0, slots.slot_B, h_BD).unflatten(0, (-1, slots.rows))
    for weight_EDD, bias_ED, gain_ED, shift_ED in layers:
        x_KRD = expert_dense(
            *(x_KRD, weight_EDD, bias_ED, slots.expert_K),
            precision=compute.precision,
            gradient_scale=gradient_scale,
        )
        x_KRD = functional.layer_norm(x_KRD, x_KRD.shape[-1:], eps=EPSILON)
        gain_K1D, shift_K1D = (
            p.index_select(0, slots.expert_K)[:, None] for p in (gain_ED, shift_ED)
        )
        x_KRD = ACTIVATIONS[sizes.activation](torch.addcmul(shift_K1D, x_KRD, gain_K1D))
    rows_BD: Tensor = x_KRD.flatten(0, 1).index_select(0, slots.slot_B)
    return rows_BD
