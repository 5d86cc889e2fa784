"""`torch-crl eval RUN`: what a trained policy does, on its own or another task."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from annotated_types import Le
from tyro.conf import Positional

from torch_crl.cli.flags import read_flags
from torch_crl.cli.runs import Trained, film_env, load_trained
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, CountOrZero, Positive, Seed
from torch_crl.terminal import console, print_line


@dataclass(frozen=True, kw_only=True)
class Options:
    """Evaluate a trained policy over fresh episodes."""

    __pydantic_config__ = STRICT

    run: Positional[Path]
    """Run directory, or one folder below its policies/."""
    policy: Literal["newest", "best"] = "newest"
    """Which one of the run's: the newest, or the best by its evaluations in training."""
    task: str = ""
    """Task to evaluate on; the run's own evaluation task if not given."""
    num_envs: Count = 128
    """Episodes, all in parallel."""
    episode_length: CountOrZero = 0
    """Control steps until the time limit; as in training if not given."""
    trust: bool = False
    """Run the Python code of a task that only the run's files name."""
    seed: Seed = 1_000_000
    """Decides starts and goals; training never uses this one."""
    json: bool = False
    """Print one line of JSON instead of the table."""
    video: Path | None = None
    """Also film the policy into this file, .mp4 or .gif, in real time."""
    video_envs: Count = 4
    """Episodes side by side in the video."""
    video_seconds: Annotated[Positive, Le(86_400.0)] = 15.0
    """Length of the video, a day at most."""


def main(arguments: list[str]) -> int:
    """Print the metrics of one evaluation. Returns the exit status."""
    options = read_flags(Options, arguments, command="eval", config=(tyro.conf.FlagCreatePairsOff,))
    _check_video(options)
    trained = load_trained(
        options.run,
        which=options.policy,
        task=options.task,
        episode_length=options.episode_length,
        trust=options.trust,
    )
    result = _evaluate(trained, options)
    if options.json:
        print_line(json.dumps({"task": trained.task, **result}))
    else:
        print_line(f"{trained.task}, {options.num_envs} episodes")
        width = max(20, *map(len, result))
        for name, value in result.items():
            print_line(f"  {name:<{width}} {value:10.3f}")
    if options.video is not None:
        _film(trained, options, options.video)
    return 0


def _check_video(options: Options) -> None:
    if options.video is not None:
        from torch_crl.rendering.video import MAX_ENVS, check_ending

        check_ending(options.video)
        if options.video_envs > MAX_ENVS:
            raise UsageError(f"--video-envs must be 1 to {MAX_ENVS}, got {options.video_envs}")


def _evaluate(trained: Trained, options: Options) -> dict[str, float]:
    from rich.progress import Progress

    from torch_crl.evaluation import evaluate

    # Gone when the numbers come; nothing at all where standard error is no terminal.
    with Progress(console=console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{options.num_envs} episodes", total=trained.episode_length)
        return evaluate(
            trained.policy,
            trained.task,
            num_envs=options.num_envs,
            episode_length=trained.episode_length,
            seed=options.seed,
            env_timeout=trained.env_timeout,
            on_step=lambda step: progress.update(bar, completed=step),
        )


def _film(trained: Trained, options: Options, path: Path) -> None:
    from contextlib import closing

    from rich.progress import Progress

    from torch_crl.rendering.video import record, seconds_per_step

    with (
        closing(film_env(trained, num_envs=options.video_envs, seed=options.seed)) as env,
        Progress(console=console(stderr=True), transient=True) as progress,
    ):
        steps = max(1, round(options.video_seconds / seconds_per_step(env)))
        bar = progress.add_task(f"filming {path.name}", total=steps)
        backend = record(
            trained.policy,
            env,
            path,
            steps=steps,
            on_step=lambda step: progress.update(bar, completed=step),
        )
    print_line(f"video: {path} (drawn with {backend})", stderr=True)
