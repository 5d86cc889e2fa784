"""`torch-crl prune RUN`: removes blocks of a trained policy and heals what is left."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from torch_crl.cli.flags import RunPath, read_flags
from torch_crl.cli.output import check_folder
from torch_crl.cli.progress import Stages
from torch_crl.cli.runs import allow_tasks_of, told_policy
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, Seed
from torch_crl.runs.finding import output_folder, run_directory_of
from torch_crl.system.files import write_json, write_text
from torch_crl.system.terminal import print_line, print_markdown


@dataclass(frozen=True, kw_only=True)
class Options:
    """Remove residual blocks of a policy, keep what they add on average, and heal the rest."""

    __pydantic_config__ = STRICT

    run: RunPath
    """Run directory of the policy, or one of the folders in its policies/, or zoo:NAME."""
    blocks: Annotated[tuple[Count, ...], tyro.conf.arg(metavar="BLOCKS ...")] = ()
    """How many blocks are left, several numbers for a curve; three quarters, half and a quarter of
    them by default. A block has 4 layers."""
    seeds: Annotated[tuple[Seed, ...], tyro.conf.arg(metavar="SEED ...")] = (0,)
    """Random seeds of the healing."""
    rows: Count = 100_000
    """States that the whole policy labels for each healing."""
    updates: Count = 5_000
    """Gradient updates of each healing."""
    policy: Literal["newest", "best"] = "newest"
    """Which policy of the run."""
    out: Path | None = None
    """Folder for the pruned policies, each a run directory; pruned/ in the run by default. Giving
    it again goes on where a killed command stopped."""
    trust: bool = False
    """Allow running the Python code of a task that only the run's files name."""


def main(arguments: list[str]) -> int:
    """Prune, heal, print and write the report. Returns the exit status."""
    options = read_flags(Options, arguments, command="prune")
    directory = run_directory_of(options.run)
    recipe = directory.read_recipe()
    from torch_crl.deploy.distil import met_rows
    from torch_crl.deploy.prune import Blocks
    from torch_crl.deploy.pruned import pruned, report, save_curve
    from torch_crl.deploy.students import Teacher
    from torch_crl.system.machine import machine

    allow_tasks_of(
        directory, [recipe.task.name, recipe.task.eval_name], typed=None, trust=options.trust
    )
    folder = options.out or output_folder(directory, "pruned")
    check_folder("--out", folder)
    teacher = Teacher(policy=told_policy(options.run, options.policy), recipe=recipe)
    teacher.policy.require_numbers("prune")
    length = recipe.task.episode_length
    rows = met_rows(teacher.policy, recipe.task.name, episode_length=length)
    blocks = Blocks(teacher.policy, rows)
    wanted = _wanted(options.blocks, blocks.count)
    with Stages() as stages:
        most = blocks.count - min(wanted)
        stages.begin("choosing blocks", most)
        order = blocks.order(most, stages.done)
        stages.begin("the whole policy's episodes")
        of_teacher = teacher.scores(teacher.policy)
        made = []
        for left in wanted:
            stages.begin(f"healing {left} blocks")
            made.append(
                pruned(
                    teacher,
                    blocks,
                    order,
                    of_teacher,
                    left=left,
                    seeds=options.seeds,
                    rows=options.rows,
                    updates=options.updates,
                    folder=folder,
                    on_round=lambda *_: stages.advance(),
                )
            )
    text = report(teacher, blocks, of_teacher, made)
    write_text(folder / "report.md", text)
    document = {
        "task": recipe.task.name,
        "blocks": blocks.count,
        "teacher": of_teacher,
        "order": order,
        "pruned": made,
        "machine": machine(),
    }
    write_json(folder / "pruned.json", document)
    save_curve(made, of_teacher, folder / "curve.png", count=blocks.count)
    print_markdown(text)
    print_line(f"written: {folder}/report.md, pruned.json, curve.png", stderr=True)
    return 0


def _wanted(given: tuple[int, ...], count: int) -> list[int]:
    """How many blocks shall be left, the most first. Raises UsageError."""
    if count == 1:
        raise UsageError("this policy has one block (depth 4); there is nothing to remove")
    wanted = given or tuple(max(1, count * quarters // 4) for quarters in (3, 2, 1))
    if wrong := [left for left in wanted if left >= count]:
        raise UsageError(
            f"--blocks says how many are left; this policy has {count}, so give 1 to {count - 1}, "
            f"got {', '.join(map(str, wrong))}"
        )
    return sorted(set(wanted), reverse=True)
