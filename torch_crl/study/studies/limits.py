"""What happens to networks of a thousand layers and more, before and in their first updates?

B batch, D width, L layers.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.networks import Networks, ResidualTower
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.agent.optimizer import gradient_norm
from torch_crl.kernels.tower import BLOCK, Stack, tower
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.study.pictures import Line, Unit, curves_figure
from torch_crl.study.report import Picture, Section, Table, Text
from torch_crl.study.study import Answer, Scale, Study
from torch_crl.system.terminal import console
from torch_crl.system.threads import torch_threads
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun

TASK = "ant"
COLLECTIONS = 4
NETWORKS: Mapping[str, Mapping[str, str]] = {
    "published": {"branch": "published"},
    "scaled": {"branch": "scaled"},
    "pre_norm": {"block": "pre_norm", "branch": "published"},
    "pre_norm, scaled": {"block": "pre_norm", "branch": "scaled"},
}
"""Name of a kind of network to its settings."""
# For a larger mean, the slope of the action's tanh is below 2 % of its largest.
STUCK = 2.65


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of the networks, and how many updates they take."""

    depths: tuple[int, ...]
    width: int
    batch: int
    updates: int


SIZES: Mapping[Scale, Sizes] = {
    "smoke": Sizes(depths=(4, 64, 1024), width=16, batch=32, updates=8),
    "small": Sizes(depths=(4, 64, 256, 1024), width=64, batch=128, updates=200),
    "full": Sizes(depths=(4, 64, 256, 1024, 2048, 4096), width=256, batch=512, updates=20_000),
}


class Limits(NamedTuple):
    """Measurements of one depth of one kind of network."""

    network: str
    """A name of `NETWORKS`."""
    depth: int
    first_loss: float
    """InfoNCE of the first update, in nats; guessing gives log(batch)."""
    last_loss: float
    updates: int
    """Updates that were done; fewer than asked for if a loss was no longer finite."""
    actor_gradient: float
    """Norm over all parameters in the first update."""
    critic_gradient: float
    """The same of both encoders together."""
    stream_mean: float
    """Mean absolute value of the critic's residual stream behind all blocks, before training."""
    stream_spread: float
    """Standard deviation of the same over the rows of a batch: what tells samples apart."""
    stuck: float
    """Share of the policy's means in the flat part of their tanh, before training."""


def measure(scale: Scale) -> Answer:
    """Measure in this process; no policy is trained to its end."""
    return report(SIZES[scale])


@torch_threads(1)
def report(sizes: Sizes) -> Answer:
    """Measure every depth of every kind of network.

    On the CPU one thread is used: with layers as small as these, threads only wait for each other.
    """
    rows: list[Limits] = []
    growth: dict[str, list[Line]] = {}
    data = _collected(sizes)
    for network, depth in _shown(list(itertools.product(NETWORKS, sizes.depths))):
        with closing(_run(sizes, network=network, depth=depth)) as run:
            run.replay.load_state_dict(data)
            means_L = growth_by_layer(_networks(run).state_action_encoder, _probe(run))
            rows.append(_measure(run, network=network, depth=depth, updates=sizes.updates))
        layers_L = np.arange(1.0, len(means_L) + 1) * BLOCK
        line = Line(label=f"depth {depth}", x_X=layers_L, y_X=np.array(means_L))
        growth.setdefault(network, []).append(line)
    return Answer(
        findings=(*map(_sentence, rows), "One seed: no interval can be given."),
        sections=(
            Section(title="By depth", parts=(_table(rows, sizes), _by_depth(rows))),
            Section(title="Along the layers", parts=(_along(growth), Text(text=_READING))),
        ),
    )


