"""Our Gymnasium envs can be copied and sent to other processes, as tree search and joblib do."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest

import torch_crl  # noqa: F401  Registers the envs.

WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "shallow copy": copy.copy,
    "pickle": lambda env: pickle.loads(pickle.dumps(env)),
}


def equal(ours: object, theirs: object) -> bool:
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return set(ours) == set(theirs) and all(equal(ours[key], theirs[key]) for key in ours)
    return bool(np.array_equal(ours, theirs))  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_of_many_episodes_goes_on_alike_and_apart(way: str) -> None:
    ours = gymnasium.make_vec("torch_crl/Ant-v0", num_envs=3, max_episode_steps=4, reward="dense")
    ours.reset(seed=0)
    ours.action_space.seed(1)
    for _ in range(3):
        ours.step(ours.action_space.sample())
    theirs = WAYS[way](ours)
    # Over the ends of episodes, whose next starts are drawn.
    actions = [ours.action_space.sample() for _ in range(7)]
    told = [ours.step(action)[:4] for action in actions]
    for action, step in zip(actions, told, strict=True):
        for one, other in zip(theirs.step(action)[:4], step, strict=True):
            assert equal(one, other)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_of_one_episode_goes_on_inside_its_wrappers(way: str) -> None:
    ours = gymnasium.make("torch_crl/Reacher-v0", max_episode_steps=5)
    ours.reset(seed=3)
    push = np.full(2, 0.3, np.float32)
    ours.step(push)
    theirs = WAYS[way](ours)
    told = [ours.step(push) for _ in range(4)]
    assert told[-1][3]
    for step in told:
        assert all(equal(one, other) for one, other in zip(theirs.step(push), step, strict=True))
    # Without a seed the next episode is drawn by the generator that was copied too.
    assert equal(theirs.reset()[0], ours.reset()[0])


def test_actions_may_be_lists_and_nan_is_refused() -> None:
    env = gymnasium.make("torch_crl/Reacher-v0")
    env.reset(seed=0)
    env.step([0.0, 0.5])
    with pytest.raises(ValueError, match=r"the action that was given is NaN, .* in entry \[1\]"):
        env.step(np.array([0.0, np.nan], np.float32))
    # Who caught it may go on with the episode.
    env.step([0.0, 0.5])
