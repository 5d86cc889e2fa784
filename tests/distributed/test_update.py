"""The update of several ranks against that of one process on the whole batch."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Generator, Tensor

from tests.helpers.batches import A, G, S, make_batch
from tests.helpers.graph_stand_in import StandIn
from tests.helpers.ranks import on_ranks
from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.behaviour_cloning import BehaviourCloning
from torch_crl.agent.learner import Learner
from torch_crl.agent.losses import CONTRASTIVE_LOSSES, ENERGIES
from torch_crl.agent.networks import build_networks
from torch_crl.agent.objectives import OBJECTIVES
from torch_crl.agent.objectives.objective import Setup
from torch_crl.agent.sizes import network_sizes, objective_towers
from torch_crl.distributed import contrast
from torch_crl.distributed.equality import RanksDifferError, broadcast, check_equal
from torch_crl.distributed.ranks import ALONE, Ranks, join
from torch_crl.envs.task import euclidean_distance
from torch_crl.system.cuda_graph import GraphedFunction

ROWS = 12
"""Of the whole batch."""
WINDOW = 6


def make_learner(
    ranks: Ranks,
    *,
    dtype: torch.dtype = torch.float64,
    objective: str = "crl",
    local: bool = False,
    update_order: Any = "together",
    seed: int = 0,
    **settings: Any,
) -> Learner:
    sizes = network_sizes(
        state_size=S,
        goal_size=G,
        action_size=A,
        actor_depth=4,
        critic_depth=4,
        width=16,
        representation_size=8,
    )
    generator = Generator().manual_seed(seed)
    networks = build_networks(sizes, generator=generator)
    if objective == "gcbc":
        return BehaviourCloning(networks.actor.to(dtype), learning_rate=1e-3, ranks=ranks)
    towers = objective_towers(objective, sizes, critic_depth=4, branch="auto", window=WINDOW)
    setup = Setup(
        networks=networks,
        towers=towers,
        generator=generator,
        window=WINDOW,
        radius=0.1,
        distance=euclidean_distance,
        ranks=ALONE if local else ranks,
        **settings,
    )
    made = OBJECTIVES[objective](setup)
    for module in (networks.actor, *made.modules.values()):
        module.to(dtype)
    return ActorCritic(
        networks.actor,
        made,
        target_entropy=-1.0,
        actor_learning_rate=1e-3,
        critic_learning_rate=1e-3,
        temperature_learning_rate=1e-3,
        update_order=update_order,
        generator=Generator().manual_seed(1),
        ranks=ranks,
    )


def whole_batch(dtype: torch.dtype, *, chunks: bool = False) -> tuple[TensorDict, Tensor]:
    """Rows of all kinds, and the actor's noise for them."""
    generator = Generator().manual_seed(3)
    batch = make_batch(ROWS)
    batch["survived"] = torch.rand(ROWS, generator=generator)
    batch["event"] = torch.rand(ROWS, generator=generator) < 0.5
    batch["time"] = torch.randint(WINDOW, (ROWS,), generator=generator)
    batch["censor"] = torch.randint(WINDOW, (ROWS,), generator=generator)
    if chunks:
        # Unequal numbers of them on the ranks, and on one of four none.
        batch["whole"] = (torch.arange(ROWS) % 12 < 5).float()
    batch = batch.apply(lambda x: x.to(dtype) if x.is_floating_point() else x)
    assert batch is not None
    return batch, torch.randn(ROWS, A, generator=generator).to(dtype)


def gradients(learner: Learner, batch: TensorDict, noise: Tensor) -> dict[str, Tensor]:
    """Of one update, and its losses."""
    if isinstance(learner, ActorCritic):
        learner._noise = lambda _: noise  # type: ignore[method-assign]
    metrics = learner.update(batch)
    found = {name: x.grad for name, x in learner.named_parameters().items() if x.grad is not None}
    return found | {name: value.double() for name, value in metrics.items()}


def error_of(ranks: Ranks, *, chunks: bool, **options: Any) -> float:
    """How far this rank's gradients are from the whole batch's, as norms of all of them together.

    The ranks' mean metrics are compared here too.
    """
    dtype = options.get("dtype", torch.float64)
    batch, noise = whole_batch(dtype, chunks=chunks)
    if options.pop("places", False):
        batch["place"] = torch.arange(ROWS) % 5
    whole = gradients(make_learner(ALONE, **options), batch, noise)
    rows = ROWS // ranks.size
    own = slice(ranks.rank * rows, (ranks.rank + 1) * rows)
    ours = gradients(make_learner(ranks, **options), batch[own], noise[own])
    metrics = {name for name, value in ours.items() if value.ndim == 0} - {"log_alpha"}
    means = ranks.mean({name: float(ours[name]) for name in sorted(metrics)})
    assert ours.keys() == whole.keys()
    for name, mean in means.items():
        assert mean == pytest.approx(float(whole[name]), rel=1e-5, abs=1e-6), name
    pairs = [(ours[name], whole[name]) for name in ours if name not in means]
    wrong = torch.stack([(x - y).double().norm() for x, y in pairs]).norm()
    return float(wrong / torch.stack([y.double().norm() for _, y in pairs]).norm())


@contextmanager
def goals_of_others_as_constants() -> Iterator[None]:
    """What `loss_over_all_ranks` must not do: leave out the gradients from the others' losses."""
    real = contrast.loss_over_all_ranks

    class Deaf(Ranks):
        def sum_(self, tensor: Tensor) -> Tensor:
            return tensor

    def alone_with_gradients(*arguments: Any, ranks: Ranks, **options: Any) -> Any:
        return real(*arguments, ranks=Deaf(**vars(ranks)), **options)

    from torch_crl.agent.objectives import crl

    crl.loss_over_all_ranks = alone_with_gradients
    try:
        yield
    finally:
        crl.loss_over_all_ranks = real


