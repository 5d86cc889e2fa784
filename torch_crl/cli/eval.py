"""`torch-crl eval RUN`: evaluates a trained policy, on its own task or on another one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Le

from torch_crl.cli.flags import read_flags
from torch_crl.cli.runs import Trained, TrainedOptions, film_env, load_trained
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, Positive
from torch_crl.system.terminal import console, print_line


@dataclass(frozen=True, kw_only=True)
class Options(TrainedOptions):
    """Evaluate a trained policy over fresh episodes."""

    __pydantic_config__ = STRICT

    num_envs: Count = 128
    """Number of episodes, all simulated in parallel."""
    json: bool = False
    """Print one line of JSON instead of the table."""
    video: Path | None = None
    """Also save a video of the policy, in real time, as this .mp4 or .gif file."""
    video_envs: Count = 4
    """Number of episodes shown side by side in the video."""
    video_seconds: Annotated[Positive, Le(86_400.0)] = 15.0
    """Length of the video in seconds, a day at most."""


def main(arguments: list[str]) -> int:
    """Print the metrics of one evaluation. Returns the exit status."""
    options = read_flags(Options, arguments, command="eval")
    _check_video(options)
    trained = load_trained(options)
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

    from torch_crl.training.evaluation import evaluate

    # The bar is removed before the numbers are printed. Without a terminal there is no bar.
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

    from torch_crl.rendering.video import record

    with (
        closing(film_env(trained, num_envs=options.video_envs, seed=options.seed)) as env,
        Progress(console=console(stderr=True), transient=True) as progress,
    ):
        steps = max(1, round(options.video_seconds / env.seconds_per_step))
        bar = progress.add_task(f"filming {path.name}", total=steps)
        backend = record(
            trained.policy,
            env,
            path,
            steps=steps,
            on_step=lambda step: progress.update(bar, completed=step),
        )
    print_line(f"video: {path} (drawn with {backend})", stderr=True)
