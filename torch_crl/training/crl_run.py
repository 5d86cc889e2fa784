"""A run of our own algorithms: what collecting and an update do, and its state for checkpoints."""

from typing import Any

import torch
from torch import Generator, Tensor

from torch_crl.agent.average import AveragedActor
from torch_crl.agent.learner import Learner
from torch_crl.agent.optimizer import UpdateSizes
from torch_crl.agent.policy import Policy
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.experience.collector import Collector
from torch_crl.experience.overlap import OverlappingCollector
from torch_crl.experience.remote import RemoteCollector
from torch_crl.experience.replay import Replay
from torch_crl.recipe.record import Recipe
from torch_crl.system import checkpoint
from torch_crl.system.cuda_graph import GraphedFunction
from torch_crl.training.goal_spaces import reader_of
from torch_crl.training.run import Run

AnyCollector = Collector | OverlappingCollector | RemoteCollector


class CrlRun(Run):
    """Contrastive RL or behaviour cloning: our collector, replay and learner."""

    resumable = True

    def __init__(
        self,
        recipe: Recipe,
        *,
        learner: Learner,
        replay: Replay,
        collector: AnyCollector,
        sampler: Generator,
        batch_size: int,
    ) -> None:
        """`sampler` draws batches of `batch_size`; it must be on the learner's device."""
        super().__init__(recipe)
        self.batch_size = batch_size
        """The rows of this rank; the recipe has those of all ranks."""
        self.learner = learner
        self.replay = replay
        self.collector = collector
        self.sampler = sampler
        decay = recipe.algorithm.average_weights
        self.average = AveragedActor(learner.actor, decay=decay) if decay else None
        """The actor that is evaluated and saved; None where that is the newest one."""
        self.update_graph: GraphedFunction | None = None
        """Captures and replays `draw_and_update`; None without CUDA graphs."""

    @property
    def env(self) -> VectorEnv:
        """The training envs."""
        return self.collector.env

    @property
    def device(self) -> torch.device:
        """The device of replay buffer and learner."""
        return self.learner.device

    @property
    def description(self) -> str:
        """Precision and kernels, as text."""
        return str(self.learner.actor.compute)

    @property
    def policy(self) -> Policy:
        """The current deterministic policy; it shares the learner's weights."""
        spec = self.env.spec
        actor = self.average.actor if self.average else self.learner.actor
        return Policy(
            actor,
            state_size=spec.state_size,
            goal_size=spec.goal_size,
            chunk=self.recipe.algorithm.chunk,
            reader=reader_of(self.replay.goals),
        )

    def collect(self) -> dict[str, float]:
        """Collect one unroll in every env; returns metrics of the episodes."""
        episodes = self.collector.collect(self.recipe.budget.unroll_length)
        self.collections_done += 1
        return episodes

    def forget_collection(self, *, counted: bool) -> None:
        """Drop the rows of a collection that has failed; the envs begin fresh episodes."""
        # Else a run that is resumed would go on in the middle of the step that failed.
        self.collector.begin_anew()
        self.collections_done -= counted
        self.replay.forget_after(self.collections_done * self.recipe.budget.unroll_length)

    def collect_ahead(self) -> None:
        """With overlap, start the next collection if one is left and updates can run beside it."""
        wanted = self.recipe.prefill_collections + self.recipe.collections
        useful = self.collections_done < wanted and self.updates_done < self.updates_due
        if useful and isinstance(self.collector, OverlappingCollector):
            self.collector.start(self.recipe.budget.unroll_length)

    def named_parameters(self) -> dict[str, Tensor]:
        """Every trained tensor by name, such as `actor.weight`."""
        return self.learner.named_parameters()

    def close(self) -> None:
        """Release the resources of the envs."""
        self.collector.close()

    def update(self) -> dict[str, Tensor]:
        """One gradient update on a fresh batch; 0-D metrics, overwritten by the next update."""
        # Measured once per collection, at negligible cost, and outside of the CUDA graph.
        is_last = self.updates_done + 1 == self.updates_due
        sizes = UpdateSizes(self.learner.trained) if is_last else None
        metrics = (self.update_graph or self.draw_and_update)()
        self.updates_done += 1
        if sizes is not None:
            self.update_sizes = sizes.measure()
        return metrics

    def draw_and_update(self) -> dict[str, Tensor]:
        """The device work of `update`: draw a batch, compute gradients, change the parameters."""
        algorithm = self.recipe.algorithm
        batch = self.replay.draw(
            self.batch_size,
            discount=algorithm.discount,
            generator=self.sampler,
            chunk=algorithm.chunk,
        )
        metrics = self.learner.update(batch)
        if self.average is not None:
            self.average.update()
        return metrics

    def state_dict(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and counters for a checkpoint."""
        parts = {
            "learner": self.learner.state_dict(),
            "replay": self.replay.state_dict(),
            "collector": self.collector.state_dict(),
            "sampler": {"generator": self.sampler.get_state()},
        }
        if self.average is not None:
            parts["average"] = self.average.state_dict()
        if goals := self.replay.goals.state_dict():
            parts["goals"] = goals
        tensors = checkpoint.flatten(parts)
        counters = {
            "collections_done": self.collections_done,
            "updates_done": self.updates_done,
            "seconds": self.seconds,
        }
        return tensors, counters

    def check_state(
        self, tensors: dict[str, Tensor], *, collections_done: int, updates_done: int
    ) -> None:
        """Raise ValueError unless this can be the state of this run after so many of both.

        Names, shapes and dtypes must be those of this run's own state, except for what grows: rows
        of the replay buffer, steps held by an overlapping collection, and Adam's moments, which
        exist after the first update.
        """
        wanted, _ = self.state_dict()
        rows = min(collections_done * self.recipe.budget.unroll_length, self.replay.rows)
        for name in self.replay.growing:
            wanted[f"replay/{name}"] = self.replay.tensors()[name][:rows]
        if updates_done:
            for name, parameter in self.named_parameters().items():
                wanted[f"learner/adam.step.{name}"] = torch.zeros(())
                wanted |= {
                    f"learner/adam.{moment}.{name}": parameter
                    for moment in ("exp_avg", "exp_avg_sq")
                }
        if isinstance(self.collector, OverlappingCollector):
            wanted |= self.collector.staged_like(tensors, "collector/staged")
        checkpoint.check_tensors(tensors, wanted)
        next_row = int(tensors["replay/next_row"])
        if next_row != collections_done * self.recipe.budget.unroll_length:
            raise ValueError(f"its replay has {next_row} rows after {collections_done} collections")
        self.replay.check_rows(checkpoint.part_of(tensors, "replay"))
        self._check_episodes(checkpoint.part_of(checkpoint.part_of(tensors, "collector"), "env"))

    def _check_episodes(self, env: dict[str, Tensor]) -> None:
        wrong = bool(env["trajectory"].lt(0).any())
        if "steps" in env:
            wrong |= bool((env["steps"] < 0).any() | (env["steps"] > self.env.episode_length).any())
        if wrong:
            raise ValueError("its envs are at steps that no episode has")

    def load_state_dict(self, tensors: dict[str, Tensor], counters: dict[str, Any]) -> None:
        """Restore the state of the run that wrote this."""
        if self.update_graph is not None:
            self.update_graph.reset()
        self.learner.load_state_dict(checkpoint.part_of(tensors, "learner"))
        self.replay.load_state_dict(checkpoint.part_of(tensors, "replay"))
        self.collector.load_state_dict(checkpoint.part_of(tensors, "collector"))
        self.replay.goals.load_state_dict(checkpoint.part_of(tensors, "goals"))
        self.sampler.set_state(tensors["sampler/generator"])
        if self.average is not None:
            self.average.load_state_dict(checkpoint.part_of(tensors, "average"))
        self.collections_done = counters["collections_done"]
        self.updates_done = counters["updates_done"]
        self.seconds = counters["seconds"]
