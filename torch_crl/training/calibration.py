"""Estimates of a run's time on this machine, from a few timed steps and updates, for `--dry-run`.

Nothing is written. A run that cannot be built is reported and raises nothing.
"""

import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.goals.pictures import PictureGoals
from torch_crl.recipe.compute_choice import choose_compute, thread_count
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.settings import BudgetRecipe
from torch_crl.runs.directory import Moment, RunDirectory
from torch_crl.system.devices import resolve_device
from torch_crl.system.terminal import duration
from torch_crl.system.threads import torch_threads
from torch_crl.training.crl_run import CrlRun
from torch_crl.training.run import Run
from torch_crl.training.starting import build

MANY_HOURS = 24.0
"""Estimated hours above which there is a warning."""

_STEPS = 4
_SECONDS_OF_EACH = 0.5
_MOST_MEASURED, _MOST_SECONDS = 4, 15.0
# On the CPU, deeper networks are timed at this depth, and costly batches with fewer rows.
_MOST_DEPTH, _MOST_FLOP, _FEWEST_ROWS = 8, 5e9, 64
_REPLAY_ROWS = 64


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """The speed of a run on this machine."""

    env_step: float
    """Seconds for a control step of one env, with the policy's action and without pictures."""
    update: float
    """Seconds for a gradient update."""
    picture: float = 0.0
    """Seconds for a picture of one env; 0 where goals are no pictures."""

    def collecting(self, recipe: Recipe) -> float:
        """Seconds for a control step of one training env, with its share of a picture."""
        return self.env_step + self.picture / recipe.goal_space.picture_every


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """How long one run would take."""

    seconds: float = math.inf
    """inf if the time is not known."""
    pace: Pace | None = None
    """The measured or scaled speed; None if it is not known."""
    how: str = ""
    """How the speed was found, or why it is not known."""

    @property
    def shown(self) -> str:
        """The time as text."""
        return duration(self.seconds) if self.pace else "not known"

    def rest(self, done: float) -> "Estimate":
        """The estimate for the rest of a run of which the share `done` is complete."""
        return replace(self, seconds=(1 - done) * self.seconds)


def share_done(run_dir: Path, recipe: Recipe) -> float:
    """Share of a run's updates up to its newest checkpoint, from where it can go on.

    0 for a baseline, which begins again.
    """
    saved = [] if recipe.by_library else RunDirectory(run_dir).saved_checkpoints
    moments = map(Moment.of, saved)
    return max((moment.updates for moment in moments if moment), default=0) / recipe.total_updates


def estimate_rest(recipes: Sequence[Recipe], run_dirs: Sequence[Path]) -> list[Estimate | None]:
    """As `estimate`, for what is left of runs in these directories; None for a finished one."""
    finished = [RunDirectory(run_dir).is_finished for run_dir in run_dirs]
    left = [recipe for recipe, ended in zip(recipes, finished, strict=True) if not ended]
    whole = iter(estimate(left))
    return [
        None if ended else next(whole).rest(share_done(run_dir, recipe))
        for run_dir, recipe, ended in zip(run_dirs, recipes, finished, strict=True)
    ]