def pairs_of(ranks: Ranks) -> Ranks:
    """Two ranks of four: each half of them trains for itself."""
    groups = [dist.new_group(pair) for pair in ([0, 1], [2, 3])]
    group = groups[ranks.rank // 2]
    return Ranks(rank=ranks.rank % 2, size=2, device_group=group, control=group, store=ranks.store)


def measured() -> dict[str, float]:
    """Everything that is measured on four processes, and on pairs of them."""
    four = join()
    found: dict[str, float] = {}
    for ranks in (four, pairs_of(four)):
        for kind, chunks in _kinds(every_energy=ranks is four):
            for dtype in (torch.float64, torch.float32):
                name = f"{dtype} {ranks.size} chunks: {chunks} {kind}"
                found[name] = error_of(ranks, chunks=chunks, dtype=dtype, **kind)
        with goals_of_others_as_constants():
            for loss in ("forward_info_nce", "symmetric_info_nce"):
                name = f"constants {ranks.size} {loss}"
                found[name] = error_of(ranks, chunks=False, contrastive_loss=loss)
        found[f"equal batches {ranks.size}"] = _equal_batches(ranks)
        found[f"differing {ranks.size}"] = _fifty_updates(ranks)
        found[f"captured {ranks.size}"] = _captured(ranks)
    return found


def _kinds(*, every_energy: bool) -> Iterator[tuple[dict[str, Any], bool]]:
    """Settings of learners, and whether their actions are chunks."""
    for energy, loss in itertools.product(
        ENERGIES if every_energy else ["norm"], CONTRASTIVE_LOSSES
    ):
        yield {"energy": energy, "contrastive_loss": loss}, energy == "dot"
    for loss in CONTRASTIVE_LOSSES:
        yield {"contrastive_loss": loss, "update_order": "critic_first"}, True
    for loss in CONTRASTIVE_LOSSES:
        yield {"contrastive_loss": loss, "places": True}, True
    yield {"objective": "safe"}, True
    yield {"objective": "survival"}, False
    yield {"objective": "survival"}, True
    yield {"objective": "gcbc"}, False


def _equal_batches(ranks: Ranks) -> float:
    """Number of gradients that are not those of one process, to the bit."""
    batch, noise = whole_batch(torch.float32)
    alone = gradients(make_learner(ALONE, dtype=torch.float32), batch, noise)
    ours = gradients(make_learner(ranks, dtype=torch.float32, local=True), batch, noise)
    return sum(not torch.equal(ours[name], expected) for name, expected in alone.items())


def _captured(ranks: Ranks) -> float:
    """Number of parameters in which updates repeated by a stand-in graph differ from eager ones."""
    learners = [make_learner(ranks, dtype=torch.float32) for _ in range(2)]
    eager, captured = learners
    batch, _ = whole_batch(torch.float32)
    rows = ROWS // ranks.size
    own = batch[ranks.rank * rows : (ranks.rank + 1) * rows]
    graph = GraphedFunction(
        lambda: captured.update(own),
        make_recorder=lambda: StandIn(torch.device("cpu"), captured.generators),
        fixed=captured.named_parameters,
    )
    for _ in range(8):
        eager.update(own)
        graph()
    assert graph.captures == 1
    theirs = captured.named_parameters()
    return sum(not torch.equal(x, theirs[name]) for name, x in eager.named_parameters().items())


def _fifty_updates(ranks: Ranks) -> float:
    """Number of parameters that differ among ranks after 50 updates on batches of their own."""
    learner = make_learner(ranks, dtype=torch.float32, seed=ranks.rank)
    broadcast(learner.named_parameters(), ranks)
    learner.generators[0].manual_seed(ranks.rank)
    for number in range(50):
        learner.update(make_batch(6, seed=100 * number + ranks.rank))
    state = {name: x for name, x in learner.state_dict().items() if name != "generator"}
    check_equal(state, ranks)
    # Of every rank in turn a single bit.
    for rank in range(ranks.size):
        changed = {name: tensor.clone() for name, tensor in state.items()}
        if ranks.rank == rank:
            moment = changed["adam.exp_avg.goal_encoder.weight"].view(torch.int32)
            moment[0, 3, 2] ^= 1
        try:
            check_equal(changed, ranks)
        except RanksDifferError as error:
            named = "adam.exp_avg.goal_encoder.weight than rank 0" in str(error)
            assert named and str(error).startswith(f"rank {rank or 1} holds"), error
        else:
            raise AssertionError(f"rank {rank} holds another bit and nobody noticed")
    return sum(
        len({bytes(each) for each in ranks.all_of(x.numpy().tobytes())}) - 1 for x in state.values()
    )


def test_several_ranks_update_as_one_process_on_the_whole_batch() -> None:
    every = on_ranks(4, "tests.distributed.test_update:measured")
    limits: list[tuple[str, Callable[[float], bool]]] = [
        ("torch.float64", lambda error: error <= 1e-14),
        ("torch.float32", lambda error: error <= 3e-6),
        ("constants", lambda error: error > 0.01),
        ("equal batches", lambda count: count == 0),
        ("differing", lambda count: count == 0),
        ("captured", lambda count: count == 0),
    ]
    for rank, found in enumerate(every):
        for start, holds in limits:
            of_kind = {name: error for name, error in found.items() if name.startswith(start)}
            assert of_kind
            wrong = [f"{name}: {error:.2g}" for name, error in of_kind.items() if not holds(error)]
            assert not wrong, f"rank {rank}: " + "; ".join(wrong[:5])
