"""`torch-crl envs`: prints a table of all tasks, or draws a picture of one."""

import difflib
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from torch_crl.cli.flags import read_flags
from torch_crl.cli.output import check_file
from torch_crl.envs.registry import TASKS, make_task
from torch_crl.envs.trust import allow_tasks
from torch_crl.errors import UsageError
from torch_crl.recipe.presets import preset
from torch_crl.system.terminal import console, print_line


def main(arguments: list[str]) -> int:
    """Print a table of all tasks or of those whose names contain a given text, or draw one task."""
    read_flags(_envs, arguments, command="envs")
    return 0


def _envs(
    contains: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[TEXT]")] = "",
    png: Path | None = None,
) -> None:
    """List the tasks, or draw one.

    Args:
        contains: list only the tasks whose names contain this text; with --png: the task to draw.
        png: draw a start of the task and its goals, and save the picture as this .png or .jpg file.
    """
    if png is None:
        console().print(_table(contains))
    else:
        _draw(contains, png)


def _table(contains: str) -> Table:
    table = Table(title="tasks", title_justify="left")
    for heading in ("task", "state", "goal", "action", "success within (m)", "episode"):
        name = heading == "task"
        table.add_column(heading, justify="left" if name else "right", no_wrap=name)
    for spec in TASKS.values():
        if contains not in spec.name:
            continue
        sizes = (spec.state_size, spec.goal_size, spec.action_size)
        steps = preset(spec.name).task.episode_length
        table.add_row(spec.name, *map(str, sizes), spec.success_text, str(steps))
    if not table.rows:
        # Of names, and of their parts, since the text may be one.
        texts = {*TASKS, *(part for name in TASKS for part in name.split("_"))}
        near = difflib.get_close_matches(contains, texts, n=4)
        hint = f"nearest: {', '.join(near)}" if near else "`torch-crl envs` lists all"
        raise UsageError(f"no task name contains {contains!r}; {hint}")
    return table


def _draw(name: str, path: Path) -> None:
    from torch_crl.rendering.pictures import save_image, task_picture

    if not name:
        raise UsageError("--png needs a task: `torch-crl envs ant --png ant.png`")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise UsageError(f"--png writes .png or .jpg, got {path.name!r}")
    check_file("--png", path)
    allow_tasks([name], typed=[name])
    image, backend = task_picture(make_task(name))
    save_image(image, path)
    print_line(f"{path} ({name}, drawn with {backend})")
