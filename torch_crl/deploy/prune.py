"""Removes residual blocks of an actor, and keeps what they add on average.

A block adds s F(h) to its input h. All later layers expect the mean of F, which swish makes
positive in a published block, so a block is replaced by the mean of what it adds. That constant
stays in the residual sum for good; biases take it in, so it costs nothing (see `without`). Which
blocks go is measured: one after the other those whose removal changes the policy's actions least.
Block influence (arXiv 2403.03853) and other angles between inputs and outputs predict that badly
(arXiv 2605.14075).

K rows of state and goal, D width, L layers, A action.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from torch_crl.agent.blocks import BLOCKS
from torch_crl.agent.compute import PLAIN
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.policy import HEADS, Policy
from torch_crl.errors import UsageError
from torch_crl.kernels.tower import BLOCK, Stack

_PRUNED = ("published", "pre_norm")
_ROUNDS = 16
"""At most this share of the blocks is removed between two measurements of all the others."""


class Blocks:
    """The residual blocks of a policy's actor, on rows by which removals are judged."""

    def __init__(self, policy: Policy, row_KI: Tensor) -> None:
        """`row_KI` are states and goals [K, S + G].

        Raises UsageError for actors whose blocks cannot be removed one by one.
        """
        policy.require_numbers("prune")
        actor = policy.actor
        if not isinstance(actor, ResidualTower) or actor.sizes.block not in _PRUNED:
            kind = actor.sizes.flag if isinstance(actor, ResidualTower) else "a library"
            raise UsageError(
                f"this policy has the network of {kind}; blocks can be removed from those of "
                f"contrastive RL and behaviour cloning with --block {' or '.join(_PRUNED)}"
            )
        self.actor, self.head = actor, HEADS[policy.head]
        self.count = actor.sizes.depth // BLOCK
        with torch.no_grad():
            self._first_KD = actor.embed(row_KI)
            self.action_KA = self.head(actor(row_KI))

    @torch.no_grad()
    def _after(self, number: int, h_KD: Tensor, *, removed: bool) -> Tensor:
        """What follows a block, or the mean of what it adds."""
        sizes, layers = self.actor.sizes, slice(BLOCK * number, BLOCK * (number + 1))
        stack = Stack(*(parameter[layers] for parameter in self.actor.stack))
        (out_KD,) = BLOCKS[sizes.block].inner([h_KD], [stack], None, sizes, PLAIN)
        return h_KD + (out_KD - h_KD).mean(0) if removed else out_KD

    def _before_each(self, removed: Collection[int]) -> list[Tensor]:
        """The residual sums [K, D] before each block, and after the last."""
        sums = [self._first_KD]
        for number in range(self.count):
            sums.append(self._after(number, sums[-1], removed=number in removed))
        return sums

    @torch.no_grad()
    def _change(self, h_KD: Tensor) -> float:
        """Mean difference of the actions from those of the whole actor, for the last sums."""
        return float((self.head(self.actor.head(h_KD)) - self.action_KA).abs().mean())

    def change(self, removed: Collection[int]) -> float:
        """Mean absolute change of the actions without these blocks."""
        return self._change(self._before_each(removed)[-1])

    def order(self, count: int, on_removed: Callable[[int], object] = lambda _: None) -> list[int]:
        """The `count` blocks to remove, in this order.

        `on_removed` is called with the number of blocks removed so far. Takes up to count * blocks
        / 2 passes of the rows through the actor, and 16 times less for 256 blocks.
        """
        removed: list[int] = []
        while len(removed) < count:
            sums = self._before_each(removed)
            changes = {}
            for candidate in sorted({*range(self.count)} - {*removed}):
                h_KD = sums[candidate]
                for number in range(candidate, self.count):
                    is_removed = number == candidate or number in removed
                    h_KD = self._after(number, h_KD, removed=is_removed)
                changes[candidate] = self._change(h_KD)
            together = min(count - len(removed), max(1, self.count // _ROUNDS))
            removed += sorted(changes, key=lambda number: (changes[number], number))[:together]
            on_removed(len(removed))
        return removed

    @torch.no_grad()
    def without(self, removed: Collection[int], *, fold: bool = True) -> ResidualTower:
        """A smaller actor without these blocks.

        The numbers are those of the network with the means in place, up to rounding. With c the sum
        of the means of the removed blocks before it, a kept block reads h - c in place of h, so the
        bias of its first layer becomes bias + W c, and that of the head likewise. What a block of
        `pre_norm` adds ends with a dense layer, so there the bias before the removed block takes in
        the mean. Without `fold` the blocks are left out and nothing else changes.
        """
        actor, kept = self.actor, [b for b in range(self.count) if b not in removed]
        if not kept:
            raise UsageError("at least one block has to be left")
        layers = torch.tensor([BLOCK * block + layer for block in kept for layer in range(BLOCK)])
        # The sizes keep the branch scale of the old depth, which the weights were trained with.
        sizes = replace(actor.sizes, depth=BLOCK * len(kept))
        smaller = ResidualTower(sizes, generator=None)
        tensors = {name: tensor.clone() for name, tensor in actor.state_dict().items()}
        for name in actor.stack._fields:
            short = name.rpartition("_")[0]
            tensors[short] = tensors[short][layers]
        if fold:
            sums = self._before_each(removed)
            means = {b: (sums[b + 1] - sums[b]).double().mean(0) for b in removed}
            if sizes.block == "pre_norm":
                _fold_before(tensors, means, kept, sizes.branch_scale)
            else:
                _fold_behind(tensors, means, kept)
        smaller.load_state_dict(tensors)
        return smaller


def _fold_behind(
    tensors: dict[str, Tensor], means: Mapping[int, Tensor], kept: Sequence[int]
) -> None:
    """Give the biases of the layers that read the residual sum what the means would add to it."""
    constant_D = torch.zeros_like(tensors["input_bias"], dtype=torch.float64)
    for number in range(len(kept) + len(means)):
        if number in means:
            constant_D += means[number]
        else:
            place = BLOCK * kept.index(number)
            _absorb(tensors["bias"][place], tensors["weight"][place], constant_D)
    _absorb(tensors["output_bias"], tensors["output_weight"], constant_D)


def _absorb(bias: Tensor, weight: Tensor, constant: Tensor) -> None:
    """Give a layer's bias what a constant in its input would add."""
    bias.copy_(bias + weight.double() @ constant)


def _fold_before(
    tensors: dict[str, Tensor], means: Mapping[int, Tensor], kept: Sequence[int], scale: float
) -> None:
    """Give the means to the biases of the last layers before, whose outputs go into the sum."""
    for number, mean in means.items():
        before = [place for place, block in enumerate(kept) if block < number]
        if before:
            tensors["bias"][BLOCK * before[-1] + BLOCK - 1] += mean / scale
        else:
            tensors["input_bias"] += mean
