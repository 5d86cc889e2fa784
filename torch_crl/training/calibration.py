"""How long a run would take here: a few steps and updates of it, timed, and arithmetic.

What `--dry-run` tells. Nothing is written, and a run that cannot be built is told, not raised.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import BudgetRecipe, Recipe
from torch_crl.system.devices import resolve_device
from torch_crl.system.terminal import duration
from torch_crl.system.threads import torch_threads
from torch_crl.training.trainer import build, thread_count

MANY_HOURS = 24.0
"""From here on a run is worth a warning."""

_STEPS = 4
_SECONDS_OF_EACH = 0.5
_MOST_MEASURED, _MOST_SECONDS = 4, 15.0
# On the CPU deeper networks are timed at this depth, and larger batches at fewer rows.
_MOST_DEPTH, _MOST_FLOP, _FEWEST_ROWS = 8, 5e9, 64
_REPLAY_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds on this machine."""

    env_step: float
    """A control step of one training env, acting included."""
    update: float
    """A gradient update."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """How long one run would take."""

    seconds: float = math.inf
    """inf if it is not known."""
    pace: Pace | None = None
    """What was measured or scaled."""
    how: str = ""
    """Where that comes from, or why it is not known."""

    @property
    def shown(self) -> str:
        """The time for people."""
        return duration(self.seconds) if self.pace else "not known"

    def rest(self, done: float) -> "Estimate":
        """What is left of it where this share of the run is done already."""
        if not self.pace:
            return self
        return replace(self, seconds=(1 - done) * self.seconds, how=f"{self.how}, {done:.0%} done")


def estimate(recipes: Sequence[Recipe]) -> list[Estimate]:
    """How long each run would take with the machine to itself, its evaluations included.

    A handful of the kinds of run among them is measured, some seconds each, first one of every task
    and algorithm; the others are scaled from the most similar one by the operations of an update.
    """
    kinds = list(dict.fromkeys(map(_kind, recipes)))
    first = {(kind.task.name, kind.algorithm.algo): kind for kind in reversed(kinds)}
    measured: dict[Recipe, Pace] = {}
    problems: dict[Recipe, str] = {}
    begin = time.monotonic()
    for kind in list(dict.fromkeys([*reversed(first.values()), *kinds]))[:_MOST_MEASURED]:
        if time.monotonic() - begin > _MOST_SECONDS:
            break
        try:
            measured[kind] = measure(kind)
        # Whatever keeps a run from being built ends it when it is started, and not its plan.
        except Exception as error:
            problems[kind] = f"it cannot be tried here: {type(error).__name__}: {error}"
    return [_estimate(recipe, measured, problems) for recipe in recipes]


def summary(estimates: Sequence[Estimate]) -> list[str]:
    """Lines for people: the time of all together, where it comes from, and what it warns of."""
    known = [found for found in estimates if found.pace]
    counts = Counter(found.how for found in known)
    sources = ", ".join(f"{count} {how}" for how, count in counts.items())
    total = duration(sum(found.seconds for found in known))
    lines = [f"time: {total} on this machine, one run after the other ({sources})"] if known else []
    return [*lines, *warnings(estimates)]


def warnings(estimates: Sequence[Estimate]) -> list[str]:
    """Lines for people: runs whose time is not known, and many hours."""
    unknown = Counter(found.how for found in estimates if not found.pace)
    lines = [f"time: not known of {_runs(count)}: {how}" for how, count in unknown.items()]
    hours = sum(found.seconds for found in estimates if found.pace) / 3600
    if hours > MANY_HOURS:
        lines.append(f"warning: about {hours:,.0f} hours on this machine")
    return lines


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def measure(recipe: Recipe) -> Pace:
    """Time some control steps of all envs and then updates, of which one is enough if it is slow.

    Raises whatever building and driving such a run raises.
    """
    small = _small(recipe)
    run = build(small)

    def update() -> int:
        before = run.updates_done
        # To read a metric is to wait for the device.
        float(next(iter(run.update().values())))
        return run.updates_done - before

    with closing(run), torch_threads(thread_count(recipe)):
        # The first fills the replay.
        run.collect()
        collection = _seconds_each(lambda: len(run.collect()) and 1)
        updates = _seconds_each(update, while_true=lambda: run.updates_done < run.updates_due)
    pace = Pace(env_step=collection / small.steps_per_collection, update=updates)
    return _scaled(pace, of=small, to=recipe)


def _scaled(pace: Pace, *, of: Recipe, to: Recipe) -> Pace:
    """The pace of one recipe as that of another, by the operations of an update and of acting."""
    cost, other = of.update_cost, to.update_cost
    rate = cost.flop / pace.update
    acting = max(0, other.networks.actor.dense_flop - cost.networks.actor.dense_flop)
    return Pace(env_step=pace.env_step + acting / rate, update=other.flop / rate)


def _seconds_each(
    work: Callable[[], int], *, while_true: Callable[[], bool] = lambda: True
) -> float:
    """Of one of the things that `work` does and counts; the first, which also warms up, counts only
    if there is no time for more.
    """
    begin = time.perf_counter()
    times: list[float] = []
    while while_true() and (not times or time.perf_counter() - begin < _SECONDS_OF_EACH):
        start = time.perf_counter()
        count = work()
        times.append((time.perf_counter() - start) / count)
    return statistics.median(times[1:] or times)


def _kind(recipe: Recipe) -> Recipe:
    """The recipe without what changes only how long it goes on, or its random draws."""
    budget = replace(
        BudgetRecipe(),
        unroll_length=recipe.budget.unroll_length,
        env_steps_per_update=recipe.budget.env_steps_per_update,
    )
    task = replace(recipe.task, eval_name=recipe.task.name, num_eval_envs=1)
    return replace(recipe, task=task, budget=budget, system=replace(recipe.system, seed=0))


def _small(recipe: Recipe) -> Recipe:
    """The same work in a shorter collection, a smaller replay and, on the CPU, a smaller batch."""
    # PPO learns from a whole collection; hindsight needs episodes that end.
    is_ppo = recipe.algorithm.algo == "ppo"
    steps = recipe.budget.unroll_length if is_ppo else _STEPS
    ends = recipe.algorithm.algo.endswith("_her")
    batch = recipe.algorithm.batch_size
    if resolve_device(recipe.system.device).type == "cpu":
        networks = recipe.networks
        depths = {
            name: min(getattr(networks, name), _MOST_DEPTH)
            for name in ("actor_depth", "critic_depth")
        }
        recipe = with_changes(recipe, networks=depths, system={"recompute": 0})
        if not is_ppo:
            share = min(1.0, _MOST_FLOP / recipe.update_cost.flop)
            batch = min(batch, max(_FEWEST_ROWS, round(share * batch)))
    return with_changes(
        recipe,
        task={"episode_length": steps} if ends else {},
        algorithm={"batch_size": batch},
        budget={
            "unroll_length": steps,
            "prefill_rows": 0 if is_ppo else steps,
            "replay_rows": _REPLAY_ROWS,
            "env_steps": _REPLAY_ROWS * recipe.task.num_envs,
        },
    )


def _estimate(
    recipe: Recipe, measured: dict[Recipe, Pace], problems: dict[Recipe, str]
) -> Estimate:
    kind = _kind(recipe)
    if kind in problems:
        return Estimate(how=problems[kind])
    near = [other for other in measured if _comparable(kind, other)]
    if not near:
        return Estimate(how="nothing like it was measured")
    nearest = min(near, key=lambda other: (other != kind, *_distance(kind, other)))
    pace, how = measured[nearest], "measured just now"
    if _small(kind).update_cost != kind.update_cost:
        how = "measured with smaller networks or batches"
    if nearest != kind:
        pace, how = _scaled(pace, of=nearest, to=kind), "scaled from a similar run"
    task = recipe.task
    collecting = recipe.total_env_steps * pace.env_step
    updating = recipe.total_updates * pace.update
    training = collecting + updating
    if recipe.system.overlap == "on":
        training = max(collecting, updating)
    episodes = recipe.budget.evaluations * task.num_eval_envs
    return Estimate(
        seconds=training + episodes * task.episode_length * pace.env_step, pace=pace, how=how
    )


def _comparable(kind: Recipe, other: Recipe) -> bool:
    """Whether the time of an update of the one says that of the other, by its operations."""
    if kind.algorithm.algo != other.algorithm.algo:
        return False
    # What the library's own networks take follows from no number of ours.
    return kind.networks.critic_depth > 0 < other.networks.critic_depth or (
        kind.networks == other.networks
    )


def _distance(kind: Recipe, other: Recipe) -> tuple[bool, float]:
    ratio = kind.update_cost.flop / other.update_cost.flop
    return kind.task.name != other.task.name, abs(math.log(ratio))
