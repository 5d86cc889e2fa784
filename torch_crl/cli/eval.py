"""`torch-crl eval RUN`: evaluates a trained policy, on its own task or on another one."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Le

from torch_crl.cli.flags import read_flags
from torch_crl.cli.output import check_file, check_folder
from torch_crl.cli.progress import Stages
from torch_crl.cli.runs import (
    Trained,
    TrainedOptions,
    critic_if_any,
    film_env,
    load_trained,
    reader_of,
    shown,
    told,
    trained_run,
)
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, Positive
from torch_crl.system.terminal import print_line

if TYPE_CHECKING:
    from torch_crl.agent.policy import Acts


Shares = dict[str, list[list[float]]]
"""Place to the share of the plans in which each expert of each block was used."""


@dataclass(frozen=True, kw_only=True)
class Options(TrainedOptions):
    """Evaluate a trained policy over fresh episodes."""

    __pydantic_config__ = STRICT

    num_envs: Count = 128
    """Number of episodes, all simulated in parallel."""
    planner: str = "none"
    """`graph` sends the policy to its goals by way of states that the run has visited; a folder is
    a planner that `torch-crl plan` has written."""
    controller: Path | None = None
    """With a planner: run or policy folder that acts in place of the run's own policy."""
    say: str = ""
    """With a policy of --goals words: the sentence that commands all episodes, such as "go to the
    upper left corner"; by default each has one of the phrases that the policy learned from."""
    unseen: bool = False
    """With a policy of --goals words: command by sentences of forms that it has not learned."""
    picture: Path | None = None
    """With a policy of --goals pictures: picture file that commands all episodes; by default each
    has a picture of its own goal."""
    report: Path | None = None
    """Folder for a page, report.html, with the metrics and the picture of `torch-crl heatmap`;
    without the run's critic the picture has no distances."""
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
    if options.controller is not None and options.planner == "none":
        raise UsageError("--controller takes effect with --planner only")
    if options.report is not None:
        check_folder("--report", options.report)
    trained = load_trained(options)
    trained = _commanded(trained, options)
    policy = _acting(trained, options)
    result, used = _evaluate(policy, trained, options)
    if options.json:
        named = {"planner": options.planner} if options.planner != "none" else {}
        named |= {"controller": str(options.controller)} if options.controller else {}
        experts = {"experts": used} if used else {}
        print_line(json.dumps({"task": trained.task, **named, **result, **experts}))
    else:
        plans = f", with the planner {options.planner}" if options.planner != "none" else ""
        acting = f", {options.controller} acts" if options.controller else ""
        print_line(f"{trained.task}, {options.num_envs} episodes{plans}{acting}")
        width = max(20, *map(len, result))
        for name, value in result.items():
            print_line(f"  {name:<{width}} {value:10.3f}")
        if used:
            _print_experts(used)
    if options.report is not None:
        command = shlex.join(["torch-crl", "eval", *arguments])
        _report(result, policy, trained, options, options.report, command)
    if options.video is not None:
        _film(policy, trained, options, options.video)
    return 0


def _commanded(trained: Trained, options: Options) -> Trained:
    """The policy that follows the sentences, or the picture, that were asked for."""
    commands = (bool(options.say), options.unseen, options.picture is not None)
    if sum(commands) > 1:
        raise UsageError("--say, --unseen and --picture exclude each other")
    if options.planner != "none" and any(commands):
        raise UsageError("--planner goes by coordinates; leave out --say, --unseen and --picture")
    if options.picture is not None:
        return shown(trained, options.picture)
    if options.say:
        return told(trained, options.say)
    if options.unseen:
        reader = reader_of(trained).with_unseen()
        return trained._replace(policy=trained.policy.with_reader(reader))
    return trained


def _check_video(options: Options) -> None:
    if options.video is not None:
        from torch_crl.rendering.video import MAX_ENVS, check_ending

        check_ending(options.video)
        check_file("--video", options.video)
        if options.video_envs > MAX_ENVS:
            raise UsageError(f"--video-envs must be 1 to {MAX_ENVS}, got {options.video_envs}")


