"""The Python API: change a preset, train, load the policy, use it, evaluate it elsewhere."""

import os

import torch

from torch_crl import evaluate, load_policy, preset, train, with_changes

# The tests set this variable to train for a shorter time; leave it unset to learn the task.
steps = int(os.environ.get("TORCH_CRL_EXAMPLE_STEPS", "100000"))

recipe = with_changes(
    preset("reacher", depth=8),
    algorithm={"contrastive_loss": "symmetric_info_nce"},
    budget={"env_steps": steps, "evaluations": 2, "checkpoints": 1},
    system={"seed": 1},
)
print(f"{recipe.update_cost.parameters:,} parameters, {recipe.total_updates:,} updates")
result = train(recipe, "runs/python_api", overwrite=True)

policy = load_policy(result.run_dir)
state = torch.zeros(policy.state_size)
goal = torch.tensor([0.1, 0.1, 0.01])
print("action for one state and goal:", policy(state, goal))

metrics = evaluate(policy, "reacher", num_envs=64, episode_length=200, seed=7)
print({name: round(value, 3) for name, value in metrics.items()})
