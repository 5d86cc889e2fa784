"""What a run on many ranks would take, on paper: a model of compute, network, disk and failures.

W ranks, N rows of the whole batch, R numbers of a representation. An update costs what its slowest
rank needs, plus three exchanges: the goals' representations are gathered, their gradients are
summed, and so are all gradients of the networks. A ring moves 2 (W - 1) / W of the bytes that it
sums over the slowest link, and half as much to gather.
"""

import math
import random
import statistics
from dataclasses import dataclass
from typing import NamedTuple

from torch_crl.agent.losses import CONTRASTIVE_LOSSES
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.share import CONTRASTS


class Link(NamedTuple):
    """What connects the ranks."""

    gigabytes_per_second: float
    """Bus bandwidth of a large all-reduce, as nccl-tests define it."""
    latency: float
    """Seconds of the smallest exchange, times log2 W."""
    source: str


LINKS = {
    "nvlink": Link(475.0, 8e-6, "eight H200 with NVLink SHARP, NVIDIA/nccl-tests#272"),
    "nvlink-bridge": Link(115.0, 10e-6, "two bridged H100 PCIe, NVIDIA/nccl#1161"),
    "400g": Link(45.0, 12e-6, "400 Gb/s InfiniBand, nine tenths of it"),
    "pcie": Link(20.0, 15e-6, "across sockets without NVLink, NVIDIA/nccl-tests#178"),
    "100g": Link(11.0, 15e-6, "100 Gb/s, nine tenths of it"),
    "10g": Link(1.1, 40e-6, "10 Gb/s Ethernet"),
    "1g": Link(0.11, 60e-6, "1 Gb/s Ethernet"),
}
"""Bandwidths are published or nominal; latencies are guesses."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What a run meets, apart from its recipe."""

    ranks: int
    link: Link
    update: float
    """Seconds for an update of one rank's rows, without exchanges."""
    env_step: float
    """Seconds for a control step of one training env."""
    jitter: float = 0.05
    """Standard deviation of the logarithm of a rank's time, from update to update."""
    failures_per_hour: float = 0.0
    """Of one rank."""
    restart: float = 60.0
    """Seconds from a failure until all ranks train again."""
    disk: float = 1.0
    """Gigabytes per second that each rank writes."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Seconds of an update and of the whole run."""

    slowest: float
    """The slowest rank's part of an update."""
    exchange: float
    """The three exchanges of an update."""
    run: float
    """All of the run; infinite if it fails more often than it saves."""
    failures: float
    """How many of them are to be expected."""
    checkpoint: float
    best_interval: float
    """Seconds between checkpoints that lose the least: sqrt(2 checkpoint / failure rate)."""

    @property
    def update(self) -> float:
        """Seconds of one update."""
        return self.slowest + self.exchange


class Traffic(NamedTuple):
    """Bytes of tensors that one update exchanges."""

    gathered: int
    """What all ranks together send to each of them."""
    summed: int
    """What is summed over all ranks."""
    collectives: int


def traffic(recipe: Recipe) -> Traffic:
    """The exchanges of an update on several ranks; `gathered` is for the whole batch."""
    algorithm = recipe.algorithm
    gradients = 4 * (recipe.update_cost.parameters + 1)
    steps = 2 if algorithm.update_order == "critic_first" else 1
    contrasts = algorithm.algo == "crl" and algorithm.objective in CONTRASTS
    if not contrasts or algorithm.negatives == "local":
        return Traffic(0, gradients, steps)
    columns = CONTRASTIVE_LOSSES[algorithm.contrastive_loss].columns
    rows = 4 * algorithm.batch_size * recipe.networks.representation_size * (1 + columns)
    masks = 4 * algorithm.batch_size if algorithm.chunk > 1 else 0
    return Traffic(rows + masks, rows + gradients, 2 + steps)


def predict(recipe: Recipe, conditions: Conditions) -> Prediction:
    """What the run would take under these conditions."""
    count, link = conditions.ranks, conditions.link
    slowest = conditions.update * slowest_of(count, conditions.jitter)
    moved = traffic(recipe)
    exchange = 0.0
    if count > 1:
        around = (count - 1) / count
        sent = around * (moved.gathered + 2 * moved.summed)
        exchange = sent / (1e9 * link.gigabytes_per_second)
        exchange += moved.collectives * link.latency * math.log2(count)
    steps = recipe.total_env_steps / count * conditions.env_step
    collecting = steps * slowest_of(count, conditions.jitter)
    learner = 3 / 5 * recipe.update_cost.training_bytes
    saved = learner + recipe.replay_bytes / count
    checkpoint = saved / (1e9 * conditions.disk)
    undisturbed = recipe.total_updates * (slowest + exchange) + collecting
    undisturbed += recipe.budget.checkpoints * checkpoint
    rate = count * conditions.failures_per_hour / 3600
    lost = undisturbed / recipe.budget.checkpoints / 2 + conditions.restart
    run = undisturbed / (1 - rate * lost) if rate * lost < 1 else math.inf
    return Prediction(
        slowest=slowest,
        exchange=exchange,
        run=run,
        failures=rate * run if rate else 0.0,
        checkpoint=checkpoint,
        best_interval=math.sqrt(2 * checkpoint / rate) if rate else math.inf,
    )


def slowest_of(count: int, jitter: float) -> float:
    """Mean of the largest of so many log-normal times whose own mean is 1."""
    if count == 1 or jitter == 0.0:
        return 1.0
    draw = random.Random(0)
    # The largest of n uniform numbers is u^(1/n), which takes one draw and not n.
    normal = statistics.NormalDist(-0.5 * jitter**2, jitter)
    largest = (normal.inv_cdf(draw.uniform(1e-12, 1.0) ** (1 / count)) for _ in range(20_000))
    return statistics.fmean(map(math.exp, largest))
