"""`torch-crl train`: the flags are the fields of the recipe; each task brings its own defaults."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from torch_crl.cli.errors import told_to_user
from torch_crl.presets import preset, with_depth
from torch_crl.recipe import Recipe

# Shown by --help; stands for `trainer.default_run_dir`.
_DEFAULT_RUN_DIR = Path("runs/TASK_seedN_DATE-TIME")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Train a policy to reach the goals of a task."""

    recipe: Recipe = field(default_factory=Recipe)
    depth: int = 0
    """Depth of actor and critic, 0 the preset's own; --actor-depth and --critic-depth beat it."""
    run_dir: Path = _DEFAULT_RUN_DIR
    """Where the run is written."""
    resume: bool = False
    """Go on from the newest checkpoint in --run-dir; all other flags may be left out."""
    overwrite: bool = False
    """Delete an earlier run in --run-dir first."""
    dry_run: bool = False
    """Print what the run would cost, check everything, and stop."""


def main(arguments: list[str]) -> int:
    """Read the flags, print the plan, train. Returns the exit status."""
    with told_to_user(ValueError, OSError):
        base = _base_recipe(arguments)
    options = tyro.cli(
        Options,
        default=Options(recipe=base),
        args=arguments,
        prog="torch-crl train",
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    name = options.recipe.task.name
    if name != base.task.name and not options.resume:
        print(
            f"torch-crl: name the task first: torch-crl train {name} ...; what follows it starts "
            "from that task's preset",
            file=sys.stderr,
        )
        return 2
    return _run(options)


def _run(options: Options) -> int:
    from torch_crl.checkpoint import CheckpointError
    from torch_crl.metrics import DivergenceError
    from torch_crl.plan import print_plan
    from torch_crl.trainer import default_run_dir, find_problems, train

    recipe = options.recipe
    named = options.run_dir != _DEFAULT_RUN_DIR
    run_dir = options.run_dir if named else default_run_dir(recipe)
    with told_to_user(ValueError, OSError, CheckpointError, DivergenceError):
        if options.dry_run:
            find_problems(recipe, run_dir, resume=options.resume, overwrite=options.overwrite)
            print_plan(recipe)
            return 0
        try:
            result = train(recipe, run_dir, resume=options.resume, overwrite=options.overwrite)
        except KeyboardInterrupt:
            return 130
    reached = result.evaluation
    print(
        f"reached the goal in {reached['success_any']:.0%} of the episodes and stayed for "
        f"{reached['time_at_goal_share']:.0%} of the time on {recipe.task.eval_name}; "
        f"learning curve: {result.learning_curve}; evaluate it: torch-crl eval {result.run_dir}"
    )
    return 0


def _base_recipe(arguments: list[str]) -> Recipe:
    """What the flags change: the run's own recipe with --resume, else the task's preset."""
    task = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    # What is no number is left to the parser, whose message names the flag.
    value = _value_of("--depth", arguments)
    depth = int(value) if value.isdecimal() else 0
    if "--resume" not in arguments:
        return with_depth(preset(task or Recipe().task.name), depth)
    run_dir = _value_of("--run-dir", arguments)
    if not run_dir:
        raise ValueError("--resume needs --run-dir, the directory of the run to go on with")
    saved = Path(run_dir) / "recipe.json"
    if not saved.exists():
        raise ValueError(f"--resume: {run_dir} holds no run (there is no recipe.json in it)")
    recipe = with_depth(Recipe.from_json(saved.read_text()), depth)
    return replace(recipe, task=replace(recipe.task, name=task or recipe.task.name))


def _value_of(flag: str, arguments: list[str]) -> str:
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
        if argument == flag and position + 1 < len(arguments):
            return arguments[position + 1]
    return ""
