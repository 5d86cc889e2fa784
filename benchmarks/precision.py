"""Errors of each precision against fp64: `python -m torch_crl.benchmarks.precision`.

Takes the state-action encoder of `ant`, with its initial weights and after some updates on data of
the random policy, and measures its hidden layers: the output, what tells the samples apart (the
output minus its mean over the batch), and the gradients of input and weights for a random upstream
gradient of the size that a mean over the batch gives. The kernels' rounding is computed in plain
torch, so that no GPU is needed. The last line of standard output is JSON.
"""

import argparse
import itertools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor

from torch_crl.agent.actor_critic import ActorCritic
from torch_crl.agent.objectives.crl import ContrastiveObjective
from torch_crl.benchmarks.report import report
from torch_crl.kernels.dense import PRECISIONS
from torch_crl.kernels.tower import BLOCKS, Stack, tower
from torch_crl.recipe.presets import preset, with_changes
from torch_crl.training.building import build_run

# Depth to the updates before the second measurement, which take a minute or two.
UPDATES = {4: 1000, 64: 150, 256: 40, 1024: 10}
BATCH = 64


def measure(block: str, depth: int) -> list[dict[str, Any]]:
    """A row for each precision, before and after training."""
    recipe = with_changes(
        preset("ant", depth=depth),
        task={"num_envs": 64},
        networks={"block": block},
        algorithm={"batch_size": BATCH},
        budget={"replay_rows": 500, "prefill_rows": 124},
        system={"device": "cpu"},
    )
    run = build_run(recipe)
    for _ in range(4):
        run.collect()
    rows = []
    for updates in (0, UPDATES.get(depth, 10)):
        for _ in range(updates):
            metrics = run.update()
        if updates and not all(value.isfinite() for value in metrics.values()):
            raise RuntimeError(f"training at depth {depth} gave metrics that are not finite")
        batch = run.replay.sample(BATCH, discount=0.99, generator=Generator().manual_seed(1))
        assert isinstance(run.learner, ActorCritic)
        assert isinstance(run.learner.objective, ContrastiveObjective)
        network = run.learner.objective.networks.state_action_encoder
        with torch.no_grad():
            x = network.embed(torch.cat([batch["state"], batch["action"]], dim=-1))
            stack = network.stack.detached()
        upstream = torch.randn(x.shape, generator=Generator().manual_seed(2)) / BATCH
        options = {"block": block, "branch_scale": network.sizes.branch_scale}
        truth = _gradients(x, stack, upstream, "fp32", torch.float64, options)
        for precision in PRECISIONS:
            values = _gradients(x, stack, upstream, precision, torch.float32, options)
            errors = {name: _error(value, truth[name]) for name, value in values.items()}
            row = {"scenario": "precision", "block": block, "depth": depth, "updates": updates}
            rows.append(row | {"precision": precision} | errors)
    return rows


def _gradients(
    x: Tensor,
    stack: Stack,
    upstream: Tensor,
    precision: str,
    dtype: torch.dtype,
    options: dict[str, Any],
) -> dict[str, Tensor]:
    x, upstream = x.to(dtype, copy=True).requires_grad_(), upstream.to(dtype)
    stack = Stack(*(part.to(dtype, copy=True).requires_grad_() for part in stack))
    (y,) = tower([x], [stack], precision=precision, **options)
    y.backward(upstream)
    assert x.grad is not None and stack.weight_LDD.grad is not None
    y = y.detach()
    return {
        "output": y,
        "between_samples": y - y.mean(0),
        "input_gradient": x.grad,
        "weight_gradient": stack.weight_LDD.grad,
    }


def _error(value: Tensor, truth: Tensor) -> float:
    return float((value.double() - truth).norm() / truth.norm())


def main() -> None:
    """Measure the given depths, print a line for each row, then everything as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depths", type=int, nargs="+", default=list(UPDATES))
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    rows = []
    for block, depth in itertools.product(BLOCKS, options.depths):
        print(f"{block}, depth {depth} ...", file=sys.stderr, flush=True)
        for row in measure(block, depth):
            rows.append(row)
            cells = (f"{v:.1e}" if isinstance(v, float) else str(v) for v in row.values())
            print("  ".join(cells), flush=True)
    report(rows, options.out)


if __name__ == "__main__":
    main()
