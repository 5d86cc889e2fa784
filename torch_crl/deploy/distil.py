"""Distils a policy into a smaller one: the student acts, the teacher says what it would have done.

Source: DAgger, arXiv 1011.0686. N envs, S state, G goal, A action or chunk of actions, M rows.
"""

import hashlib
import math
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from torch_crl.agent.networks import ResidualTower, action_distribution, squashed_sample
from torch_crl.agent.optimizer import adam, load_optimizer_state, optimizer_state
from torch_crl.agent.plans import Plans
from torch_crl.agent.policy import Policy
from torch_crl.agent.senses import MemoryTraces
from torch_crl.agent.sizes import TowerSizes
from torch_crl.deploy.distil_loss import distil_loss
from torch_crl.deploy.senses import Senses
from torch_crl.encoders.camera import Camera
from torch_crl.envs.make import make_vector_env
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.errors import UsageError
from torch_crl.fields import STRICT, Count, Depth, Seed
from torch_crl.runs.directory import Moment, RunDirectory
from torch_crl.system import checkpoint
from torch_crl.system.threads import torch_threads
from torch_crl.system.torch_defaults import torch_defaults

_MET, _MET_EPISODES = 1024, 16
_AT_ONCE = 4096
"""Rows that the teacher labels together."""


@dataclass(frozen=True, kw_only=True)
class DistilSettings:
    """Size of a student, and how it is trained."""

    __pydantic_config__ = STRICT

    depth: Depth = 4
    width: Count = 64
    rows: Count = 200_000
    """States that the teacher labels."""
    updates: Count = 10_000
    rounds: Count = 20
    """The rows are collected in so many rounds, each followed by its share of the updates; in the
    first the teacher acts, afterwards the student."""
    num_envs: Count = 64
    batch_size: Count = 256
    learning_rate: float = 1e-3
    """At the start; it falls to 0 as a cosine."""
    other_goals: float = 0.25
    """Share of the states whose goal is what another one has achieved."""
    goals_per_state: Count = 1
    """Every state is labelled for so many goals, those after the first achieved by others. Useful
    where a state is dear, as one is that takes a picture."""
    noiseless: float = 0.0
    """Share of the envs that are acted in by mean actions, as in an evaluation. Noise frees
    students where these get stuck, and what they do not meet they do not learn to leave."""
    seed: Seed = 0


