"""`torch-crl plan RUN`: sends a trained policy to far goals by way of states it has visited."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from annotated_types import Ge, Le

from torch_crl.cli.flags import read_flags
from torch_crl.cli.output import check_folder
from torch_crl.cli.progress import Stages
from torch_crl.cli.runs import TrainedOptions, load_trained, told_policy, trained_run
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, CountOrZero, PositiveOrZero
from torch_crl.runs.finding import output_folder, run_directory_of
from torch_crl.system.terminal import print_line, print_markdown

if TYPE_CHECKING:
    from torch_crl.agent.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Options(TrainedOptions):
    """Plan over the states of a run's replay, and measure what that changes."""

    __pydantic_config__ = STRICT

    nodes: Annotated[int, Ge(2), Le(2000), tyro.conf.arg(metavar="2<=INT<=2000")] = 150
    """Number of visited states that a way may lead over."""
    reach: PositiveOrZero = 0.0
    """Distance at which a sub-goal counts as passed; 0 is four times the radius of success."""
    late: Annotated[tuple[CountOrZero, ...], tyro.conf.arg(metavar="STEPS ...")] = (0, 10, 25, 50)
    """Control steps by which plans come late, one evaluation each."""
    num_envs: Count = 128
    """Number of episodes of each evaluation."""
    controller: Path | None = None
    """Run or policy folder that acts in place of the run's own policy: a student of `distil`."""
    out: Path | None = None
    """Folder for the planner, the report and the pictures; plan/ in the run by default."""


def main(arguments: list[str]) -> int:
    """Build the graph, evaluate, print and write the report. Returns the exit status."""
    options = read_flags(Options, arguments, command="plan")
    if not options.late:
        raise UsageError("--late takes at least one number of control steps; 0 is at once")
    folder = options.out or output_folder(run_directory_of(options.run), "plan")
    check_folder("--out", folder)
    trained = load_trained(options)
    from torch_crl.planning.planner import build_planner
    from torch_crl.planning.report import Trial, write_plan_report

    policy = acting_policy(trained.policy, options.controller)
    run = trained_run(options, trained)
    with Stages() as stages:
        stages.begin("measuring distances")
        planner = build_planner(run, nodes=options.nodes, reach=options.reach)
    trial = Trial(
        planner=planner,
        policy=policy,
        task=trained.task,
        num_envs=options.num_envs,
        episode_length=trained.episode_length,
        seed=options.seed,
        env_timeout=trained.env_timeout,
    )
    with Stages() as stages:
        stages.begin("episodes without plans", trained.episode_length)
        flat = trial.flat(lambda _: stages.advance())
        planned = []
        for late in options.late:
            stages.begin(f"episodes with plans, {late} steps late", trained.episode_length)
            planned.append(trial.planned(late, lambda _: stages.advance()))
        stages.begin("pictures")
        text = write_plan_report(trial, flat, planned, folder)
    print_markdown(text)
    print_line(f"written: {folder}/report.md, plan.json, graph.png, lateness.png", stderr=True)
    planner_folder = folder / "planner"
    print_line(f"with these plans: torch-crl eval {options.run} --planner {planner_folder}")
    return 0


def acting_policy(own: "Policy", run: Path | None) -> "Policy":
    """The policy of another run or folder, if one is given.

    Raises UsageError for one that does not see numbers, or other ones.
    """
    if run is None:
        return own
    policy = told_policy(run, "newest")
    policy.require_numbers("--controller")
    sizes = [(each.state_size, each.goal_size, each.action_size) for each in (policy, own)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"--controller {run} was trained on another task: its states, goals and actions have "
            f"{sizes[0]} numbers, those of the run {sizes[1]}"
        )
    return policy