def _shown(cells: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Iterate over networks and depths, with progress on standard error."""
    shown = console(stderr=True)
    for network, depth in track(
        cells, description="measuring", console=shown, disable=not shown.is_terminal
    ):
        if not shown.is_terminal:
            shown.print(f"measuring {network}, depth {depth}")
        yield network, depth


def _table(rows: Sequence[Limits], sizes: Sizes) -> Table:
    return Table(
        caption=f"{TASK}, width {sizes.width}, batch {sizes.batch}, one seed; guessing costs "
        f"{math.log(sizes.batch):.3g} nats",
        columns=(
            "network",
            "depth",
            "InfoNCE, first update",
            "InfoNCE, last update",
            "updates",
            "gradient norm, actor",
            "gradient norm, critic",
            "residual stream, mean size",
            "residual stream, spread between rows",
            "share of stuck actions",
        ),
        rows=tuple(rows),
    )


def growth_by_layer(network: ResidualTower, rows_BI: Tensor) -> list[float]:
    """Mean absolute value of the residual stream after every block."""
    sizes = []
    with torch.no_grad():
        x_BD = network.embed(rows_BI)
        for chunk in zip(*(parameter.split(BLOCK) for parameter in network.stack), strict=True):
            (x_BD,) = tower(
                [x_BD],
                [Stack(*chunk)],
                block=network.sizes.block,
                activation=network.sizes.activation,
                branch_scale=network.sizes.branch_scale,
            )
            sizes.append(x_BD.abs().mean())
    return [float(size) for size in torch.stack(sizes).cpu()]


def _run(sizes: Sizes, *, network: str, depth: int) -> CrlRun:
    recipe = with_changes(
        preset(TASK, depth=depth),
        task={"num_envs": 64},
        networks={"width": sizes.width, **NETWORKS[network]},
        algorithm={"batch_size": sizes.batch},
        budget={"replay_rows": COLLECTIONS * 62},
        system={"simulator_threads": 1},
    )
    return build_run(recipe)


def _collected(sizes: Sizes) -> dict[str, Tensor]:
    """A replay buffer filled by a shallow policy: a deep one begins with extreme actions."""
    with closing(_run(sizes, network="published", depth=4)) as run:
        for _ in range(COLLECTIONS):
            run.collect()
        return run.replay.state_dict()


def _networks(run: CrlRun) -> Networks:
    assert isinstance(run.learner, ActorCritic)
    assert isinstance(run.learner.objective, ContrastiveObjective)
    return run.learner.objective.networks


def _probe(run: CrlRun) -> Tensor:
    batch = run.replay.sample(64, discount=0.99, generator=run.sampler)
    return torch.cat([batch["state"], batch["action"]], dim=-1)


def _measure(run: CrlRun, *, network: str, depth: int, updates: int) -> Limits:
    networks = _networks(run)
    batch = run.replay.sample(64, discount=0.99, generator=run.sampler)
    with torch.no_grad():
        mean = networks.actor(torch.cat([batch["state"], batch["goal"]], dim=-1)).chunk(2, -1)[0]
        encoder = networks.state_action_encoder
        rows = encoder.embed(torch.cat([batch["state"], batch["action"]], dim=-1))
        (stream_BD,) = tower(
            [rows],
            [encoder.stack],
            block=encoder.sizes.block,
            activation=encoder.sizes.activation,
            branch_scale=encoder.sizes.branch_scale,
        )
    losses: list[float] = []
    gradients: dict[str, float] = {}
    for _ in range(updates):
        losses.append(float(run.update()["contrastive_loss"]))
        gradients = gradients or {
            name: float(gradient_norm(parameters))
            for name, parameters in run.learner.trained.items()
        }
        if not math.isfinite(losses[-1]):
            break
    return Limits(
        network=network,
        depth=depth,
        first_loss=losses[0],
        last_loss=losses[-1],
        updates=len(losses),
        actor_gradient=gradients["actor"],
        critic_gradient=gradients["critic"],
        stream_mean=float(stream_BD.abs().mean()),
        stream_spread=float(stream_BD.std(dim=0).mean()),
        stuck=float((mean.abs() > STUCK).float().mean()),
    )


def _sentence(row: Limits) -> str:
    ended = "" if math.isfinite(row.last_loss) else ", then not finite"
    return (
        f"{row.network}, depth {row.depth}: InfoNCE {row.first_loss:.3g} to "
        f"{row.last_loss:.3g} nats in {row.updates:,} updates{ended}; before training the residual "
        f"stream has a mean size of {row.stream_mean:.3g} and a spread of {row.stream_spread:.3g} "
        f"between rows, and {row.stuck:.0%} of the actions are stuck."
    )


def _by_depth(rows: Sequence[Limits]) -> Picture:
    views: dict[str, tuple[str, Unit]] = {
        "InfoNCE, last update": ("last_loss", "plain"),
        "gradient norm, actor": ("actor_gradient", "magnitude"),
        "gradient norm, critic": ("critic_gradient", "magnitude"),
        "residual stream, mean size": ("stream_mean", "magnitude"),
    }
    figures = {}
    for view, (name, unit) in views.items():
        lines = []
        for network in NETWORKS:
            found = [row for row in rows if row.network == network]
            x_X = np.array([float(row.depth) for row in found])
            y_X = np.array([getattr(row, name) for row in found])
            lines.append(Line(label=network, x_X=x_X, y_X=y_X))
        figures[view] = curves_figure({view: lines}, x=("depth", "depth"), y=(view, unit))
    return Picture(
        name="by_depth", caption="loss, gradients and residual stream by depth", views=figures
    )


def _along(growth: Mapping[str, Sequence[Line]]) -> Picture:
    figure = curves_figure(growth, x=("layer", "depth"), y=("mean absolute value", "plain"))
    return Picture(
        name="growth", caption="the residual stream before training", views={"sum": figure}
    )


_READING = """The residual stream is the input's embedding plus the outputs of all blocks so far.
`published` adds every block's output to it as it is; `scaled` multiplies the output by
min(1, 16 / depth) first, which --branch auto does above depth 512. `pre_norm` is --block pre_norm,
whose outputs have no common sign, and whose stream is normalised before the output layer; it can be
scaled as well. An action is stuck if its mean lies where the slope of the tanh is below 2 % of its
largest."""

STUDY = Study(
    question="What becomes of loss, gradient norms and activations in networks of a thousand "
    "layers and more?",
    statistic="All three networks are equally deep. They take their first updates on transitions "
    "of a fresh shallow policy; nothing is trained to its end.",
    measure=measure,
)
