"""`torch-crl train`: the flags are the fields of the recipe; each task brings its own defaults."""

from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, get_args

import tyro

from torch_crl.cli.flags import read_flags
from torch_crl.cli.runs import allow_encoder, allow_tasks_of
from torch_crl.envs.registry import TASKS, module_of
from torch_crl.envs.trust import allow_tasks
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Depth
from torch_crl.recipe.presets import preset, with_changes, with_depth
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.settings import Algo
from torch_crl.runs.directory import RunDirectory, default_run_dir
from torch_crl.runs.records import read_recipe
from torch_crl.system.terminal import print_line

# Shown by --help; `default_run_dir` makes the real default.
_DEFAULT_RUN_DIR = Path("runs/TASK_seedN_DATE-TIME")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a policy to reach the goals of a task."""

    __pydantic_config__ = STRICT

    recipe: Recipe = field(default_factory=Recipe)
    recipe_file: Annotated[Path | None, tyro.conf.arg(name="recipe")] = None
    """Start from the settings in this recipe.json, not the task's preset; flags override them."""
    depth: Depth = 0
    """Depth of actor and critic; 0 is the preset's. --actor-depth, --critic-depth override it."""
    run_dir: Path = _DEFAULT_RUN_DIR
    """Directory that the run is written to."""
    resume: bool = False
    """Continue from the newest checkpoint in --run-dir; all other flags may be left out.
    With more --env-steps than before, the run becomes longer."""
    resume_if_any: bool = False
    """Like --resume if --run-dir holds a run already, else begin one: for `torchrun
    --max-restarts`, which starts a command again that has failed."""
    reshard: bool = False
    """With --resume: allow another number of ranks than the checkpoint was written by."""
    overwrite: bool = False
    """Delete an earlier run in --run-dir first."""
    wandb: str = ""
    """Weights & Biases project to which all metrics are sent too.
    With WANDB_MODE=offline they stay on this machine until `wandb sync`."""
    dry_run: bool = False
    """Check everything, print what the run would cost, and stop before training."""
    trust: bool = False
    """With --resume or --recipe: allow running the Python code of tasks that only a file names.
    Tasks that the command names need no --trust."""


def main(arguments: list[str]) -> int:
    """Read the flags, then train or show the plan. Returns the exit status."""
    # The first pass only finds out what decides the defaults of all other flags.
    first_look = [argument for argument in arguments if argument not in ("-h", "--help")]
    nameless = with_changes(Recipe(), task={"name": "", "eval_name": ""})
    typed: list[str] = []
    typed_encoder = ""
    resume = False
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            helps = len(first_look) < len(arguments)
            asked = _parse(first_look, Options(recipe=nameless), check=not helps)
        if asked.resume_if_any:
            resume = _holds_run(asked)
            # A run that is there has been begun with the file's settings.
            file = None if resume else asked.recipe_file
            asked = replace(asked, resume=resume, recipe_file=file)
        typed = [name for name in asked.recipe.own_code if name]
        allow_tasks(typed, typed=typed)
        typed_encoder = asked.recipe.goal_space.encoder
        base = _base_recipe(asked)
    except SystemExit:
        # The second pass reports what is wrong, with the defaults of the task that is recognised.
        base = _guessed_preset(arguments)
    options = _parse(arguments, Options(recipe=base, resume=resume))
    source = RunDirectory(options.run_dir) if options.resume else options.recipe_file
    if source is not None:
        encoder = options.recipe.goal_space.encoder
        allow_encoder(encoder, typed=typed_encoder, trust=options.trust, source=source)
    if options.resume:
        directory = RunDirectory(options.run_dir)
        *tasks, objective = options.recipe.own_code
        allow_tasks_of(directory, tasks, objective=objective, typed=typed, trust=options.trust)
    else:
        names, file = options.recipe.own_code, options.recipe_file
        allow_tasks(names, typed=typed, trust=options.trust or file is None, source=file)
    return _run(options)


