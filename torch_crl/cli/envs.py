"""`torch-crl envs`: a table of all tasks."""

import difflib

import tyro
from rich.console import Console
from rich.table import Table

from torch_crl.envs.registry import TASKS


def main(arguments: list[str]) -> int:
    """Print the table; a word narrows it to the names that contain it."""
    tyro.cli(_envs, args=arguments, prog="torch-crl envs")
    return 0


def _envs(contains: tyro.conf.Positional[str] = "") -> None:
    """List the tasks.

    Args:
        contains: only tasks whose name contains this.
    """
    table = Table(title="tasks", title_justify="left")
    for heading in ("task", "state", "goal", "action", "success within (m)", "episode"):
        name = heading == "task"
        table.add_column(heading, justify="left" if name else "right", no_wrap=name)
    for spec in TASKS.values():
        if contains not in spec.name:
            continue
        radii = ", ".join(
            f"{level.removeprefix('success').removeprefix('_')} {radius:g}".strip()
            for level, radius in spec.success_radius.items()
        )
        sizes = (spec.state_size, spec.goal_size, spec.action_size)
        table.add_row(spec.name, *map(str, sizes), radii, str(spec.episode_length))
    if not table.rows:
        near = difflib.get_close_matches(contains, TASKS, n=4, cutoff=0.3)
        raise SystemExit(f"torch-crl envs: no task name contains {contains!r}; nearest: {near}")
    Console().print(table)
