"""What only a CUDA device can show; skipped where there is none."""

from pathlib import Path

import pytest
import torch

from tests.test_recipe import tiny
from torch_crl import load_policy
from torch_crl.run import build_run
from torch_crl.trainer import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_a_run_on_the_gpu_resumes_and_its_policy_loads_on_the_cpu(tmp_path: Path) -> None:
    recipe = tiny("ant", system={"device": "cuda"}, budget={"checkpoints": 4})
    train(recipe, tmp_path / "run", show=False)
    train(recipe, tmp_path / "run", resume=True, show=False)
    action = load_policy(tmp_path / "run")(torch.zeros(3, 29), torch.zeros(3, 2))
    assert action.device.type == "cpu" and action.isfinite().all()


def test_replay_networks_and_optimiser_live_on_the_gpu() -> None:
    run = build_run(tiny("ant", system={"device": "cuda"}))
    for _ in range(4):
        run.collect()
    run.update()
    tensors = [*run.replay.state_dict().values(), *run.learner.named_parameters().values()]
    # The position of the ring is a number of the host.
    assert {tensor.device.type for tensor in tensors if tensor.dim()} == {"cuda"}


def test_updates_on_the_gpu_equal_those_on_the_cpu() -> None:
    learners = [build_run(tiny("ant", system={"device": device})) for device in ("cpu", "cuda")]
    for run in learners:
        for _ in range(4):
            run.collect()
    # Equal weights and batches; the actor's noise differs, so compare what is free of it.
    batch = learners[0].replay.sample(8, discount=0.99, generator=learners[0].sampler)
    losses = [run.learner.update(batch.to(run.learner.device)) for run in learners]
    for name in ("critic_loss", "contrastive_loss", "logsumexp"):
        assert float(losses[0][name]) == pytest.approx(float(losses[1][name]), rel=1e-3)
