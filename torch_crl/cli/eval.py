"""`torch-crl eval RUN`: what a trained policy does, on its own or another task."""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro
from tyro.conf import Positional

from torch_crl.cli.errors import UsageError, told_to_user
from torch_crl.cli.runs import read_recipe, run_directory_of


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a trained policy over fresh episodes."""

    run: Positional[Path]
    """Run directory (its newest policy), or one folder below its policies/."""
    task: str = ""
    """Task to evaluate on; the run's own evaluation task if not given."""
    num_envs: int = 128
    """Episodes, all in parallel."""
    episode_length: int = 0
    """Control steps until the time limit; as in training if not given."""
    seed: int = 1_000_000
    """Decides starts and goals; training never uses this one."""
    json: bool = False
    """Print one line of JSON instead of the table."""


def main(arguments: list[str]) -> int:
    """Print the metrics of one evaluation. Returns the exit status."""
    options = tyro.cli(
        Options,
        args=arguments,
        prog="torch-crl eval",
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from rich.console import Console
    from rich.progress import Progress

    from torch_crl.checkpoint import CheckpointError
    from torch_crl.envs.registry import UnknownTaskError, task_spec
    from torch_crl.envs.simulators import SimulatorError
    from torch_crl.evaluation import evaluate
    from torch_crl.policy import load_policy

    with told_to_user(UnknownTaskError, CheckpointError, SimulatorError):
        if options.num_envs < 1:
            raise UsageError(f"--num-envs must be at least 1, got {options.num_envs}")
        if options.episode_length < 0:
            raise UsageError(f"--episode-length must be at least 1, got {options.episode_length}")
        recipe = read_recipe(run_directory_of(options.run))
        policy = load_policy(options.run)
        task = options.task or recipe.task.eval_name
        spec = task_spec(task)
        if (spec.state_size, spec.goal_size) != (policy.state_size, policy.goal_size):
            raise UsageError(
                f"the policy was trained on {recipe.task.name}; {task} has states and goals of "
                "other sizes"
            )
        episode_length = options.episode_length or recipe.task.episode_length
        # Gone when the numbers come; nothing at all where standard error is no terminal.
        with Progress(console=Console(stderr=True), transient=True) as progress:
            bar = progress.add_task(f"{options.num_envs} episodes", total=episode_length)
            result = evaluate(
                policy,
                task,
                num_envs=options.num_envs,
                episode_length=episode_length,
                seed=options.seed,
                on_step=lambda step: progress.update(bar, completed=step),
            )
    if options.json:
        print(json.dumps({"task": task, **result}))
    else:
        print(f"{task}, {options.num_envs} episodes")
        for name, value in result.items():
            print(f"  {name:<20} {value:10.3f}")
    return 0
