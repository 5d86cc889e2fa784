"""What a policy takes: one or many states and goals, in any kind of array, and never NaN."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from torch_crl import load_policy
from torch_crl.agent.networks import ResidualTower
from torch_crl.agent.policy import Policy
from torch_crl.agent.sizes import TowerSizes
from torch_crl.errors import NotFiniteError
from torch_crl.runs.policies import save_policy
from torch_crl.system import checkpoint
from torch_crl.system.checkpoint import CheckpointError


@pytest.fixture
def policy() -> Policy:
    sizes = TowerSizes(input_size=5, output_size=4, width=8, depth=4)
    actor = ResidualTower(sizes, generator=Generator().manual_seed(0))
    return Policy(actor, state_size=3, goal_size=2)


STATES = np.arange(12, dtype=np.float32).reshape(4, 3) / 12
GOALS = np.arange(8, dtype=np.float32).reshape(4, 2) / 8


def test_one_goal_goes_with_many_states_and_one_state_with_many_goals(policy: Policy) -> None:
    wanted = policy(STATES, np.stack([GOALS[1]] * 4))
    np.testing.assert_array_equal(policy(STATES, GOALS[1]), wanted)
    np.testing.assert_array_equal(policy(STATES, GOALS[1:2]), wanted)
    wanted = policy(np.stack([STATES[2]] * 4), GOALS)
    np.testing.assert_array_equal(policy(STATES[2], GOALS), wanted)
    deep = policy(STATES.reshape(2, 2, 3), GOALS.reshape(2, 2, 2))
    np.testing.assert_array_equal(deep.reshape(4, 2), policy(STATES, GOALS))


@pytest.mark.parametrize("kind", [">f8", "<f4", "f2", "f8"])
def test_any_kind_of_array_gives_the_same_action(policy: Policy, kind: str) -> None:
    states, goals = np.float16(STATES), np.float16(GOALS)
    wanted = policy(np.float32(states), np.float32(goals))
    got = policy(states.astype(kind), goals.astype(kind))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, wanted)


def test_views_lists_and_integers(policy: Policy) -> None:
    wanted = policy(STATES[::-1].copy(), GOALS[::-1].copy())
    np.testing.assert_array_equal(policy(STATES[::-1], GOALS[::-1]), wanted)
    np.testing.assert_array_equal(policy(STATES.tolist(), GOALS.tolist()), policy(STATES, GOALS))
    whole = policy(np.ones(3, int), np.zeros(2, int))
    np.testing.assert_array_equal(whole, policy(np.ones(3), np.zeros(2)))


def test_a_program_of_it_takes_other_batch_sizes() -> None:
    class Plan(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Linear(5, 4, device="meta")
            self.policy = Policy(self.layers, state_size=3, goal_size=2)

        def forward(self, state: Tensor, goal: Tensor) -> Tensor:
            return self.policy.plan(state, goal)

    def batch(size: int) -> tuple[Tensor, Tensor]:
        return torch.empty(size, 3, device="meta"), torch.empty(size, 2, device="meta")

    rows = {0: torch.export.Dim("rows", min=2, max=100)}
    program = torch.export.export(Plan(), batch(6), dynamic_shapes=(rows, rows), strict=False)
    assert program.module()(*batch(9)).shape == (9, 1, 2)


def test_an_empty_batch_has_no_actions(policy: Policy) -> None:
    assert policy(np.zeros((0, 3)), np.zeros((0, 2))).shape == (0, 2)
    assert policy(torch.zeros(3, 0, 3), torch.zeros(3, 0, 2)).shape == (3, 0, 2)


@pytest.mark.parametrize(
    ("state", "goal", "message"),
    [
        (np.zeros((4, 3)), np.zeros((5, 2)), r"as many states as goals.* \[4, 3\] and \[5, 2\]"),
        (np.zeros(4), np.zeros(2), "states of 3 and goals of 2 numbers"),
        (np.float64(0), np.zeros(2), r"states of 3 and goals of 2 numbers.* shapes \[\] and \[2\]"),
        (np.full((2, 3), np.nan), np.zeros(2), "a state whose entry 0 of row 0 is nan"),
        (np.zeros((2, 3)), np.array([0, np.inf]), "a goal whose entry 1 is inf"),
        (torch.zeros(3), torch.tensor([0.0, torch.nan]), "a goal whose entry 1 is nan"),
    ],
)
def test_what_gives_no_action_is_refused(
    policy: Policy, state: np.ndarray, goal: np.ndarray, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        policy(state, goal)


def test_numbers_whose_sum_overflows_are_finite(policy: Policy) -> None:
    huge = np.full(3, 3e38, np.float32)
    assert np.isfinite(policy(huge / 1e30, np.zeros(2))).all()
    try:
        policy(huge, np.zeros(2))
    except NotFiniteError as error:
        pytest.fail(str(error))


def nan_in_a_weight(tensors: dict[str, Tensor], described: dict) -> None:
    tensors["weight"][1, 2, 3] = float("nan")


def a_tensor_too_few(tensors: dict[str, Tensor], described: dict) -> None:
    del tensors["ln_bias"]


def another_type(tensors: dict[str, Tensor], described: dict) -> None:
    tensors["bias"] = tensors["bias"].double()


def a_depth_for_no_machine(tensors: dict[str, Tensor], described: dict) -> None:
    described["network"] |= {"depth": 2**20, "width": 2**20}


def a_width_beyond_counting(tensors: dict[str, Tensor], described: dict) -> None:
    described["network"] |= {"width": 2**31 - 1}


def more_layers_than_anybody_has(tensors: dict[str, Tensor], described: dict) -> None:
    described["network"] = {"kind": "mlp", "layers": [1] * 20_000, "activation": "tanh"}


def another_goal(tensors: dict[str, Tensor], described: dict) -> None:
    described["goal_size"] = 7


def an_unknown_head(tensors: dict[str, Tensor], described: dict) -> None:
    described["head"] = "softmax"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (nan_in_a_weight, "weight has numbers that are not finite"),
        (a_tensor_too_few, "ln_bias is missing"),
        (another_type, r"bias is \[4, 8\] of torch.float64, needed is \[4, 8\] of torch.float32"),
        (a_depth_for_no_machine, r"needed is \[1048576, 1048576\]"),
        (a_width_beyond_counting, "holds no policy"),
        (more_layers_than_anybody_has, "at most 64 items"),
        (another_goal, "its network takes 5 numbers, a state and a goal 10"),
        (an_unknown_head, "head must be one of 'squashed_gaussian', 'tanh', 'clip', got 'softmax'"),
    ],
)
def test_weights_that_are_no_policy_are_refused_before_memory_is_taken(
    policy: Policy, tmp_path: Path, damage: Callable, told: str
) -> None:
    save_policy(policy, tmp_path / "good", {})
    tensors, meta = checkpoint.load(tmp_path / "good")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    damage(tensors, meta["policy"])
    # With fitting checksums, as a stranger could write it.
    checkpoint.save(tmp_path / "bad", tensors, meta)
    with pytest.raises(CheckpointError, match=told):
        load_policy(tmp_path / "bad")
    assert load_policy(tmp_path / "good")(STATES, GOALS).shape == (4, 2)
