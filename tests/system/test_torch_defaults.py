"""What a script sets for all of torch changes nothing of what the library does."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

import torch_crl  # noqa: F401  Registers the envs.
from tests.helpers.recipes import tiny
from torch_crl import evaluate, load_policy, train
from torch_crl.envs.make import make_vector_env
from torch_crl.envs.registry import make_task
from torch_crl.system.torch_defaults import torch_defaults


@contextmanager
def double_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def meta_by_default() -> Iterator[None]:
    """Stands for a GPU, which there may be none of; its tensors have no numbers."""
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_device(None)


SETTINGS: dict[str, Callable[[], AbstractContextManager[object]]] = {
    "float64": double_by_default,
    "device": meta_by_default,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    folder = tmp_path_factory.mktemp("usual")
    return folder, train(tiny(), folder, overwrite=True, show=False).evaluation


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_and_its_policy_are_the_same(
    setting: str, usual: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    folder, wanted = usual
    states, goals = np.ones((3, 10)), np.ones((3, 3))
    actions = load_policy(folder)(states, goals)
    with SETTINGS[setting]():
        got = train(tiny(), tmp_path / "run", show=False).evaluation
        policy = load_policy(tmp_path / "run")
        assert policy(torch.ones(10, device="cpu"), torch.ones(3, device="cpu")).is_cpu
        np.testing.assert_array_equal(policy(states, goals), actions)
    assert {**got, "seconds": 0} == {**wanted, "seconds": 0}


@pytest.mark.parametrize("setting", SETTINGS)
def test_envs_are_the_same(setting: str) -> None:
    def rolled(context: AbstractContextManager[object]) -> list[np.ndarray]:
        action = np.full(2, 0.5)
        make_task.cache_clear()
        with context:
            one = gymnasium.make("torch_crl/Reacher-v0")
            first = one.reset(seed=0)[0]
            last, *_ = one.step(action)
            assert one.observation_space.contains(last)
            many = make_vector_env("ant", num_envs=2, episode_length=3, seed=0, num_threads=1)
            zeros = torch.zeros(2, 8, device="cpu", dtype=torch.float32)
            result = [many.step(zeros) for _ in range(4)][-1]
        # Envs made there serve outside too.
        many.step(zeros)
        return [first["observation"], last["observation"], result.final_state_NS.numpy()]

    wanted, got = rolled(nullcontext()), rolled(SETTINGS[setting]())
    for ours, theirs in zip(got, wanted, strict=True):
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours, theirs)


def test_evaluation_is_the_same() -> None:
    def still(state: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(state), 2)

    wanted = evaluate(still, "reacher", num_envs=3, episode_length=5)
    for setting in SETTINGS.values():
        with setting():
            assert evaluate(still, "reacher", num_envs=3, episode_length=5) == wanted


def test_the_settings_are_as_before_afterwards() -> None:
    with double_by_default(), meta_by_default():
        with torch_defaults():
            inside = torch.zeros(1)
            with torch_defaults():
                pass
            assert inside.dtype == torch.float32 and inside.is_cpu
            assert torch.zeros(1).is_cpu
        outside = torch.zeros(1)
        assert outside.dtype == torch.float64 and outside.is_meta