def _acting(trained: Trained, options: Options) -> "Acts":
    """The policy, or what follows plans with it."""
    if options.planner == "none":
        return trained.policy
    from torch_crl.cli.plan import acting_policy
    from torch_crl.planning.following import PlanningPolicy
    from torch_crl.planning.planner import build_planner, load_planner

    if options.planner == "graph":
        planner = build_planner(trained_run(options, trained))
    else:
        planner = load_planner(options.planner, trust=options.trust)
        if planner.value.policy.goal_size != trained.policy.goal_size:
            raise UsageError(f"--planner {options.planner} was made for another task")
    return PlanningPolicy(planner, policy=acting_policy(trained.policy, options.controller))


def _report(
    result: dict[str, float],
    policy: "Acts",
    trained: Trained,
    options: Options,
    folder: Path,
    command: str,
) -> None:
    from torch_crl.cli.heatmap import draw
    from torch_crl.study.report import Picture, Report, Section, Table, provenance, write_report

    run, reason = critic_if_any(
        lambda: trained_run(options, trained), without="the picture has no distances"
    )
    figure = draw(trained, policy, run, num_envs=options.num_envs, seed=options.seed)
    caption = f"Mean over {options.num_envs} episodes, seed {options.seed}."
    numbers = Table(caption=caption, columns=("metric", "value"), rows=tuple(result.items()))
    picture = Picture(
        name="heatmap",
        caption="What the critic knows of distances, ways of the policy, and goals reached."
        if run
        else f"Goals reached; {reason}",
        views={"heatmap": figure},
    )
    page = write_report(
        Report(
            title=f"A policy on {trained.task}",
            question=f"How does the policy in {options.run} do"
            + (", with plans?" if options.planner != "none" else "?"),
            sections=(
                Section(title="Episodes", parts=(numbers,)),
                Section(title="Seen from above", parts=(picture,)),
            ),
            facts=provenance(command),
        ),
        folder,
    )
    print_line(f"report: {page}", stderr=True)


def _evaluate(
    policy: "Acts", trained: Trained, options: Options
) -> tuple[dict[str, float], Shares]:
    """The metrics, and the use of experts by place, if a mixture of them acts."""
    from torch_crl.agent.networks import ResidualTower
    from torch_crl.agent.policy import Policy
    from torch_crl.training.evaluation import evaluate
    from torch_crl.training.expert_use import ExpertUse

    actor = policy.actor if isinstance(policy, Policy) else None
    mixed = isinstance(actor, ResidualTower) and actor.is_mixture
    use = ExpertUse(trained.policy) if mixed else None
    with Stages() as stages:
        stages.begin(f"{options.num_envs} episodes", trained.episode_length)
        result = evaluate(
            policy,
            trained.task,
            num_envs=options.num_envs,
            episode_length=trained.episode_length,
            seed=options.seed,
            env_timeout=trained.env_timeout,
            on_step=stages.done,
            observe=use,
        )
    return result, use.shares() if use else {}


def _print_experts(used: Shares) -> None:
    """One line for each place, with all experts of some blocks."""
    blocks = len(next(iter(used.values())))
    # At most four of them, from the first to the last.
    shown = sorted({round(number * (blocks - 1) / 3) for number in range(4)})
    width = max(map(len, used))
    print_line("share of the plans that pass each expert, by the commanded place")
    for name, shares in used.items():
        texts = [" ".join(f"{share:5.2f}" for share in shares[block]) for block in shown]
        print_line(f"  {name:<{width}} {'  |'.join(texts)}")
    if blocks > 1:
        print_line(f"  (residual blocks {', '.join(str(block + 1) for block in shown)})")


def _film(policy: "Acts", trained: Trained, options: Options, path: Path) -> None:
    from contextlib import closing

    from torch_crl.rendering.video import record

    with (
        closing(film_env(trained, num_envs=options.video_envs, seed=options.seed)) as env,
        Stages() as stages,
    ):
        steps = max(1, round(options.video_seconds / env.seconds_per_step))
        stages.begin(f"filming {path.name}", steps)
        backend = record(
            policy,
            env,
            path,
            steps=steps,
            on_step=stages.done,
        )
    print_line(f"video: {path} (drawn with {backend})", stderr=True)