def estimate(recipes: Sequence[Recipe]) -> list[Estimate]:
    """The time that each run would take alone on the machine, its evaluations included.

    At most four kinds of run are measured, for some seconds each, first one for every task and
    algorithm. The others are scaled from the most similar one by the operations of an update.
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
        # An error while building a run must end that run when it is started, but not its estimate.
        except Exception as error:
            problems[kind] = f"it cannot be tried here: {type(error).__name__}: {error}"
    return [_estimate(recipe, measured, problems) for recipe in recipes]


def summary(estimates: Sequence[Estimate | None]) -> list[str]:
    """Lines for the user: the time of all runs together, its sources, and warnings.

    None stands for a run that is finished.
    """
    left = [found for found in estimates if found]
    known = [found for found in left if found.pace]
    counts = Counter(found.how for found in known)
    sources = ", ".join(f"{count} {how}" for how, count in counts.items())
    total = duration(sum(found.seconds for found in known))
    lines = [f"time: {total} on this machine, one run after the other ({sources})"] if known else []
    if len(left) < len(estimates):
        count = len(estimates) - len(left)
        lines = [f"{count} of {_runs(len(estimates))} are finished and take no time", *lines]
    return [*lines, *warnings(left)]


def warnings(estimates: Sequence[Estimate]) -> list[str]:
    """Lines for the user: runs whose time is not known, and a warning if it is many hours."""
    unknown = Counter(found.how for found in estimates if not found.pace)
    lines = [f"time: not known for {_runs(count)}: {how}" for how, count in unknown.items()]
    hours = sum(found.seconds for found in estimates if found.pace) / 3600
    if hours > MANY_HOURS:
        lines.append(f"warning: about {hours:,.0f} hours on this machine")
    return lines


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


def measure(recipe: Recipe) -> Pace:
    """Time some control steps of all envs, and then updates: only two if an update is slow.

    Raises whatever building and stepping such a run raises.
    """
    small = _small(recipe)
    run = build(small)

    def update() -> int:
        before = run.updates_done
        # Reading a metric waits for the device.
        float(next(iter(run.update().values())))
        return run.updates_done - before

    with closing(run), torch_threads(thread_count(recipe)):
        # The first collection fills the replay buffer and is not timed.
        run.collect()
        collection = _seconds_each(lambda: len(run.collect()) and 1)
        updates = _seconds_each(update, while_true=lambda: run.updates_done < run.updates_due)
        picture = _seconds_of_a_picture(run)
    pace = Pace(env_step=collection / small.steps_per_collection, update=updates, picture=picture)
    return _scaled(pace, of=small, to=recipe)


def _seconds_of_a_picture(run: Run) -> float:
    if not (isinstance(run, CrlRun) and isinstance(run.replay.goals, PictureGoals)):
        return 0.0
    goals, env = run.replay.goals, run.env
    assert isinstance(env, TaskVectorEnv)
    qpos_NQ = env.simulator.data["qpos"]

    def film() -> int:
        goals.film(qpos_NQ, 0)
        return len(qpos_NQ)

    return _seconds_each(film)


def _scaled(pace: Pace, *, of: Recipe, to: Recipe) -> Pace:
    """The pace of recipe `of` scaled to recipe `to`, by the operations of updating and acting."""
    cost, other = of.update_cost, to.update_cost
    rate = cost.flop / pace.update
    acting = max(0, other.networks.actor.dense_flop - cost.networks.actor.dense_flop)
    return replace(pace, env_step=pace.env_step + acting / rate, update=other.flop / rate)


def _seconds_each(
    work: Callable[[], int], *, while_true: Callable[[], bool] = lambda: True
) -> float:
    """Median seconds for each unit of the work that `work` does and counts.

    The first call, which also warms up and compiles, is left out unless it is the only one.
    """
    times: list[float] = []
    begin = math.inf
    while while_true() and (len(times) < 2 or time.perf_counter() - begin < _SECONDS_OF_EACH):
        start = time.perf_counter()
        count = work()
        end = time.perf_counter()
        times.append((end - start) / count)
        begin = min(begin, end)
    return statistics.median(times[1:] or times)


def _kind(recipe: Recipe) -> Recipe:
    """The recipe with defaults for settings that affect only a run's length or random numbers."""
    budget = replace(
        BudgetRecipe(),
        unroll_length=recipe.budget.unroll_length,
        env_steps_per_update=recipe.budget.env_steps_per_update,
    )
    task = replace(recipe.task, eval_name=recipe.task.name, num_eval_envs=1)
    # Chosen by the length of the whole run, of which only a part is timed.
    system = replace(recipe.system, seed=0, tower=choose_compute(recipe).tower)
    return replace(recipe, task=task, budget=budget, system=system)


def _small(recipe: Recipe) -> Recipe:
    """The recipe with shorter collections, a smaller replay buffer and, on the CPU, less work."""
    # PPO learns from whole collections; hindsight goals need episodes that end.
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
    here = {"collectors": 0, "collector_address": "", "collector_policy": ""}
    return with_changes(
        recipe,
        system=here,
        # The collections that are timed are those between two pictures.
        goal_space={"picture_every": _REPLAY_ROWS},
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
        return Estimate(how="no similar run was measured")
    nearest = min(near, key=lambda other: (other != kind, *_distance(kind, other)))
    pace, how = measured[nearest], "measured just now"
    if _small(kind).update_cost != kind.update_cost:
        how = "measured with smaller networks or batches"
    if nearest != kind:
        pace, how = _scaled(pace, of=nearest, to=kind), "scaled from a similar run"
    task = recipe.task
    collecting = recipe.total_env_steps * pace.collecting(recipe)
    updating = recipe.total_updates * pace.update
    training = collecting + updating
    if recipe.system.overlap == "on":
        training = max(collecting, updating)
    # The goal of an episode is filmed once.
    episode = task.episode_length * pace.env_step + pace.picture
    episodes = recipe.evaluations * task.num_eval_envs
    return Estimate(seconds=training + episodes * episode, pace=pace, how=how)


def _comparable(kind: Recipe, other: Recipe) -> bool:
    """Whether the time of an update of one can be scaled to the other by their operations."""
    if kind.algorithm.algo != other.algorithm.algo:
        return False
    # Our counts of operations do not apply to the library's own networks.
    return kind.networks.critic_depth > 0 < other.networks.critic_depth or (
        kind.networks == other.networks
    )


def _distance(kind: Recipe, other: Recipe) -> tuple[bool, float]:
    ratio = kind.update_cost.flop / other.update_cost.flop
    return kind.task.name != other.task.name, abs(math.log(ratio))
