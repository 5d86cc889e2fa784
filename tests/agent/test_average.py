"""The averaged actor: against fp64 arithmetic, in evaluations and policies, resumed, captured."""

from pathlib import Path

import torch
from torch import Generator

from tests.helpers.graph_stand_in import StandIn
from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_resumes
from torch_crl import load_policy
from torch_crl.agent.average import AveragedActor
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.sizes import TowerSizes
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun

AVERAGED = {"average_weights": 0.9}


def test_the_average_is_that_of_the_definition() -> None:
    sizes = TowerSizes(input_size=3, output_size=2, width=8, depth=4)
    actor = ResidualTower(sizes, generator=Generator().manual_seed(0))
    average = AveragedActor(actor, decay=0.75)
    expected = {name: value.detach().double() for name, value in actor.named_parameters()}
    noise = Generator().manual_seed(1)
    for update in range(1, 41):
        with torch.no_grad():
            for parameter in actor.parameters():
                parameter += torch.randn(parameter.shape, generator=noise)
        average.update()
        for name, value in actor.named_parameters():
            # The first updates forget faster; from the 27th on the decay is 0.75.
            decay = min(0.75, update / (update + 9))
            expected[name] = decay * expected[name] + (1 - decay) * value.detach().double()
    state = average.state_dict()
    assert state.pop("updates") == 40
    for name, value in state.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-5)
        assert not value.requires_grad


def prepared(**algorithm: float) -> CrlRun:
    run = build_run(tiny(algorithm=algorithm))
    for _ in range(4):
        run.collect()
    for _ in range(3):
        run.update()
    return run


def test_the_policy_is_the_average_and_collection_takes_the_newest_weights() -> None:
    run, plain = prepared(**AVERAGED), prepared(average_weights=0.0)
    newest = dict(run.learner.actor.named_parameters())
    for name, value in plain.learner.actor.named_parameters():
        assert torch.equal(value, newest[name]), "training does not change with the average"
    state, goal = torch.zeros(run.env.spec.state_size), torch.zeros(run.env.spec.goal_size)
    assert run.average is not None and run.policy.actor is run.average.actor
    assert not torch.equal(run.policy(state, goal), plain.policy(state, goal))
    assert run.collector.actor is run.learner.actor  # type: ignore[union-attr]


def test_an_interrupted_run_goes_on_to_the_same_average(tmp_path: Path) -> None:
    recipe = tiny(algorithm=AVERAGED, budget={"checkpoints": 8})
    assert_resumes(recipe, tmp_path)
    ours, theirs = (load_policy(tmp_path / name) for name in ("whole", "parts"))
    for one, other in zip(ours.actor.parameters(), theirs.actor.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_captured_update_moves_the_average_too() -> None:
    eager = build_run(tiny(algorithm=AVERAGED))
    captured = build_run(
        tiny(algorithm=AVERAGED, system={"cuda_graph": "on"}), make_recorder=StandIn
    )
    for run in (eager, captured):
        for _ in range(4):
            run.collect()
        for _ in range(8):
            run.update()
    assert captured.update_graph is not None and captured.update_graph.captures == 1
    assert eager.average is not None and captured.average is not None
    for name, value in eager.average.state_dict().items():
        assert torch.equal(value, captured.average.state_dict()[name]), name
