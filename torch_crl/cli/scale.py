"""`torch-crl scale TASK`: what a run would take on many ranks, by a model on paper."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional, UseAppendAction

from torch_crl.cli.flags import read_flags
from torch_crl.cli.progress import Stages
from torch_crl.cli.sweep import assignments
from torch_crl.envs.trust import allow_tasks
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, Positive, PositiveOrZero
from torch_crl.system.terminal import console, duration, plain, print_line

if TYPE_CHECKING:
    from torch_crl.recipe.record import Recipe
    from torch_crl.recipe.scaling import Link, Prediction

_LINKS = "nvlink, nvlink-bridge, 400g, pcie, 100g, 10g, 1g"


@dataclass(frozen=True, kw_only=True)
class Options:
    """Predict the time of a run on many ranks: compute, network, checkpoints and failures."""

    __pydantic_config__ = STRICT

    task: Annotated[Positional[str], tyro.conf.arg(metavar="TASK")]
    """Task to train on; its preset is the recipe, whose totals the ranks divide."""
    set: UseAppendAction[Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=VALUE")]] = ()
    """A setting of the recipe, such as depth=64 or batch_size=2048; may be repeated."""
    ranks: Annotated[tuple[Count, ...], tyro.conf.arg(metavar="RANKS ...")] = (1, 2, 4, 8)
    """Numbers of ranks to compare."""
    link: str = "nvlink"
    """What connects them: nvlink, nvlink-bridge, 400g, pcie, 100g, 10g, 1g, or the bus bandwidth in
    GB/s."""
    update_ms: PositiveOrZero = 0.0
    """Milliseconds of an update of one rank's rows; 0 measures it on this machine."""
    env_steps_per_second: PositiveOrZero = 0.0
    """Env steps per second of one rank; 0 measures them on this machine."""
    mtbf: PositiveOrZero = 0.0
    """Hours between two failures of one rank, on average; 0 means that none fails."""
    restart: PositiveOrZero = 60.0
    """Seconds from a failure until all ranks train again."""
    jitter: PositiveOrZero = 0.05
    """How much a rank's time varies: the standard deviation of its logarithm."""
    disk: Positive = 1.0
    """Gigabytes per second that each rank writes to the disk."""


def main(arguments: list[str]) -> int:
    """Print the table. Returns the exit status."""
    options = read_flags(Options, arguments, command="scale")
    allow_tasks([options.task], typed=[options.task])
    # Imported here, so that --help stays quick.
    from rich.table import Table

    from torch_crl.distributed.ranks import Ranks
    from torch_crl.recipe.scaling import Conditions, predict, traffic
    from torch_crl.recipe.share import share, share_problems
    from torch_crl.sweep.grid import grid

    link = _link(options.link)
    (trial,) = grid((options.task,), axes={}, settings=assignments(options.set))
    recipe = trial.recipe
    for count in options.ranks:
        if problems := share_problems(recipe, Ranks(size=count)):
            raise UsageError(f"{count} ranks: {'; '.join(problems)}")
    paces = _paces(options, [share(recipe, Ranks(size=count)) for count in options.ranks])
    columns = []
    for count, (update, env_step) in zip(options.ranks, paces, strict=True):
        conditions = Conditions(
            ranks=count,
            link=link,
            update=update,
            env_step=env_step,
            jitter=options.jitter,
            failures_per_hour=1 / options.mtbf if options.mtbf else 0.0,
            restart=options.restart,
            disk=options.disk,
        )
        each = predict(recipe, conditions)
        columns.append(_cells(recipe, share(recipe, Ranks(size=count)), each))
    found = Table(title=f"{plain(trial.name)} on many ranks, predicted", title_justify="left")
    found.add_column("ranks", no_wrap=True)
    for count in options.ranks:
        found.add_column(f"{count:,}", justify="right")
    for what, *cells in zip(_ROWS, *columns, strict=True):
        found.add_row(what, *cells)
    console().print(found)
    moved = traffic(recipe)
    print_line(
        f"an update gathers {moved.gathered:,} bytes and sums {moved.summed:,}, in "
        f"{moved.collectives} exchanges over {options.link} ({link.gigabytes_per_second:g} GB/s; "
        f"{link.source}); evaluations are left out"
    )
    return 0


_ROWS = (
    "rows of a batch, each",
    "envs, each",
    "ms of the slowest rank",
    "ms of the exchanges",
    "updates/s",
    "env steps/s, of all",
    "time of the run",
    "failures to expect",
    "time of a checkpoint",
    "best time between two",
)


def _cells(recipe: "Recipe", of_rank: "Recipe", each: "Prediction") -> list[str]:
    """One number of ranks, in the order of `_ROWS`."""
    from torch_crl.study.report import shown as number

    def shown(seconds: float) -> str:
        return duration(seconds) if seconds >= 1 else f"{seconds:.2g} s"

    return [
        f"{of_rank.algorithm.batch_size:,}",
        f"{of_rank.task.num_envs:,}",
        number(1e3 * each.slowest),
        number(1e3 * each.exchange),
        number(1 / each.update),
        f"{recipe.total_env_steps / each.run:,.0f}",
        shown(each.run) if math.isfinite(each.run) else "for ever",
        f"{each.failures:.2g}",
        shown(each.checkpoint),
        shown(each.best_interval) if math.isfinite(each.best_interval) else "",
    ]


def _paces(options: Options, shares: "list[Recipe]") -> list[tuple[float, float]]:
    """Seconds of an update and of a control step of one env, for the share of each rank."""
    given = options.update_ms / 1e3, options.env_steps_per_second
    if all(given):
        return [(given[0], 1 / given[1])] * len(shares)
    from torch_crl.training.calibration import estimate

    with Stages() as stages:
        stages.begin("measuring an update and env steps on this machine")
        estimates = estimate(shares)
    found = []
    for recipe, each in zip(shares, estimates, strict=True):
        if each.pace is None:
            raise UsageError(f"{each.how}; give --update-ms and --env-steps-per-second")
        step = 1 / given[1] if given[1] else each.pace.collecting(recipe)
        found.append((given[0] or each.pace.update, step))
    return found


def _link(name: str) -> "Link":
    from torch_crl.recipe.scaling import LINKS, Link

    if name in LINKS:
        return LINKS[name]
    try:
        bandwidth = float(name)
    except ValueError:
        bandwidth = 0.0
    if not 0.0 < bandwidth < 1e6:
        raise UsageError(f"--link {name!r} is none of {_LINKS}, and no number of GB/s")
    return Link(bandwidth, 2e-5, "as given")
