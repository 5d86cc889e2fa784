"""`torch-crl study`: answers an open question with runs and a report, or lists the questions."""

import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional

from torch_crl.cli.flags import LaunchFlags, read_flags
from torch_crl.cli.output import check_folder
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT
from torch_crl.sweep.launch import ONE_MACHINE
from torch_crl.system.terminal import console, print_line

# Shown by --help; NAME and SCALE are replaced by the study's. Contains no date, so that the same
# command continues a study that was stopped.
_DEFAULT_OUT = Path("studies/NAME_SCALE")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run a named study and write its report; without a name, list the studies."""

    __pydantic_config__ = STRICT

    name: Annotated[Positional[str], tyro.conf.arg(metavar="[STUDY]")] = ""
    """Name of the study; if left out, all studies are listed."""
    scale: Literal["smoke", "small", "full"] = "smoke"
    """smoke: shows only that the study runs, in a minute or two, two runs at a time.
    small: takes a laptop a night, or a GPU some hours.
    full: the published tasks, five seeds, 100 M env steps a run."""
    out: Path = _DEFAULT_OUT
    """Folder of the report, with the run directories in `runs`; finished runs are not repeated.
    If --out is not given, the study `cost` uses the runs of the study `depth`."""
    launch: LaunchFlags = ONE_MACHINE
    yes: bool = False
    """Start scale full without asking for confirmation."""
    report_only: bool = False
    """Train nothing: report on the runs in the folder that are finished, and name the others."""
    dry_run: bool = False
    """Check everything, print what the study would cost, and stop before training."""


def main(arguments: list[str]) -> int:
    """Run a study or list them all. Returns the exit status."""
    options = read_flags(Options, arguments, command="study")
    # Imported here, so that --help stays quick.
    from torch_crl.study.studies import STUDIES
    from torch_crl.study.study import cost_of, run_study
    from torch_crl.sweep.driver import check_plan

    if not options.name:
        _list({name: study.question for name, study in STUDIES.items()})
        return 0
    if options.name not in STUDIES:
        raise UsageError(f"no study {options.name!r}; there are {', '.join(STUDIES)}")
    if options.dry_run and options.report_only:
        raise UsageError("--dry-run is for training, and --report-only trains nothing")
    study = STUDIES[options.name]
    trials = study.trials(options.scale)
    cost = str(cost_of(trials)) if trials else "no runs: networks are measured in this process"
    print_line(f"study {options.name}, scale {options.scale}: {study.question}\n{cost}")
    folder, runs = _folders(options, study.runs_of or options.name)
    trains = bool(trials) and not options.report_only
    # What trains checks it too, but not before it is asked for confirmation.
    if options.dry_run or (trains and options.scale == "full"):
        check_plan(trials, runs, with_ray=options.launch.launcher == "ray")
    if trains and (options.dry_run or options.scale == "full"):
        from torch_crl.system.machine import busy
        from torch_crl.training.calibration import estimate_rest, summary

        folders, notes = [runs / trial.name for trial in trials], busy()
        estimates = estimate_rest([trial.recipe for trial in trials], folders)
        for line in [*summary(estimates), *notes]:
            print_line(line, stderr=True)
    if options.dry_run:
        return 0
    if trains and options.scale == "full" and not (options.yes or _agreed()):
        return 1
    check_folder("--out", folder)
    report = run_study(
        options.name,
        study,
        options.scale,
        folder,
        command=shlex.join(["torch-crl", "study", *arguments]),
        runs=runs,
        report_only=options.report_only,
        launch=replace(options.launch, parallel=options.launch.parallel or _usual(options.scale)),
    )
    for finding in report.findings:
        print_line(f"- {finding}")
    print_line(f"report: {folder / 'report.html'}")
    return 0


def _folders(options: Options, owner: str) -> tuple[Path, Path]:
    """Folder of the report, and folder of the runs, by default those of the study `owner`."""
    if options.out != _DEFAULT_OUT:
        return options.out, options.out / "runs"
    folder = _DEFAULT_OUT.parent
    return (
        folder / f"{options.name}_{options.scale}",
        folder / f"{owner}_{options.scale}" / "runs",
    )


def _usual(scale: str) -> int:
    """Default of --parallel: two at scale smoke, whose runs are too small for a GPU, else 0."""
    return 2 if scale == "smoke" else 0


def _agreed() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("without a terminal to ask for confirmation, scale full needs --yes")
    return input("start? [y/N] ").strip().lower() in ("y", "yes")


def _list(questions: dict[str, str]) -> None:
    from rich.table import Table

    table = Table(title="torch-crl study NAME", title_justify="left", show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    for name, question in questions.items():
        table.add_row(name, question)
    console().print(table)