def _holds_run(options: Options) -> bool:
    """Whether there is a run to resume; all ranks get the answer of the first."""
    from torch_crl.distributed.ranks import join

    if options.resume or options.overwrite:
        raise UsageError("--resume-if-any, --resume and --overwrite exclude each other")
    if options.run_dir == _DEFAULT_RUN_DIR:
        raise UsageError("--resume-if-any needs --run-dir, the directory that a run may be in")
    return join().of_first(lambda: RunDirectory(options.run_dir).holds_run)


def _reads_file(options: Options) -> bool:
    return options.resume or options.recipe_file is not None


def _guessed_preset(arguments: list[str]) -> Recipe:
    words = [word for argument in arguments for word in argument.split("=")]
    task = next((word for word in words if word in TASKS), Recipe().task.name)
    return preset(task, algo=next((word for word in words if word in get_args(Algo)), "crl"))


def _parse(arguments: list[str], defaults: Options, *, check: bool = True) -> Options:
    return read_flags(
        Options,
        arguments,
        command="train",
        default=defaults,
        check=check,
        config=(tyro.conf.OmitArgPrefixes,),
    )


def _run(options: Options) -> int:
    from torch_crl.distributed.ranks import join
    from torch_crl.recipe.dry_run import print_plan
    from torch_crl.training.starting import find_problems
    from torch_crl.training.trainer import train

    recipe = options.recipe
    named, ranks = options.run_dir != _DEFAULT_RUN_DIR, join()
    if options.reshard and not (options.resume or options.resume_if_any):
        raise UsageError("--reshard divides a checkpoint anew and needs --resume")
    directory = RunDirectory(
        options.run_dir if named else ranks.of_first(lambda: default_run_dir(recipe))
    )
    asked: Any = {name: getattr(options, name) for name in ("resume", "overwrite", "wandb")}
    if options.dry_run:
        from torch_crl.system.machine import busy
        from torch_crl.training.calibration import estimate, share_done, warnings

        recipe = find_problems(recipe, directory, ranks=ranks, **asked)
        if not ranks.is_first:
            return 0
        notes = busy()
        (found,) = estimate([recipe])
        how = found.how
        if options.resume:
            done = share_done(directory.path, recipe)
            found, how = found.rest(done), f"{how}, {done:.0%} done"
        print_plan(recipe, ("time on this machine", found.shown, how))
        for line in [*warnings([found]), *notes]:
            print_line(line, stderr=True)
        return 0
    result = train(recipe, directory, reshard=options.reshard, **asked)
    if not ranks.is_first:
        return 0
    reached = result.evaluation
    picture = f"learning curve: {result.learning_curve}; " if result.learning_curve else ""
    print_line(
        f"reached the goal in {reached['success_any']:.0%} of the episodes and stayed for "
        f"{reached['time_at_goal_share']:.0%} of the time on {recipe.task.eval_name}; "
        f"{picture}evaluate it: torch-crl eval {result.run_dir}{_named(recipe.task.eval_name)}"
    )
    return 0


def _named(task: str) -> str:
    """The flag that `eval` needs for a task that is Python code."""
    return f" --task {task}" if module_of(task) else ""


def _base_recipe(asked: Options) -> Recipe:
    """The recipe that the flags change: that of a run or a file, else the task's preset."""
    task = asked.recipe.task.name
    if not _reads_file(asked):
        algo = asked.recipe.algorithm.algo
        return preset(task or Recipe().task.name, depth=asked.depth, algo=algo)
    if asked.resume and asked.recipe_file is not None:
        raise UsageError("--resume goes on with the run's own recipe; leave out --recipe")
    if asked.resume and asked.run_dir == _DEFAULT_RUN_DIR:
        raise UsageError("--resume needs --run-dir, the directory of the run to go on with")
    if asked.recipe_file is not None:
        recipe = read_recipe(asked.recipe_file)
    else:
        recipe = RunDirectory(asked.run_dir).read_recipe()
    recipe = with_depth(recipe, asked.depth)
    if not task or task == recipe.task.name:
        return recipe
    if asked.recipe_file is not None:
        # The file's evaluation task belongs to the file's task, not to the one that was typed.
        recipe = with_changes(recipe, task={"eval_name": preset(task).task.eval_name})
    return with_changes(recipe, task={"name": task})
