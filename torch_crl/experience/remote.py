"""Collects in other processes, on this machine or others, two collections ahead at most.

    learner      collect k       | updates on k | collect k+1      | updates on k+1
                 asks for k+1    |              | asks for k+2     |
    collectors   collect k+1 with the weights of that moment        | ...

Each collector owns a part of the columns for ever. A collection is asked for with weights, and the
parts of all collectors are appended together, in a fixed order, so that a run without failures can
be repeated. A collector that has nothing asked waits, and so does a learner whose collectors are
slow: steps and updates keep their ratio.

A collector that dies is begun again as a new *incarnation*: with fresh episodes, other random
numbers, and trajectory numbers above all that the replay has, so that no hindsight goal leads
across the gap. N envs of all collectors, M of one.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from torch_crl.agent.networks import ResidualTower
from torch_crl.envs.vector_env import VectorEnv
from torch_crl.experience.replay import Replay, Transition
from torch_crl.system.cuda_graph import Recorder

AHEAD = 2
"""Collections that are asked for and not yet appended, at most."""

Weights = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one collector has collected: its columns of some rows of the replay."""

    incarnation: int
    updates: int
    """Number of updates after which the weights were sent."""
    steps: dict[str, np.ndarray]
    """The fields of `Transition`, [rows, M, ...]."""
    episodes: dict[str, float]


class CollectorLostError(Exception):
    """A collector is gone, and what it was asked for with it."""


class Host(Protocol):
    """Where one collector lives; calls are carried out in their order."""

    def begin(self, incarnation: int, trajectory_M: np.ndarray) -> None:
        """Begin fresh episodes whose numbers follow these."""

    def ask(self, weights: object, updates: int, rows: int) -> None:
        """Ask for so many steps with these weights, which `share` returned, and return at once."""

    def take(self) -> Part:
        """Wait for the oldest part that was asked for. Raises CollectorLostError."""

    def close(self) -> None:
        """End the collector."""


class RemoteCollector:
    """A collector whose envs are elsewhere; see the other collectors for its methods."""

    act_graph = step_graph = None

    def __init__(
        self,
        env: VectorEnv,
        actor: ResidualTower,
        replay: Replay,
        hosts: Sequence[Host],
        *,
        share: Callable[[Weights], object] = lambda weights: weights,
    ) -> None:
        """`env` stands for the kind of the envs, and is not stepped.

        Args:
            hosts: of the collectors, each with an equal share of the replay's columns.
            share: gives weights a form in which all hosts can be sent them.
        """
        self.env = env
        self._actor, self._replay, self._hosts = actor, replay, hosts
        self._share = share
        self.updates: Callable[[], int] = lambda: 0
        """Tells the number of updates so far, by which the age of weights is measured."""
        self._asked: list[deque[tuple[object, int, int]]] = [deque() for _ in hosts]
        self._trajectory_N = torch.zeros(replay.num_envs, dtype=torch.int32)
        """The newest trajectory of each column in the replay."""
        self._incarnation_H = torch.zeros(len(hosts), dtype=torch.int64)
        self._begun = False

    def use_graphs(self, make_recorder: Callable[[list[Generator]], Recorder]) -> None:
        """Nothing here is captured."""

    def collect(self, steps: int) -> dict[str, float]:
        """Append the oldest collection that was asked for, and ask for newer ones.

        Returns the metrics of the episodes, and by how many updates the collections' weights were
        older than the present ones, on average and at most.
        """
        if not self._begun:
            for number in range(len(self._hosts)):
                self._begin(number)
            self._begun = True
        while len(self._asked[0]) < AHEAD:
            request = (self._share(_weights(self._actor)), self.updates(), steps)
            for number in range(len(self._hosts)):
                self._asked[number].append(request)
                self._hosts[number].ask(*request)
        parts = [self._take(number) for number in range(len(self._hosts))]
        self._append(parts)
        lags = [self.updates() - part.updates for part in parts]
        return _means([part.episodes for part in parts]) | {
            "collector_lag": sum(lags) / len(lags),
            "collector_lag_most": float(max(lags)),
            "collectors_lost": float(self._incarnation_H.sum()),
        }

    def _take(self, number: int) -> Part:
        while True:
            try:
                part = self._hosts[number].take()
            except CollectorLostError:
                self._incarnation_H[number] += 1
                self._begin(number)
                for request in self._asked[number]:
                    self._hosts[number].ask(*request)
                continue
            # What an earlier incarnation was asked for is void.
            if part.incarnation == int(self._incarnation_H[number]):
                self._asked[number].popleft()
                return part

    def _begin(self, number: int) -> None:
        newest_M = self._trajectory_N.chunk(len(self._hosts))[number]
        self._hosts[number].begin(int(self._incarnation_H[number]), newest_M.numpy())

    def _append(self, parts: list[Part]) -> None:
        joined = {
            name: torch.from_numpy(np.concatenate([part.steps[name] for part in parts], axis=1))
            for name in parts[0].steps
        }
        rows = [tensor.to(self._replay.device) for tensor in joined.values()]
        for row in zip(*rows, strict=True):
            self._replay.add(Transition(**dict(zip(joined, row, strict=True))))
        self._trajectory_N.copy_(joined["trajectory"][-1])

    def state_dict(self) -> dict[str, Tensor]:
        """What episodes that begin anew must know; those under way are not saved."""
        return {"env/trajectory": self._trajectory_N, "incarnation": self._incarnation_H}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Begin new incarnations after those that were saved."""
        self._trajectory_N.copy_(tensors["env/trajectory"])
        self._incarnation_H.copy_(tensors["incarnation"] + 1)
        for asked in self._asked:
            asked.clear()
        self._begun = False

    def begin_anew(self) -> None:
        """Nothing to do: the envs are elsewhere, and a host that fails is made anew."""

    def close(self) -> None:
        """End the collectors."""
        for host in self._hosts:
            host.close()
        self.env.close()


def _weights(actor: ResidualTower) -> Weights:
    return {name: x.detach().cpu().numpy().copy() for name, x in actor.named_parameters()}


def _means(named: list[dict[str, float]]) -> dict[str, float]:
    return {name: sum(each[name] for each in named) / len(named) for name in named[0]}
