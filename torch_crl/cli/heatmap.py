"""`torch-crl heatmap RUN`: draws a critic's distances, and which goals are reached."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch_crl.cli.flags import read_flags
from torch_crl.cli.output import check_file
from torch_crl.cli.progress import Stages
from torch_crl.cli.runs import Trained, TrainedOptions, load_trained, trained_run
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count
from torch_crl.runs.finding import output_folder, run_directory_of
from torch_crl.system.terminal import print_line

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torch_crl.agent.policy import Acts
    from torch_crl.planning.goal_value import TrainedRun


@dataclass(frozen=True, kw_only=True)
class Options(TrainedOptions):
    """Draw what a run's critic knows of distances, ways, and success by goal."""

    __pydantic_config__ = STRICT

    num_envs: Count = 128
    """Number of episodes."""
    out: Path | None = None
    """The picture, a .png file; heatmap.png in the run by default."""


def main(arguments: list[str]) -> int:
    """Run the episodes and write the picture. Returns the exit status."""
    options = read_flags(Options, arguments, command="heatmap")
    path = options.out or output_folder(run_directory_of(options.run), "heatmap.png")
    if path.suffix != ".png":
        raise UsageError(f"--out takes the name of a .png file, got {path}")
    check_file("--out", path)
    trained = load_trained(options)
    from torch_crl.planning.pictures import save

    run = trained_run(options, trained)
    figure = draw(trained, trained.policy, run, num_envs=options.num_envs, seed=options.seed)

    save(figure, path)
    print_line(f"picture: {path}")
    return 0


def draw(
    trained: Trained, policy: "Acts", run: "TrainedRun | None", *, num_envs: int, seed: int
) -> "Figure":
    """The picture of a run's distances, if it has a critic, with episodes of `policy`."""
    from torch_crl.planning.episodes import record_episodes
    from torch_crl.planning.pictures import ground_of, heatmap
    from torch_crl.planning.planner import build_planner

    ground = ground_of(trained.task)
    planner = build_planner(run) if run and ground.is_maze else None
    with Stages() as stages:
        stages.begin(f"{num_envs} episodes", trained.episode_length)
        episodes = record_episodes(
            policy,
            trained.task,
            num_envs=num_envs,
            episode_length=trained.episode_length,
            seed=seed,
            env_timeout=trained.env_timeout,
            on_step=stages.done,
        )
    return heatmap(run, trained.task, ground, episodes, planner=planner)
