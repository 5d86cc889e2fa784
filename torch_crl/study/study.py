"""Named studies: what they consist of, what they cost, and how they are run."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch_crl.errors import TorchCrlError
from torch_crl.recipe.record import Recipe
from torch_crl.runs.curves import Curve, read_curve, scored_part
from torch_crl.runs.directory import RunDirectory
from torch_crl.study.report import Report, Section, Table, Text, provenance, write_report
from torch_crl.sweep.grid import Trial
from torch_crl.sweep.launch import ONE_MACHINE, Launch
from torch_crl.sweep.worker import other_run_in

Scale = Literal["smoke", "small", "full"]
SCALES: tuple[Scale, ...] = ("smoke", "small", "full")

# Seconds of one update of the published system on one A100: a constant, and a part for each layer.
# Fitted to the hours of humanoid in table 3 of arXiv 2503.14858v3, width 256, batch 512, simulation
# included.
_PUBLISHED_SECONDS, _PUBLISHED_SECONDS_A_LAYER = 1.2e-3, 0.23e-3

NOT_RUN = "not run"
_MISSING = ("setting", "seeds", "reason")


class StudyError(TorchCrlError):
    """A study that has nothing to report; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a study found."""

    findings: tuple[str, ...]
    """Sentences, the most important one first."""
    sections: tuple[Section, ...]
    data: dict[str, Any] = field(default_factory=dict)
    """Numbers that no table holds, for report.json."""


def no_trials(_: Scale) -> list[Trial]:
    """The trials of a study that trains nothing: none."""
    return []


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """A question, the runs that answer it, and how the answer is computed from them."""

    question: str
    statistic: str
    trials: Callable[[Scale], list[Trial]] = no_trials
    answer: Callable[[Sequence[Curve]], Answer] | None = None
    """Computes the answer from the curves of the finished trials."""
    measure: Callable[[Scale], Answer] | None = None
    """Computes the answer of a study without trials, by measuring in this process."""
    runs_of: str = ""
    """Another study with the same trials, whose runs are used; empty if it has its own runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What all trials of a study cost together."""

    runs: int
    env_steps: int
    updates: int
    petaflop: float
    """Operations of the updates' dense layers, in 1e15, over the runs for which they are known."""
    petaflop_runs: int
    """Number of runs for which the operations are known."""
    published_hours: float
    """Hours that the published system takes on one A100, for the runs that it supports."""
    published_runs: int

    def __str__(self) -> str:
        """One line for each number."""
        rest = "" if self.petaflop_runs == self.runs else f" in {self.petaflop_runs} of the runs"
        lines = [
            f"{self.runs:,} runs",
            f"{self.env_steps:,} env steps",
            f"{self.updates:,} updates",
            f"{self.petaflop:,.3g} PFLOP in the updates' dense layers{rest}",
        ]
        if self.published_runs:
            lines.append(
                f"{self.published_hours:,.0f} hours for the published system on one A100, in "
                f"{self.published_runs} of the runs, by its speed on humanoid"
            )
        return "\n".join(lines)


def cost_of(trials: Sequence[Trial]) -> Cost:
    """What all trials cost together."""
    recipes = [trial.recipe for trial in trials]
    work = [recipe.petaflop for recipe in recipes]
    hours = [_published_hours(recipe) for recipe in recipes]
    known_work, known_hours = (
        [value for value in values if value is not None] for values in (work, hours)
    )
    return Cost(
        runs=len(trials),
        env_steps=sum(recipe.total_env_steps for recipe in recipes),
        updates=sum(recipe.total_updates for recipe in recipes),
        petaflop=sum(known_work),
        petaflop_runs=len(known_work),
        published_hours=sum(known_hours),
        published_runs=len(known_hours),
    )


def run_study(
    name: str,
    study: Study,
    scale: Scale,
    folder: Path,
    *,
    command: str,
    runs: Path | None = None,
    launch: Launch = ONE_MACHINE,
    report_only: bool = False,
    show: bool = True,
) -> Report:
    """Run the trials that are not finished yet and write FOLDER/report.html; returns the report.

    Args:
        command: the command line, which the report shows.
        runs: folder of the run directories, FOLDER/runs if not given.
        launch, show: as in `torch_crl.sweep.driver.run_trials`.
        report_only: train nothing; the report names the trials that are not finished.

    Raises StudyError if no trial finished.
    """
    trials, runs = study.trials(scale), runs or folder / "runs"
    run_dirs: Sequence[Path] = ()
    failed: dict[str, str] = {}
    missing: dict[str, str] = {}
    if report_only:
        run_dirs, missing = finished_trials(trials, runs)
    elif trials:
        # Imported here, so that reports can be made without the code that starts processes.
        from torch_crl.sweep.driver import run_trials

        result = run_trials(trials, runs, launch=launch, show=show)
        run_dirs, failed = result.finished, result.failed
    if trials and not run_dirs:
        raise StudyError(f"no trial finished:{_listed(failed or missing)}")
    report = make_report(
        name,
        study,
        scale,
        [read_curve(run_dir) for run_dir in run_dirs],
        failed=failed,
        missing=missing,
        command=command,
    )
    write_report(report, folder)
    return report


