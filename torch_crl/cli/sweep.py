"""`torch-crl sweep`: trains a grid of recipes in processes and prints one table of results."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, UseAppendAction

from torch_crl.cli.flags import LaunchFlags, read_flags
from torch_crl.cli.output import check_folder
from torch_crl.cli.progress import Stages
from torch_crl.envs.trust import allow_tasks
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT
from torch_crl.sweep.launch import ONE_MACHINE
from torch_crl.system.terminal import NameCell, console, duration, print_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch_crl.sweep.grid import Trial

# Contains no date, so that the same command continues a sweep in the same folder.
_DEFAULT_OUT = Path("sweeps/sweep")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train every combination of some settings.

    The same command, started again after any end, keeps finished runs and continues the others.
    """

    __pydantic_config__ = STRICT

    tasks: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="TASK ...")]
    """Tasks to train on, each with its own preset; `torch-crl envs` lists them."""
    grid: UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=A,B,...")]] = ()
    """A setting and its values, such as depth=4,8; NAME is a flag of `torch-crl train`.
    May be repeated: every combination is trained."""
    set: UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")]] = ()
    """A setting with one value for all trials; may be repeated."""
    algos: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ALGO ...")] = ()
    """Algorithms to train with, `crl` if not given: crl, gcbc, ppo, sac, td3, sac_her, td3_her."""
    out: Path = _DEFAULT_OUT
    """Folder of the run directories, their logs and results.json; several sweeps may share it."""
    launch: LaunchFlags = ONE_MACHINE
    dry_run: bool = False
    """Check everything, print the trials and what they cost, and stop before training."""


def main(arguments: list[str]) -> int:
    """Run the sweep or print its plan. Returns 1 if a trial failed."""
    options = read_flags(Options, arguments, command="sweep")
    if not options.tasks:
        raise UsageError("name tasks to train on, before all flags: torch-crl sweep reacher")
    axes, settings = assignments(options.grid), assignments(options.set)
    if wrong := [f"--set {name} takes one value" for name in settings if "," in settings[name]]:
        raise UsageError("; ".join(wrong) + ", --grid takes several")
    if options.algos and "algo" in axes:
        raise UsageError("--algos and --grid algo=... say the same thing; leave one out")
    # The values may contain evaluation tasks.
    values = ",".join([*options.tasks, *axes.values(), *settings.values()]).split(",")
    allow_tasks(values, typed=values)
    if options.algos:
        axes = {"algo": ",".join(options.algos)} | axes
    # Imported here, so that --help stays quick.
    from torch_crl.sweep.driver import check_plan, run_trials
    from torch_crl.sweep.grid import grid
    from torch_crl.sweep.results import collect, table

    trials = grid(
        options.tasks,
        axes={name: values.split(",") for name, values in axes.items()},
        settings=settings,
    )
    if options.dry_run:
        check_plan(trials, options.out, with_ray=options.launch.launcher == "ray")
        print_plan(trials, options.out)
        return 0
    check_folder("--out", options.out)
    result = run_trials(trials, options.out, launch=options.launch)
    console().print(table(collect(trials, options.out, failed=result.failed)))
    for name, reason in result.failed.items():
        print_line(f"failed: {name}: {reason}; log: {options.out / name}.log")
    return 1 if result.failed else 0


def assignments(texts: tuple[str, ...]) -> dict[str, str]:
    """Split each `name=values` into its name and its values. Raises UsageError."""
    found: dict[str, str] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not name or not values:
            raise UsageError(f"{text!r} should be a name, an equals sign and values: depth=4,8")
        if name in found:
            raise UsageError(f"{name} is given twice; write {name}={found[name]},{values}")
        found[name] = values
    return found


def print_plan(trials: "Sequence[Trial]", runs: Path) -> None:
    """Print the env steps, the work of the updates and the time of each trial, and their sums.

    The time is that of what is left of it in the folder `runs`.
    """
    from rich.table import Table

    from torch_crl.system.machine import busy
    from torch_crl.training.calibration import estimate_rest, summary

    recipes, notes = [trial.recipe for trial in trials], busy()
    with Stages() as stages:
        stages.begin("measuring how long such runs take")
        estimates = estimate_rest(recipes, [runs / trial.name for trial in trials])
    found = Table(title="trials", title_justify="left", show_footer=True)
    steps = sum(recipe.total_env_steps for recipe in recipes)
    known = [recipe.petaflop for recipe in recipes if recipe.petaflop is not None]
    found.add_column("trial", footer=f"{len(trials)} in all")
    found.add_column("env steps", footer=f"{steps:,}", justify="right", no_wrap=True)
    rest = "" if len(known) == len(recipes) else f"\nin {len(known)} of them"
    work = f"{sum(known):,.3g}{rest}"
    found.add_column("PFLOP of\nupdates", footer=work, justify="right", no_wrap=True)
    hours = duration(sum(time.seconds for time in estimates if time and time.pace))
    found.add_column("time here", footer=hours, justify="right", no_wrap=True)
    for trial, recipe, time in zip(trials, recipes, estimates, strict=True):
        work = "not known" if recipe.petaflop is None else f"{recipe.petaflop:,.3g}"
        shown = time.shown if time else "finished"
        found.add_row(NameCell(trial.name), f"{recipe.total_env_steps:,}", work, shown)
    console().print(found)
    for line in [*summary(estimates), *notes]:
        print_line(line, stderr=True)
