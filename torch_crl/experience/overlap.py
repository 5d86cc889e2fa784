"""Collect on the CPU while a GPU updates, one collection ahead. N envs, S state, A action.

    main thread    | take k | updates on k     | take k+1 | updates on k+1 ...
    other thread            | collects k+1                | collects k+2 ...
                            ^ with the weights of this moment

Without overlap, collection k + 1 acts with the weights after the updates on k; with overlap, it
acts with the weights from before them. The algorithm is off-policy, so it allows this lag.
"""

import copy
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Generator, Tensor

from torch_crl.agent.networks import ResidualTower
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.experience.collector import Collector
from torch_crl.experience.replay import Replay, Transition
from torch_crl.goals.space import GoalSpace
from torch_crl.system.checkpoint import flatten, part_of
from torch_crl.system.cuda_graph import Recorder


class Staging:
    """Holds the steps of one collection on the CPU until they are moved to the replay."""

    def __init__(
        self, *, rows: int, num_envs: int, state_size: int, goal_size: int, action_size: int
    ) -> None:
        """Allocate memory for `rows` steps of N envs."""
        self.filled = 0
        self._parts = Transition(
            state=torch.zeros(rows, num_envs, state_size),
            action=torch.zeros(rows, num_envs, action_size),
            achieved=torch.zeros(rows, num_envs, goal_size),
            trajectory=torch.zeros(rows, num_envs, dtype=torch.int32),
            unstable=torch.zeros(rows, num_envs, dtype=torch.bool),
            failed=torch.zeros(rows, num_envs, dtype=torch.bool),
        )._asdict()

    @classmethod
    def of(cls, env: VectorEnv, *, rows: int) -> "Staging":
        """For `rows` steps of these envs."""
        return cls(
            rows=rows,
            num_envs=env.num_envs,
            state_size=env.spec.state_size,
            goal_size=env.spec.goal_size,
            action_size=env.spec.action_size,
        )

    def write(self, step: Transition) -> None:
        """See `Rows`; the host chooses the row, so no CUDA graph can capture the call."""
        for part, row in zip(self._parts.values(), step, strict=True):
            if row is not None:
                part[self.filled].copy_(row)

    def advance(self) -> None:
        """See `Rows`."""
        self.filled += 1

    def tensors(self) -> dict[str, Tensor]:
        """See `Rows`."""
        return self._parts

    def move_to(self, replay: Replay) -> None:
        """Add all steps to the replay, oldest first, and drop them here."""
        parts = [part[: self.filled].to(replay.device) for part in self._parts.values()]
        for row in zip(*parts, strict=True):
            replay.add(Transition(*row))
        self.filled = 0

    def state_dict(self) -> dict[str, Tensor]:
        """The steps held."""
        return {name: part[: self.filled] for name, part in self._parts.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned; without tensors, no steps are held."""
        self.filled = len(tensors["state"]) if tensors else 0
        for name, tensor in tensors.items():
            self._parts[name][: self.filled].copy_(tensor)


class OverlappingCollector:
    """A `Collector` in a thread of its own, which acts with a copy of the actor's weights."""

    def __init__(
        self,
        env: VectorEnv,
        actor: ResidualTower,
        replay: Replay,
        *,
        rows: int,
        generator: Generator,
        chunk: int = 1,
        goals: GoalSpace | None = None,
    ) -> None:
        """`rows` is the largest number of steps of a collection; the rest is as for `Collector`."""
        self.env = env
        self._actor, self._acting, self._replay = actor, copy.deepcopy(actor), replay
        self._staging = Staging.of(env, rows=rows)
        self._collector = Collector(
            *(env, self._acting, self._staging), generator=generator, chunk=chunk, goals=goals
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="collect")
        self._under_way: Future[None] | None = None
        self._device = actor.weight.device
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def use_graphs(self, make_recorder: Callable[[list[Generator]], Recorder]) -> None:
        """See `Collector`."""
        self._collector.use_graphs(make_recorder)

    def start(self, steps: int) -> None:
        """Start a collection with the current weights, and return at once."""
        with torch.no_grad():
            pairs = zip(self._acting.parameters(), self._actor.parameters(), strict=True)
            for ours, present in pairs:
                ours.copy_(present)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._under_way = self._thread.submit(self._collect, steps)

    def collect(self, steps: int) -> dict[str, float]:
        """Wait for the running collection and move its steps into the replay.

        If no collection is running or staged, one is started first. Returns the metrics of
        `Collector.collect`.
        """
        if self._under_way is None and not self._staging.filled:
            self.start(steps)
        self._wait()
        episodes = self._collector.episodes(self._staging.filled)
        self._staging.move_to(self._replay)
        return episodes

    def begin_anew(self) -> None:
        """Begin fresh episodes, without the steps that a collection staged before it failed."""
        self._collector.begin_anew()
        self._staging.filled = 0

    def state_dict(self) -> dict[str, Tensor]:
        """Waits for the running collection, since its steps are part of the state."""
        self._wait()
        tensors = self._collector.state_dict()
        if self._staging.filled:
            tensors |= flatten({"staged": self._staging.state_dict()})
        return tensors

    def staged_like(self, tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        """Template for the staged part of a state, with as many steps as `tensors` has staged."""
        steps = len(tensors.get(f"{prefix}/state", ()))
        parts = self._staging.tensors() if steps else {}
        return {f"{prefix}/{name}": part[:steps] for name, part in parts.items()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        self._wait()
        self._collector.load_state_dict(tensors)
        self._staging.load_state_dict(part_of(tensors, "staged"))

    def close(self) -> None:
        """End the thread and release the resources of the env."""
        self._thread.shutdown()
        self._collector.close()

    def _wait(self) -> None:
        """Wait until the thread is idle. An exception in the thread is raised here, once."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def _collect(self, steps: int) -> None:
        if self._stream is None:
            self._collector.collect(steps)
            return
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            self._collector.collect(steps)