def finished_trials(trials: Sequence[Trial], runs: Path) -> tuple[list[Path], dict[str, str]]:
    """Run directories in `runs` of the trials that are finished, and why each other is not taken.

    The reason is `not run`, `not finished`, or how the run that is there differs in its recipe.
    """
    run_dirs, missing = [], {}
    for trial in trials:
        directory = RunDirectory(runs / trial.name)
        if reason := other_run_in(directory.path, trial.recipe):
            missing[trial.name] = reason
        elif directory.is_finished:
            run_dirs.append(directory.path)
        else:
            missing[trial.name] = "not finished" if directory.holds_run else NOT_RUN
    return run_dirs, missing


def make_report(
    name: str,
    study: Study,
    scale: Scale,
    curves: Sequence[Curve],
    *,
    failed: Mapping[str, str],
    missing: Mapping[str, str] | None = None,
    command: str,
) -> Report:
    """A report of the study's answer, with what a reader needs to judge it.

    `failed` and `missing` are names of trials that the answer lacks, with the reasons.
    """
    missing = missing or {}
    answer = study.answer(curves) if study.answer else None
    if study.measure:
        answer = study.measure(scale)
    assert answer, "a study answers or measures"
    findings = [*answer.findings]
    if curves and min(seeds := seeds_of(curves)) == 1:
        some = "One seed" if max(seeds) == 1 else "One seed only of some settings"
        findings.append(f"{some}: no interval can be given and nothing can be tested.")
    if scale == "smoke":
        findings.append(
            "Scale smoke shows that the study runs; its budgets are too small to learn."
        )
    findings += [f"Left out, it failed: {trial}: {reason}" for trial, reason in failed.items()]
    about = Section(title="How it was measured", parts=(Text(text=study.statistic),))
    sections = [*answer.sections, about]
    if missing:
        total = len(missing) + len(curves) + len(failed)
        findings.append(f"Incomplete: {len(missing)} of {total} runs are missing (last table).")
        sections.append(Section(title="What is missing", parts=(_missing_table(missing),)))
    facts = provenance(command)
    if curves:
        facts |= {"runs": str(len(curves)), "seeds of a setting": _numbers(seeds_of(curves))}
        facts["a score is the mean of"] = scored_part(curves)
    return Report(
        title=f"Study {name}, scale {scale}",
        question=study.question,
        findings=tuple(findings),
        sections=tuple(sections),
        facts=facts,
        data=answer.data,
    )


def _missing_table(missing: Mapping[str, str]) -> Table:
    """A row for each setting and reason."""
    seeds = defaultdict(list)
    for trial, reason in missing.items():
        setting, _, seed = trial.rpartition("_seed")
        seeds[setting, reason].append(seed)
    rows = tuple((setting, ", ".join(each), reason) for (setting, reason), each in seeds.items())
    return Table(caption="runs that are not in this report", columns=_MISSING, rows=rows)


def _listed(reasons: Mapping[str, str]) -> str:
    return "".join(f"\n  - {trial}: {reason}" for trial, reason in reasons.items())


def seeds_of(curves: Sequence[Curve]) -> list[int]:
    """How many seeds there are of every setting."""
    counts: dict[str, int] = {}
    for curve in curves:
        leaves = curve.recipe.leaves()
        del leaves["system.seed"]
        counts[repr(leaves)] = counts.get(repr(leaves), 0) + 1
    return list(counts.values())


def _numbers(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low} to {high}"


def _published_hours(recipe: Recipe) -> float | None:
    networks, algorithm = recipe.networks, recipe.algorithm
    sizes = (networks.width, algorithm.batch_size, networks.block, algorithm.algo)
    if sizes != (256, 512, "published", "crl"):
        return None
    # Mean depth, weighted by the networks' shares of the operations; see UpdateCost.flop.
    depth = (3 * networks.actor_depth + 8 * networks.critic_depth) / 11
    seconds = _PUBLISHED_SECONDS + _PUBLISHED_SECONDS_A_LAYER * depth
    return seconds * recipe.total_updates / 3600
