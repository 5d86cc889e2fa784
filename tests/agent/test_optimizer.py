"""How large an update was: numbers worked out by hand."""

import math

import pytest
import torch

from tests.helpers.recipes import tiny
from torch_crl.agent.optimizer import UpdateSizes, adam, gradient_norm
from torch_crl.training.building import build_run
from torch_crl.training.crl_run import CrlRun


def test_sizes_of_an_update_by_hand() -> None:
    actor, critic = [torch.tensor([3.0, 4.0]), torch.tensor([12.0])], [torch.tensor([2.0])]
    for parameter in (*actor, *critic):
        parameter.requires_grad_()
    sizes = UpdateSizes({"actor": actor, "critic": critic})
    actor[0].grad, actor[1].grad = torch.tensor([1.0, -2.0]), torch.tensor([2.0])
    critic[0].grad = torch.tensor([-0.5])
    with torch.no_grad():
        actor[0] += torch.tensor([0.3, -0.4])
        actor[1] -= 1.2
    measured = {name: size.item() for name, size in sizes.measure().items()}
    # |(1, -2, 2)| is 3, |(0.3, -0.4, -1.2)| is 1.3, and |(3, 4, 12)| is 13.
    assert measured == pytest.approx(
        {
            "gradient_norm_actor": 3.0,
            "update_size_actor": 0.1,
            "gradient_norm_critic": 0.5,
            "update_size_critic": 0.0,
        }
    )


def test_a_gradient_whose_square_fp32_cannot_hold_has_a_norm() -> None:
    parameter = torch.zeros(2, requires_grad=True)
    parameter.grad = torch.tensor([3e30, 4e30])
    assert gradient_norm([parameter]).item() == pytest.approx(5e30)


def before_the_first_update(algo: str) -> CrlRun:
    budget = {"env_steps_per_update": 20.0}
    recipe = tiny(algorithm={"algo": algo}, budget=budget)
    assert recipe.updates_per_collection == 1
    run = build_run(recipe)
    while run.updates_done == run.updates_due:
        run.collect()
    return run


@pytest.mark.parametrize(("algo", "networks"), [("crl", ["actor", "critic"]), ("gcbc", ["actor"])])
def test_the_first_step_of_adam_moves_every_number_by_the_learning_rate(
    algo: str, networks: list[str]
) -> None:
    run = before_the_first_update(algo)
    before = {
        name: [parameter.detach().clone() for parameter in parameters]
        for name, parameters in run.learner.trained.items()
    }
    assert list(before) == networks and not run.update_sizes
    run.update()
    for name, parameters in run.learner.trained.items():
        # g / (|g| + 1e-8), which is nearly the sign wherever there is a gradient at all.
        rate = getattr(run.recipe.algorithm, f"{name}_learning_rate")
        moved = torch.cat([(parameter.grad.abs() > 1e-6).flatten() for parameter in parameters])
        assert moved.double().mean() > 0.5
        norm = math.sqrt(sum(float((part.double() ** 2).sum()) for part in before[name]))
        size = rate * math.sqrt(int(moved.sum())) / norm
        assert run.update_sizes[f"update_size_{name}"].item() == pytest.approx(size, rel=0.01)
        squares = sum(float((part.grad.double() ** 2).sum()) for part in parameters)
        measured = run.update_sizes[f"gradient_norm_{name}"].item()
        assert measured == pytest.approx(math.sqrt(squares))
    assert len(run.update_sizes) == 2 * len(networks)


def test_the_last_update_of_a_collection_is_the_one_that_is_measured() -> None:
    run = build_run(tiny())
    while run.updates_due < 4:
        run.collect()
    for _ in range(3):
        run.update()
        assert not run.update_sizes
    run.update()
    assert run.update_sizes


def test_adam_is_torchs_with_its_hooks() -> None:
    ours, theirs = (torch.linspace(-1, 1, 40).requires_grad_() for _ in range(2))
    optimizers = (
        adam({3e-4: [ours]}, torch.device("cpu"), "reference"),
        torch.optim.Adam([theirs], lr=3e-4, fused=True),
    )
    steps = []
    for optimizer in optimizers:
        optimizer.register_step_post_hook(lambda *_: steps.append(torch.is_grad_enabled()))
    for _ in range(3):
        for parameter, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            assert parameter.grad is None
            parameter.grad = parameter.detach().cos()
            optimizer.step()
    assert torch.equal(ours, theirs) and steps == [True] * 6
    for name, value in optimizers[1].state[theirs].items():
        assert torch.equal(optimizers[0].state[ours][name], value)
