"""`torch-crl compare`: compares methods, which are trained here or read from existing runs."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from annotated_types import Le
from tyro.conf import Positional

from torch_crl.cli.flags import LaunchFlags, read_flags
from torch_crl.cli.output import check_folder
from torch_crl.cli.progress import Stages
from torch_crl.cli.sweep import print_plan
from torch_crl.envs.trust import allow_tasks
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, CountOrZero, Depth, StepsOrZero
from torch_crl.recipe.marks import LIBRARY_ALGOS
from torch_crl.sweep.launch import ONE_MACHINE
from torch_crl.system.terminal import NameCell, console, plain, print_line

# Width of the terminal, in characters, from which on every row of the score table fits on one line.
_WIDE = 110

if TYPE_CHECKING:
    from torch_crl.study.report import Table
    from torch_crl.sweep.grid import Trial


@dataclass(frozen=True, kw_only=True)
class Options:
    """Compare algorithms and depths over tasks and seeds, with 95 % intervals, in one report.

    The same command, started again, trains only the runs that are missing.
    """

    __pydantic_config__ = STRICT

    tasks: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="[TASK ...]")] = ()
    """Tasks to train on, each with its own preset; leave them out with --runs."""
    algos: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ALGO ...")] = ("crl", "sac_her")
    """Algorithms to train: crl, gcbc, ppo, sac, td3, sac_her, td3_her."""
    depths: Annotated[tuple[Depth, ...], tyro.conf.arg(metavar="DEPTH ...")] = ()
    """Depths of actor and critic to train every algorithm with; the preset's own if not given.
    0 is the preset's own depth too; for a baseline that is the library's own network."""
    seeds: Annotated[Count, Le(10_000)] = 3
    """Number of runs of each algorithm, depth and task; a single one gives no interval."""
    env_steps: StepsOrZero = 0
    """Env steps of every run; 0 takes the number in the task's preset."""
    evaluations: CountOrZero = 0
    """Evaluations in every run; 0 takes the number in the task's preset."""
    reward: Literal["sparse", "dense"] = "sparse"
    """Reward of the baselines: 1 at the goal and else 0, or the negative distance to the goal."""
    runs: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="FOLDER ...")] = ()
    """Train nothing: compare the runs in or below these folders."""
    finished_only: bool = False
    """With --runs: leave out runs that are not finished, and name them in the report."""
    published: bool = False
    """Also draw what is published of the same tasks, objectives and depths: learning curves, and
    scores after 100 M env steps."""
    out: Path = Path("compare")
    """Folder of report.html, report.json and the pictures; new runs are written to runs/ in it."""
    launch: LaunchFlags = ONE_MACHINE
    dry_run: bool = False
    """Check everything, print the runs and what they cost, and stop before training."""


def main(arguments: list[str]) -> int:
    """Train what is missing, print the scores and write the report. Returns 1 if a run failed."""
    options = read_flags(Options, arguments, command="compare")
    _check(options)
    allow_tasks(options.tasks, typed=options.tasks)
    # Imported here, so that --help stays quick.
    from torch_crl.runs.curves import read_curve, read_curves, read_finished_curves
    from torch_crl.study.compare import compare
    from torch_crl.study.compare_report import comparison_report, score_table
    from torch_crl.study.report import write_report
    from torch_crl.sweep.driver import check_plan

    failed: dict[str, str] = {}
    left_out: dict[str, str] = {}
    if options.dry_run:
        trials = _trials(options)
        check_plan(trials, options.out / "runs", with_ray=options.launch.launcher == "ray")
        print_plan(trials, options.out / "runs")
        return 0
    check_folder("--out", options.out)
    if options.finished_only:
        curves, left_out = read_finished_curves(options.runs)
    elif options.runs:
        curves = read_curves(options.runs)
    else:
        run_dirs, failed = _train(options)
        for name, reason in failed.items():
            print_line(f"failed: {name}: {reason}", stderr=True)
        curves = [read_curve(run_dir) for run_dir in run_dirs]
    with Stages() as stages:
        stages.begin("bootstrapping and drawing")
        comparison = compare(curves)
        command = shlex.join(["torch-crl", "compare", *arguments])
        report = comparison_report(
            comparison, command=command, published=options.published, failed=failed | left_out
        )
        page = write_report(report, options.out)
    print_scores(score_table(comparison))
    for finding in report.findings:
        print_line(f"- {finding}", stderr=True)
    print_line(f"report: {page}", stderr=True)
    return 1 if failed else 0


def _check(options: Options) -> None:
    if options.runs and options.tasks:
        raise UsageError(
            "--runs only reads and takes every task it finds; leave out "
            f"{' '.join(options.tasks)}, or leave out --runs to train"
        )
    if options.runs and options.dry_run:
        raise UsageError("--dry-run is for training, and --runs only reads")
    if options.finished_only and not options.runs:
        raise UsageError(
            "--finished-only goes with --runs; without --runs every run is trained to its end"
        )
    if not (options.runs or options.tasks):
        raise UsageError(
            "name tasks to train on, before all flags (`torch-crl envs` lists them), or runs to "
            "read with --runs"
        )
    if options.reward == "dense" and not set(options.algos) & set(LIBRARY_ALGOS):
        raise UsageError(
            "--reward dense is for baselines, and --algos has none: " + " ".join(options.algos)
        )


def _train(options: Options) -> tuple[tuple[Path, ...], dict[str, str]]:
    """Train all trials to their end; returns their run directories and the reasons of failures."""
    from torch_crl.sweep.driver import run_trials

    result = run_trials(_trials(options), options.out / "runs", launch=options.launch)
    return result.finished, result.failed


def _trials(options: Options) -> "list[Trial]":
    from torch_crl.study.compare import comparison_trials

    settings: dict[str, Any] = {}
    for name in ("env_steps", "evaluations"):
        if value := getattr(options, name):
            settings[name] = value
    return comparison_trials(
        options.tasks,
        algos=options.algos,
        depths=options.depths,
        seeds=options.seeds,
        reward=options.reward,
        settings=settings,
    )


def print_scores(table: "Table") -> None:
    """Print the table so that no number is cut off on a terminal of 80 or more columns."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Shown

    from torch_crl.study.report import shown

    screen = console()
    # On a narrow terminal intervals stand below their estimates and headings take several lines.
    narrow = screen.width < _WIDE
    drawn = Shown(
        title=table.caption,
        title_justify="left",
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        collapse_padding=True,
    )
    for column in table.columns:
        name = column in ("task", "method")
        heading = column.replace(" ", "\n") if narrow else column
        drawn.add_column(heading, justify="left" if name else "right", no_wrap=not name)
    for task, *cells in table.rows:
        texts = [plain(shown(cell)) for cell in cells]
        drawn.add_row(
            NameCell(shown(task)),
            *(re.sub(r" (?=[\[(])", "\n", text) if narrow else text for text in texts),
        )
    screen.print(drawn)
