"""Several Gymnasium goal envs, stepped one after another in one process.

Worker processes import this module, so it does not import torch. N envs of the group, G goal,
A action.
"""

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, cast

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from torch_crl.envs.gymnasium.errors import ForeignEnvError, told
from torch_crl.envs.gymnasium.foreign import Controls, Foreign, made, parts_of, read
from torch_crl.envs.gymnasium.success import told_success
from torch_crl.envs.spec import LARGEST, TaskSpec


def columns(spec: TaskSpec) -> dict[str, slice]:
    """The columns of each part of a step in the row of an env."""
    sizes = {
        "state": spec.state_size,
        "goal": spec.goal_size,
        "final_state": spec.state_size,
        "distance": 1,
        "success": 1,
        "terminated": 1,
        "truncated": 1,
        "action": spec.action_size,
    }
    stops = np.cumsum(list(sizes.values())).tolist()
    return {
        part: slice(stop - size, stop)
        for (part, size), stop in zip(sizes.items(), stops, strict=True)
    }


class EnvGroup:
    """Envs that read their actions from a table and write the results into it.

    `columns` gives the layout of a row. An env whose episode ended has begun the next one: `state`
    and `goal` belong to the new episode, everything else to the step. Every problem raises a
    ForeignEnvError that names the env and the step of its episode.
    """

    def __init__(
        self,
        foreign: Foreign,
        *,
        episode_length: int,
        first: int,
        table: NDArray[np.float32],
        at_work: NDArray[np.int64],
        render_mode: str | None = None,
    ) -> None:
        """One env for each row of the table; they are made at the first reset, or by `make`.

        Args:
            first: number of this group's first env among all envs.
            table: shape [N, columns], shared with the caller, who writes the actions into it.
            at_work: shape [2]; is set to the number of the env about to be made, stepped or reset,
                and to how many times that has been done.
        """
        self._foreign, self._spec = foreign, foreign.spec
        self._episode_length = episode_length
        self._render_mode = render_mode
        self._first = first
        self._table = table
        self._at_work = at_work
        self._places = columns(foreign.spec)
        # In float64, so that numbers too large for float32 are found here.
        self._rows = np.zeros((len(table), self._places["truncated"].stop))
        self._parts = [parts_of(row, foreign.spec) for row in self._rows]
        self._outcomes = [(False, False, False)] * len(table)
        self._steps = [0] * len(table)
        self._envs: list[gymnasium.Env[Any, Any]] = []
        self._seed = 0

    def make(self) -> None:
        """Make the envs that have not been made yet."""
        self._for_each(range(len(self._envs), len(self._rows)), self._make)

    def reset(self, seed: int) -> None:
        """Begin an episode in every env; env number i gets the seed `seed` + i."""
        self.make()
        self._seed = seed
        self._for_each(range(len(self._rows)), self._begin_first)
        self._check_numbers()
        self._publish()

    def step(self) -> None:
        """Apply the table's actions, which lie in [-1, 1], rescaled to the bounds of the envs."""
        rows, places = self._rows, self._places
        self._controls = self._scale(self._table[:, places["action"]])
        self._for_each(range(len(rows)), self._step_one)
        self._check_numbers()
        rows[:, places["success"].start :] = self._outcomes
        rows[:, places["final_state"]] = rows[:, places["state"]]
        first, stop = self._spec.goal_slice
        away_NG = rows[:, first:stop] - rows[:, places["goal"]]
        np.sqrt((away_NG * away_NG).sum(1, keepdims=True), out=rows[:, places["distance"]])
        ends_N2 = rows[:, places["terminated"].start : places["truncated"].stop]
        if ends_N2.any():
            self._for_each(np.flatnonzero(ends_N2.any(1)).tolist(), self._begin_next)
            self._check_numbers()
        self._publish()

    def render(self) -> list[Any]:
        """A picture of each env, as its render mode makes it."""
        pictures: list[Any] = []
        self._for_each(
            range(len(self._envs)), lambda index: pictures.append(self._envs[index].render())
        )
        return pictures

    def close(self) -> None:
        """Close the envs."""
        for env in self._envs:
            with suppress(Exception, SystemExit):
                env.close()

    def _for_each(self, indices: Iterable[int], act: Callable[[int], object]) -> None:
        for index in indices:
            self._at_work[:] = self._first + index, self._at_work[1] + 1
            try:
                act(index)
            except (Exception, SystemExit) as error:
                raise ForeignEnvError(f"{self._named(index)} {told(error)}") from error

    def _named(self, index: int) -> str:
        number, step = self._first + index, self._steps[index]
        return f"{self._spec.name}: env {number}, at step {step} of its episode,"

    def _begin_first(self, index: int) -> None:
        self._steps[index] = 0
        observation, _ = self._envs[index].reset(seed=self._seed + self._first + index)
        read(observation, into=self._parts[index])

    def _begin_next(self, index: int) -> None:
        self._steps[index] = 0
        read(self._envs[index].reset()[0], into=self._parts[index])

    def _make(self, _: int) -> None:
        # Not every constructor accepts `render_mode`.
        drawn = {} if self._render_mode is None else {"render_mode": self._render_mode}
        env = made(self._foreign.env_spec, max_episode_steps=self._episode_length, **drawn)
        self._envs.append(env)
        self._scale = Controls(cast(spaces.Box, env.action_space))

    def _step_one(self, index: int) -> None:
        env = self._envs[index]
        self._steps[index] += 1
        observation, _, terminated, truncated, info = env.step(self._controls[index])
        read(observation, into=self._parts[index])
        success, reward = told_success(info), self._foreign.reward
        if success is None and reward is not None:
            _, achieved_G, goal_G = self._parts[index]
            success = reward.reached(env, achieved_G.copy(), goal_G.copy(), info)
        self._outcomes[index] = (success or False, bool(terminated), bool(truncated))

    def _check_numbers(self) -> None:
        numbers = self._rows[:, : self._places["goal"].stop]
        # This is false for NaN too.
        if np.abs(numbers).max() <= LARGEST:
            return
        index, column = np.argwhere(~(np.abs(numbers) <= LARGEST))[0].tolist()
        first, stop = self._spec.goal_slice
        entries = [
            *(f"observation[{entry}]" for entry in range(first)),
            *(f"achieved_goal[{entry}]" for entry in range(stop - first)),
            *(f"desired_goal[{entry}]" for entry in range(stop - first)),
        ]
        raise ForeignEnvError(
            f"{self._named(index)} gave {entries[column]} = {numbers[index, column]:g}; needed are "
            f"finite numbers of at most {LARGEST:g}"
        )

    def _publish(self) -> None:
        self._table[:, : self._rows.shape[1]] = self._rows