class Distillation:
    """A student, the rows with their labels, and the envs, in the middle of some round."""

    def __init__(
        self,
        teacher: Policy,
        task: str,
        settings: DistilSettings,
        *,
        episode_length: int,
        initial: ResidualTower | None = None,
        senses: Senses | None = None,
    ) -> None:
        """`initial` is the student to begin with, in place of a new one of the settings' size.

        `senses` are what the student sees of states and goals, by default what its teacher sees.

        Raises UsageError for policies that have no log-std: those of a library.
        """
        if teacher.head != "squashed_gaussian":
            raise UsageError(
                "only policies with a mean and a log-std can be distilled, which those of "
                "contrastive RL and behaviour cloning have"
            )
        self.teacher, self.settings = teacher, settings
        self.senses = senses or Senses(teacher.reader)
        self.generator = Generator().manual_seed(settings.seed)
        outputs = 2 * teacher.chunk * teacher.action_size
        sizes = TowerSizes(
            input_size=self.senses.input_size(teacher),
            output_size=outputs,
            width=settings.width,
            depth=settings.depth,
        )
        self.actor = initial or ResidualTower(sizes, generator=self.generator)
        parameters: dict[float, list[Tensor]] = {
            settings.learning_rate: list(self.actor.parameters())
        }
        self.optimizer = adam(parameters, torch.device("cpu"), self.actor.compute.other_kernels)
        self.env: VectorEnv = make_vector_env(
            task,
            num_envs=settings.num_envs,
            episode_length=episode_length,
            seed=settings.seed,
            places=self.senses.places,
        )
        camera = self.senses.camera
        self.traces: MemoryTraces | None = None
        if camera is not None:
            self.traces = MemoryTraces(camera, settings.num_envs, teacher.action_size)
        self.plans = Plans(settings.num_envs, teacher.chunk, teacher.action_size)
        rows = settings.rounds * self._rows
        self.inputs_MI = torch.zeros(rows, sizes.input_size)
        self.labels_M2A = torch.zeros(rows, outputs)
        self.rounds_done = 0

    @property
    def student(self) -> Policy:
        """The policy as it is now."""
        return self.senses.policy(self.teacher, self.actor)

    @property
    def _steps(self) -> int:
        """Control steps of a round."""
        settings = self.settings
        return max(1, math.ceil(settings.rows / settings.rounds / settings.num_envs))

    @property
    def _rows(self) -> int:
        """Rows of a round: states with goals."""
        return self._steps * self.settings.num_envs * self.settings.goals_per_state

    @property
    def _updates(self) -> int:
        """Updates of a round."""
        return max(1, math.ceil(self.settings.updates / self.settings.rounds))

    @property
    def moment(self) -> Moment:
        """Labelled states and updates so far."""
        return Moment(
            self.rounds_done * self._steps * self.settings.num_envs,
            self.rounds_done * self._updates,
        )

    @torch_defaults()
    def round(self) -> dict[str, float]:
        """Collect, label and learn once; returns the metrics of the last update."""
        begin = self.rounds_done * self._rows
        taught_MI, rows_MI = self.collect()
        self.inputs_MI[begin : begin + len(rows_MI)] = rows_MI
        for part in torch.arange(len(rows_MI)).split(_AT_ONCE):
            with torch.no_grad():
                self.labels_M2A[begin + part] = self.teacher.actor(taught_MI[part])
        metrics: dict[str, Tensor] = {}
        done, last = self.moment.updates, self.settings.rounds * self._updates
        for update in range(done, done + self._updates):
            share = 0.5 * (1 + math.cos(math.pi * update / last))
            self.optimizer.param_groups[0]["lr"] = share * self.settings.learning_rate
            rows = torch.randint(
                begin + len(rows_MI), (self.settings.batch_size,), generator=self.generator
            )
            loss, metrics = distil_loss(self.labels_M2A[rows], self.actor(self.inputs_MI[rows]))
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimizer.step()
        self.rounds_done += 1
        return {name: float(value) for name, value in metrics.items()}

    @torch.no_grad()
    def collect(self) -> tuple[Tensor, Tensor]:
        """States and goals of a round as the teacher, and as the student, sees them: [M, I] each.

        In some rows the goals are others.
        """
        env, settings = self.env, self.settings
        states: list[Tensor] = []
        seen: list[Tensor] = []
        goals: list[Tensor] = []
        for _ in range(self._steps):
            states.append(env.state_NS.clone())
            goals.append(env.goal_NG.clone())
            seen.append(self._seen())
            self._step(seen[-1] if self.rounds_done else None)
        env.check()
        state_MS, seen_MS, commanded_MG = torch.cat(states), torch.cat(seen), torch.cat(goals)
        achieved_MG = state_MS[:, slice(*env.spec.goal_slice)]
        rows: list[tuple[Tensor, Tensor]] = []
        for number in range(settings.goals_per_state):
            others = torch.randint(len(state_MS), (len(state_MS),), generator=self.generator)
            share = 1.0 if number else settings.other_goals
            changed_M1 = torch.rand(len(state_MS), 1, generator=self.generator) < share
            goal_MG = torch.where(changed_M1, achieved_MG[others], commanded_MG)
            theirs, ours = self.senses.goals(self.teacher, goal_MG)
            rows.append((torch.cat([state_MS, theirs], -1), torch.cat([seen_MS, ours], -1)))
        taught, given = zip(*rows, strict=True)
        return torch.cat(taught), torch.cat(given)

    def _step(self, seen_NS: Tensor | None) -> None:
        """One step of the student, by what it sees, or of the teacher."""
        env = self.env

        def draw() -> Tensor:
            theirs, ours = self.senses.goals(self.teacher, env.goal_NG)
            if seen_NS is None:
                output_N2A = self.teacher.actor(torch.cat([env.state_NS, theirs], dim=-1))
            else:
                output_N2A = self.actor(torch.cat([seen_NS, ours], dim=-1))
            noise_NA = torch.randn(
                len(output_N2A), output_N2A.shape[1] // 2, generator=self.generator
            )
            noise_NA[: round(self.settings.noiseless * len(noise_NA))] = 0.0
            return squashed_sample(*action_distribution(output_N2A), noise_NA)[0]

        action_NA = self.plans.next_action(draw)
        if self.traces is not None:
            self.traces.act(action_NA)
        result = env.step(action_NA)
        for memory in self._memories.values():
            memory.drop(result.terminated_N | result.truncated_N)

    def _seen(self) -> Tensor:
        """What the student sees [N, S] of the states now."""
        if self.traces is None:
            return self.env.state_NS.clone()
        assert isinstance(self.env, TaskVectorEnv)
        return self.traces.see(self.traces.camera.film(self.env.simulator.data["qpos"]))

    @property
    def _memories(self) -> "dict[str, Plans | MemoryTraces]":
        """What is remembered from step to step, by name."""
        traces = {"traces": self.traces} if self.traces is not None else {}
        return {"plans": self.plans, **traces}

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that changes, by name."""
        stop = self.rounds_done * self._rows
        tensors = optimizer_state(dict(self.actor.named_parameters()), self.optimizer)
        tensors |= {"generator": self.generator.get_state()}
        tensors |= {"inputs": self.inputs_MI[:stop], "labels": self.labels_M2A[:stop]}
        memories = {name: memory.tensors() for name, memory in self._memories.items()}
        parts = {"env": self.env.state_dict(), **memories}
        if self.senses.camera is not None:
            parts["camera"] = self.senses.camera.tensors()
        return tensors | checkpoint.flatten(parts)

    def load_state_dict(self, tensors: dict[str, Tensor], rounds_done: int) -> None:
        """Go on from what `state_dict` returned."""
        self.rounds_done = rounds_done
        load_optimizer_state(dict(self.actor.named_parameters()), self.optimizer, tensors)
        self.generator.set_state(tensors["generator"])
        stop = self.rounds_done * self._rows
        self.inputs_MI[:stop], self.labels_M2A[:stop] = tensors["inputs"], tensors["labels"]
        self.env.load_state_dict(checkpoint.part_of(tensors, "env"))
        if self.traces is not None and self.senses.camera is not None:
            seen = checkpoint.part_of(tensors, "camera")
            camera = Camera.rebuild(self.senses.camera.description(), seen)
            self.senses = replace(self.senses, camera=camera)
            self.traces.camera = camera
        for part, memory in self._memories.items():
            for name, tensor in checkpoint.part_of(tensors, part).items():
                memory.tensors()[name].copy_(tensor)


@torch_defaults()
def met_rows(policy: Policy, task: str, *, episode_length: int, seed: int = 0) -> Tensor:
    """States and goals [M, S + G], about a thousand, from all over the episodes of a policy.

    As in the rows of a student, a quarter of the goals is what other rows have achieved.
    """
    rows = _MET_EPISODES * episode_length
    settings = DistilSettings(rows=rows, rounds=1, updates=1, num_envs=_MET_EPISODES, seed=seed)
    made = Distillation(policy, task, settings, episode_length=episode_length)
    with closing(made.env):
        row_MI, _ = made.collect()
    # Neighbours tell the same, so most steps are left out.
    every = max(1, rows // _MET)
    return row_MI.view(-1, _MET_EPISODES, row_MI.shape[1])[::every].flatten(0, 1)


@torch_threads(1)
def distil(
    teacher: Policy,
    task: str,
    settings: DistilSettings,
    directory: RunDirectory,
    *,
    episode_length: int,
    on_round: Callable[[int, dict[str, float]], object],
    initial: ResidualTower | None = None,
    senses: Senses | None = None,
) -> Policy:
    """Train a student, or go on where a killed process stopped; saves after every round.

    The student begins as `initial`, which is changed, or with random weights; `senses` are what it
    sees, see `Distillation`. `on_round` is called
    with the number of rounds done and the metrics of the last update.

    Raises UsageError if the directory holds the distillation of another policy or other settings.
    """
    meta: dict[str, Any] = asdict(settings) | {"task": task, "teacher": fingerprint(teacher.actor)}
    if initial is not None:
        meta["initial"] = fingerprint(initial)
    made = Distillation(
        teacher,
        task,
        settings,
        episode_length=episode_length,
        initial=initial,
        senses=senses,
    )
    meta |= made.senses.description()
    with closing(made.env):
        if saved := directory.saved_checkpoints:
            _, tensors, told, _ = checkpoint.load_newest(saved)
            rounds = told.pop("rounds_done")
            if changed := [name for name in meta | told if told.get(name) != meta.get(name)]:
                raise UsageError(
                    f"{directory} holds the distillation of another policy, or with other "
                    f"settings ({', '.join(changed)}); give another --out, or delete it"
                )
            made.load_state_dict(tensors, rounds)
        while made.rounds_done < settings.rounds:
            metrics = made.round()
            folder = directory.checkpoints / made.moment.name
            checkpoint.save(folder, made.state_dict(), meta | {"rounds_done": made.rounds_done})
            directory.prune(checkpoints=2)
            on_round(made.rounds_done, metrics)
    return made.student


def fingerprint(network: nn.Module) -> str:
    """SHA-256 of the weights."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def name_of(settings: DistilSettings) -> str:
    """Name of a student's folder."""
    return f"depth{settings.depth}_width{settings.width}_seed{settings.seed}"
