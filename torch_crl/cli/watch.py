"""`torch-crl watch RUN`: a trained policy in MuJoCo's own viewer, in real time."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from torch_crl.cli.flags import read_flags
from torch_crl.cli.runs import load_trained, task_env
from torch_crl.fields import STRICT, CountOrZero, Seed


@dataclass(frozen=True, kw_only=True)
class Options:
    """Watch a trained policy, one episode after the other, until the window is closed."""

    __pydantic_config__ = STRICT

    run: Positional[Path]
    """Run directory, or one folder below its policies/."""
    policy: Literal["newest", "best"] = "newest"
    """Which one of the run's: the newest, or the best by its evaluations in training."""
    task: str = ""
    """Task to show it on; the run's own evaluation task if not given."""
    episode_length: CountOrZero = 0
    """Control steps until the time limit; as in training if not given."""
    trust: bool = False
    """Run the Python code of a task that only the run's files name."""
    seed: Seed = 1_000_000
    """Decides starts and goals."""


def main(arguments: list[str]) -> int:
    """Open the viewer. Returns the exit status."""
    options = read_flags(Options, arguments, command="watch")
    from torch_crl.rendering.viewer import watch

    trained = load_trained(
        options.run,
        which=options.policy,
        task=options.task,
        episode_length=options.episode_length,
        trust=options.trust,
    )
    with closing(task_env(trained, num_envs=1, seed=options.seed)) as env:
        watch(trained.policy, env)
    return 0
