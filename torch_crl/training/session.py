"""What a process does with a run while it trains: evaluate, save, and tell of both."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsFloat

from torch_crl.agent.policy import Policy
from torch_crl.distributed.ranks import ALONE, LostRankError, Ranks
from torch_crl.distributed.stragglers import Stragglers
from torch_crl.envs.gymnasium.errors import ForeignEnvError
from torch_crl.envs.simulators import SimulatorError
from torch_crl.errors import NotFiniteError, OwnCodeError, UsageError
from torch_crl.recipe.record import Recipe
from torch_crl.recipe.share import share
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.metrics import DivergenceError, RunLog, UpdateMetrics, first_not_finite
from torch_crl.system.checkpoint import CheckpointError
from torch_crl.training.clock import Clock
from torch_crl.training.evaluation import evaluate
from torch_crl.training.run import Round, Run, stream_seed
from torch_crl.training.saving import best_so_far, commit, moment_of, save_best

_BEST_BY = "time_at_goal_share"
_NO_EARLIER = "there is no earlier one"


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The argument of a callback of `train`, which is called after every evaluation."""

    run_dir: Path
    recipe: Recipe
    metrics: Mapping[str, float]
    """`env_steps`, `updates`, `seconds`, and what `torch_crl.evaluate` returns."""
    policy: Policy
    """The policy that was evaluated; later updates change it."""


Callback = Callable[[Evaluated], Mapping[str, float] | None]


