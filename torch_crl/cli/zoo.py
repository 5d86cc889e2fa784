"""`torch-crl zoo`: lists the trained policies that come with the package."""

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Positional

from torch_crl.cli.flags import read_flags
from torch_crl.fields import STRICT
from torch_crl.runs.finding import zoo_names
from torch_crl.runs.zoo import Entry, entry
from torch_crl.system.terminal import console, print_line


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the trained policies that come with the package, or tell about one."""

    __pydantic_config__ = STRICT

    name: Annotated[Positional[str], tyro.conf.arg(metavar="[POLICY]")] = ""
    """A policy of the zoo, with or without `zoo:`."""


def main(arguments: list[str]) -> int:
    """Print the table, or all about one policy. Returns the exit status."""
    options = read_flags(Options, arguments, command="zoo")
    if options.name:
        _tell(entry(options.name.removeprefix("zoo:")))
        return 0
    from rich.table import Table

    table = Table(title="zoo", title_justify="left")
    table.add_column("policy", no_wrap=True)
    for heading in ("depth", "width", "reach the goal", "time at the goal", "env steps"):
        table.add_column(heading, justify="right")
    for name in zoo_names():
        each = entry(name)
        networks, scores = each.recipe.networks, each.about.evaluation
        table.add_row(
            f"zoo:{name}",
            str(networks.actor_depth),
            str(networks.width),
            f"{scores['success_any']:.3f}",
            f"{scores['time_at_goal_share']:.3f}",
            f"{each.recipe.total_env_steps:,}",
        )
    console().print(table)
    print_line("torch-crl eval zoo:NAME, watch zoo:NAME, export zoo:NAME ...; torch-crl zoo NAME")
    return 0


def _tell(each: Entry) -> None:
    recipe, about = each.recipe, each.about
    print_line(f"zoo:{each.name}  {recipe.task.name}, {about.origin}")
    print_line(f"  {'files':<20} {each.directory}")
    print_line(f"  {'commit':<20} {each.commit}")
    print_line(f"  {'trained by':<20} {each.command}")
    print_line(f"  evaluation, {about.episodes} episodes of {recipe.task.eval_name}")
    for name, value in about.evaluation.items():
        print_line(f"    {name:<20} {value:10.3f}")
