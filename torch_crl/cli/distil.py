"""`torch-crl distil RUN`: trains small policies that do what a trained one does."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from torch_crl.cli.flags import RunPath, read_flags
from torch_crl.cli.output import check_folder
from torch_crl.cli.progress import Stages
from torch_crl.cli.runs import allow_tasks_of, critic_if_any, told_policy
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, CountOrZero, Depth, Seed
from torch_crl.runs.finding import output_folder, run_directory_of
from torch_crl.system.files import write_json, write_text
from torch_crl.system.terminal import print_line, print_markdown

if TYPE_CHECKING:
    from torch_crl.deploy.distil import DistilSettings


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train students that do what the policy of a run does, and evaluate them beside it."""

    __pydantic_config__ = STRICT

    run: RunPath
    """Run directory of the teacher, or one of the folders in its policies/, or zoo:NAME."""
    depth: Annotated[tuple[Depth, ...], tyro.conf.arg(metavar="DEPTH ...")] = (4,)
    """Depths of the students; multiples of 4."""
    width: Annotated[tuple[Count, ...], tyro.conf.arg(metavar="WIDTH ...")] = (64,)
    """Widths of the students; every depth with every width."""
    seeds: Annotated[tuple[Seed, ...], tyro.conf.arg(metavar="SEED ...")] = (0,)
    """Random seeds; each makes a student of its own."""
    rows: CountOrZero = 0
    """States that the teacher labels for each student; 0 is 200,000, or 30,000 with --observe
    camera, where each takes a picture."""
    updates: CountOrZero = 0
    """Gradient updates of each student; 0 is 10,000, or 30,000 with --observe camera."""
    observe: Literal["state", "camera"] = "state"
    """What students see of the state: `camera` is what a camera shows through a frozen encoder,
    with fading averages of what it has shown and of what was done; the teacher still sees the
    state."""
    goals: Literal["same", "words"] = "same"
    """How students are told their goals: as the teacher is, or by sentences about places."""
    policy: Literal["newest", "best"] = "newest"
    """Which policy of the run is the teacher."""
    out: Path | None = None
    """Folder for the students, each a run directory; students/ in the teacher's run by default.
    Giving it again goes on where a killed command stopped."""
    trust: bool = False
    """Allow running the Python code of a task that only the run's files name."""


def main(arguments: list[str]) -> int:
    """Distil, print and write the report. Returns the exit status."""
    options = read_flags(Options, arguments, command="distil")
    if wrong := [depth for depth in options.depth if depth <= 0 or depth % 4]:
        raise UsageError(f"--depth takes positive multiples of 4, got {wrong}")
    if empty := [name for name in ("depth", "width", "seeds") if not getattr(options, name)]:
        raise UsageError(
            f"--{empty[0]} takes at least one number; the run stands before all flags: torch-crl "
            f"distil RUN --{empty[0]} ..."
        )
    directory = run_directory_of(options.run)
    recipe = directory.read_recipe()
    from torch_crl.deploy.senses import senses_of
    from torch_crl.deploy.students import Teacher, report, retention, save_front, student
    from torch_crl.planning.goal_value import load_trained_run

    tasks = [recipe.task.name, recipe.task.eval_name]
    objective = recipe.algorithm.objective
    allow_tasks_of(directory, tasks, objective=objective, typed=None, trust=options.trust)
    folder = options.out or output_folder(directory, "students")
    check_folder("--out", folder)
    policy = told_policy(options.run, options.policy)
    length = recipe.task.episode_length
    with Stages() as stages:
        stages.begin("reading the run's critic")
        run, _ = critic_if_any(
            lambda: load_trained_run(directory, states=1), without="no regret will be told"
        )
        stages.begin("what students see")
        senses = senses_of(
            policy,
            recipe.task.name,
            observe=options.observe,
            goals=options.goals,
            episode_length=length,
        )
    value = run.value if run else None
    teacher = Teacher(policy=policy, recipe=recipe, value=value, senses=senses)
    rows = []
    with Stages() as stages:
        stages.begin("the teacher's episodes", length)
        of_teacher = teacher.scores(policy, stages.done)
        for settings in _grid(options, length):
            what = f"depth {settings.depth}, width {settings.width}, seed {settings.seed}"
            stages.begin(what, settings.rounds)

            def on_step(step: int, what: str = what) -> None:
                if step == 1:
                    stages.begin(f"{what}: its episodes", length)
                stages.done(step)

            done = student(
                teacher,
                settings,
                folder,
                on_round=lambda n, _: stages.done(n),
                on_step=on_step,
            )
            rows.append(done)
    text = report(teacher, of_teacher, rows)
    write_text(folder / "report.md", text)
    kept = [row | {"retention": retention(row, of_teacher)} for row in rows]
    document = {
        "task": recipe.task.name,
        "episodes": teacher.episodes,
        "teacher": of_teacher,
        "students": kept,
    }
    write_json(folder / "students.json", document)
    save_front(teacher, of_teacher, rows, folder / "front.png")
    print_markdown(text)
    print_line(f"written: {folder}/report.md, students.json, front.png", stderr=True)
    return 0


def _grid(options: Options, episode_length: int) -> "list[DistilSettings]":
    """The settings of each student."""
    from torch_crl.deploy.distil import DistilSettings

    if options.observe == "camera":
        # Pictures are dear, so there are fewer, and more is made of each.
        usual = DistilSettings(rows=30_000, updates=30_000, goals_per_state=4, noiseless=0.5)
    else:
        usual = DistilSettings()
    labelled = options.rows or usual.rows
    # Students have to meet all of an episode.
    num_envs = min(usual.num_envs, max(1, labelled // episode_length))
    return [
        replace(
            usual,
            depth=depth,
            width=width,
            seed=seed,
            rows=labelled,
            num_envs=num_envs,
            updates=options.updates or usual.updates,
        )
        for depth in options.depth
        for width in options.width
        for seed in options.seeds
    ]