@dataclass(frozen=True, kw_only=True)
class Session:
    """The objects with which one process trains a run, from its start or from a checkpoint."""

    run: Run
    directory: RunDirectory
    log: RunLog
    clock: Clock
    evaluations: list[dict[str, float]]
    """Records of all evaluations of the run so far."""
    callback: Callback | None
    episodes: dict[str, float]
    """Metrics of the newest collection, until they are logged with its updates."""
    metrics: UpdateMetrics
    """Those of its updates."""
    ranks: Ranks = ALONE
    """Those that train the run together; only the first one writes."""
    stragglers: Stragglers = field(default_factory=Stragglers)

    @property
    def counters(self) -> dict[str, float]:
        """The current moment of the run, as contained in every record."""
        moment = moment_of(self.run)._asdict()
        return {**moment, "seconds": self.clock.seconds}

    def collect(self) -> None:
        """Collect one unroll in every env of all ranks, and keep the metrics of the episodes."""
        begin = time.perf_counter()
        with self.ranks.together(), self.saved_if_an_env_fails():
            episodes = self.run.collect()
            seconds = time.perf_counter() - begin
        pace, lines = self.stragglers.report(self.ranks.all_of(seconds))
        self.log.announce(*lines)
        self.episodes.update(self.ranks.mean(episodes) | pace)

    def sum_up(self, first_update: int) -> None:
        """Take up the losses of the updates since `first_update`.

        Raises DivergenceError, which names update and tensor.
        """
        run = self.run
        with self.ranks.together():
            try:
                self.metrics.sum_up(first_update=first_update)
                updated = run.updates_done > first_update
                name = first_not_finite(run.named_parameters()) if updated else None
                if name is not None:
                    raise DivergenceError(f"{name} is not finite after update {run.updates_done}")
            except DivergenceError as error:
                saved = [str(folder) for folder in self.directory.saved_checkpoints[:1]]
                raise DivergenceError(
                    f"{error} ({run.env_steps:,} env steps); the run stops, its last good "
                    f"checkpoint is {''.join(saved) or 'none yet'}"
                ) from None

    def log_round(self) -> None:
        """Write the record of a collection, the mean losses of its updates, and the last's size."""
        losses = self.metrics.take_means()
        sizes = self.run.update_sizes if losses else {}
        learned = self.ranks.mean(losses) | {name: value.item() for name, value in sizes.items()}
        self.log.train(self.counters | self.clock.rates() | self.episodes | learned)
        self.episodes.clear()

    def evaluate(self) -> None:
        """Evaluate the current policy, write the record, and keep the policy if it is the best.

        If that fails, in the callback too, the run is saved before the error is raised.
        """
        self.clock.show("evaluating", self.log)
        try:
            result = self._evaluated()
            # The first rank's, since wall-clock differs, and since only it calls back.
            record = self.ranks.of_first(lambda: self._recorded(self.counters | result))
        except LostRankError:
            raise
        except Exception:
            self.stop()
            raise
        self.evaluations.append(record)

    def _evaluated(self) -> dict[str, float]:
        run, recipe, ranks = self.run, self.run.recipe, self.ranks
        return evaluate(
            run.policy,
            recipe.task.eval_name,
            num_envs=share(recipe, ranks).task.num_eval_envs,
            episode_length=recipe.task.episode_length,
            seed=stream_seed(
                recipe.system.seed, ranks.stream(f"evaluation/{run.collections_done}")
            ),
            simulator=recipe.system.simulator,
            num_threads=recipe.system.simulator_threads,
            device=run.device,
            env_timeout=recipe.system.env_timeout,
            ranks=ranks,
        )

    def _recorded(self, record: dict[str, float]) -> dict[str, float]:
        """The record of an evaluation, written, with what the callback adds."""
        record |= self._called_back(record)
        if record[_BEST_BY] > best_so_far(self.directory, _BEST_BY):
            kept = "the best policy before is kept"
            with self._only_told(kept if self.directory.best_policies else _NO_EARLIER):
                save_best(self.run, self.directory, record)
        self.log.evaluation(record)
        return record

    def save(self, *, must_succeed: bool) -> bool:
        """Write checkpoint and policy, and return whether both were written.

        Unless it `must_succeed`, a failure is only reported.
        """
        self.run.seconds = self.clock.seconds
        self.run.round = Round(
            episodes=dict(self.episodes),
            sums=self.ranks.mean(self.metrics.sums),
            updates=self.metrics.count,
        )
        # Records are written before the checkpoint; if that fails, it is still written.
        with self._only_told("they are written when they can be"):
            self.log.sync()
        directory = self.directory
        earlier = directory.saved_checkpoints if self.run.resumable else directory.saved_policies
        kept = "earlier ones are kept" if earlier else _NO_EARLIER
        written = False
        # With overlap, saving waits for the envs.
        with (
            self.saved_if_an_env_fails(),
            nullcontext() if must_succeed else self._only_told(kept),
        ):
            commit(self.run, directory, self.ranks)
            written = True
        return written

    def stop(self) -> None:
        """Save the run before it ends early, and tell the user how it can go on."""
        saved = self.save(must_succeed=False)
        self.log.announce(f"stopped; {self._after_a_stop(saved)}")

    def _after_a_stop(self, saved: bool) -> str:
        if not self.run.resumable:
            algo = self.run.recipe.algorithm.algo
            return f"a run of {algo} cannot be resumed, only started again"
        if not (saved or self.directory.saved_checkpoints):
            return "no checkpoint was written, so the run can only be started again"
        again = f"train --resume --run-dir {self.directory}"
        alone = self.ranks.is_alone
        command = f"torch-crl {again}" if alone else f"torchrun ... -m torch_crl {again}"
        ranks = "" if alone else f" with {self.ranks.size} ranks"
        return f"`{command}` goes on from {'here' if saved else 'the last checkpoint'}{ranks}"

    def _called_back(self, record: dict[str, float]) -> dict[str, float]:
        """The numbers that the user's callback returns, checked; they are logged by their names."""
        if self.callback is None:
            return {}
        run = self.run
        known = Evaluated(
            run_dir=self.directory.path, recipe=run.recipe, metrics=record, policy=run.policy
        )
        returned = self.callback(known) or {}
        for name, value in returned.items():
            if name == "kind" or name in record:
                raise UsageError(f"the callback returned {name!r}, which is logged already")
            if not isinstance(value, SupportsFloat) or not math.isfinite(value):
                raise UsageError(
                    f"the callback returned {name!r} as {value!r}; what is logged must be finite "
                    "numbers by name"
                )
        return {name: float(value) for name, value in returned.items()}

    @contextmanager
    def saved_if_an_env_fails(self, *, counted: bool = False) -> Iterator[None]:
        """Save the run before the error of an env ends it, so that no updates are lost.

        The collection that failed is dropped, `counted` or not. Of several ranks none saves, since
        the others would wait for those that have not failed.
        """
        try:
            yield
        except (ForeignEnvError, SimulatorError, NotFiniteError, OwnCodeError):
            if self.ranks.is_alone and self._forgets_collection(counted=counted):
                self.stop()
            raise

    def _forgets_collection(self, *, counted: bool) -> bool:
        try:
            self.run.forget_collection(counted=counted)
        # A function of the user's own may fail again where episodes begin.
        except Exception:
            return False
        return True

    @contextmanager
    def _only_told(self, consolation: str) -> Iterator[None]:
        """Inside, a failure to write is reported, and the run goes on."""
        try:
            yield
        except (CheckpointError, OSError) as error:
            self.log.announce(f"warning: {error}; {consolation}")
