"""What the functions of the Python API say of arguments that they cannot take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torch_crl import evaluate, load_policy, preset, train
from torch_crl.agent.policy import Controller
from torch_crl.deploy.checks import check
from torch_crl.deploy.export import export
from torch_crl.errors import UsageError
from torch_crl.runs.directory import RunDirectory
from torch_crl.sweep.driver import run_trials
from torch_crl.sweep.launch import Launch

ANY: Any = None


def hold_still(state: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    return torch.zeros(len(state), 2)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: evaluate("runs/x", "reacher"), "a function of state and goal, got 'runs/x'"),  # type: ignore[arg-type]
        (lambda: evaluate(hold_still, "reacher", seed=-1), "at least 0 and below 2.63, got -1"),
        (lambda: evaluate(hold_still, "reacher", seed=2**70), "below 2.63, got 118059"),
        (lambda: evaluate(hold_still, "reacher", seed=1.5), "seed must be a whole number, got 1.5"),  # type: ignore[arg-type]
        (lambda: evaluate(hold_still, "reacher", num_envs=2.5), "num_envs must be a whole number"),  # type: ignore[arg-type]
        (
            lambda: evaluate(load_policy("zoo:reacher"), "ant"),
            "cannot act in ant: action_size 8 and not 2, state_size 29 and not 10, goal_size 2 and",
        ),
        (lambda: load_policy(None), "by a path or zoo:NAME, got None"),  # type: ignore[arg-type]
        (lambda: Controller(hold_still, torch.tensor(2.5)), r"a whole number, got tensor\(2.5"),  # type: ignore[arg-type]
        (lambda: Controller(hold_still, 2.5), "num_envs must be a whole number, got 2.5"),  # type: ignore[arg-type]
        (lambda: train("reacher"), r"such as preset\('reacher'\), got 'reacher'"),  # type: ignore[arg-type]
        (lambda: train(preset("reacher"), callback=3), "callback must be a function"),  # type: ignore[arg-type]
        (lambda: Controller(hold_still, 0), "num_envs must be at least 1, got 0"),
        (lambda: RunDirectory("x").read_metrics("eval"), "'train' or 'evaluation', got 'eval'"),
        (lambda: export(ANY, "reacher", "tflite", "x"), "one of onnx, numpy, c, got 'tflite'"),  # type: ignore[arg-type]
        (lambda: check("nowhere"), "nowhere does not exist"),
        (lambda: run_trials([], "x", launch=Launch(parallel=-3)), "parallel must be at least 0"),
        (lambda: run_trials([], "x", launch=Launch(retries=-1)), "retries must be at least 0"),
    ],
)
def test_wrong_arguments_are_told(call: Callable[[], object], told: str) -> None:
    with pytest.raises(UsageError, match=told):
        call()


def test_without_a_time_limit_an_evaluation_has_that_of_the_task() -> None:
    assert evaluate(hold_still, "reacher", num_envs=2)["episode_length"] == 200
