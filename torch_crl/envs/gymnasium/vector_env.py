"""N parallel episodes of a Gymnasium goal env, in processes. N envs, S state, G goal, A action."""

import multiprocessing
import os
import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torch_crl.envs.gymnasium.errors import UnsuitableEnvError
from torch_crl.envs.gymnasium.foreign import probe
from torch_crl.envs.gymnasium.group import EnvGroup, columns
from torch_crl.envs.gymnasium.workers import Workers
from torch_crl.envs.vector_env import StepResult, VectorEnv
from torch_crl.system.threads import usable_cpus

# Where Linux keeps memory that processes share. A container may have it read-only.
_SHARED_MEMORY = "/dev/shm"


class GymnasiumVectorEnv(VectorEnv):
    """Episodes of a Gymnasium goal env, on the CPU.

    The envs are spread over one process per CPU and end their episodes themselves; an episode may
    be `terminated` because it reached its goal. The state of their physics cannot be saved: after
    `load_state_dict` all envs begin fresh episodes, whose numbers continue from the saved ones.
    """

    saves_state = False
    terminates_at_goals = True
    capturable = False
    generators = ()

    def __init__(
        self,
        name: str,
        *,
        num_envs: int,
        episode_length: int,
        seed: int,
        num_processes: int = 0,
        env_timeout: float = 300.0,
        render_mode: str | None = None,
        goal_redraw: float = 0.0,
    ) -> None:
        """Start the processes (0 is one for every CPU) and begin the first episodes.

        Where no process can be started, as in the workers of a `multiprocessing.Pool`, or memory
        cannot be shared, the envs are stepped in this process; so are envs with a `render_mode`.

        Args:
            env_timeout: seconds that an env may take for a step or a reset, 0 for no limit; making
                an env may take a minute, or this long if it is longer.
            render_mode: render mode of the envs, for `render`.
            goal_redraw: probability, at every control step, that `goal_NG` becomes the goal of
                another env, until the episode ends; distance and success stay those of the env's
                own goal.

        Raises:
            UnsuitableEnvError: there is no such env, or none that can be trained on or drawn.
            ForeignEnvError: an env went wrong; every method that steps raises it.
        """
        foreign = probe(name)
        if render_mode is not None and render_mode not in foreign.render_modes:
            raise UnsuitableEnvError(
                f"{name} cannot be drawn: its metadata has the render modes "
                f"{list(foreign.render_modes)}, and {render_mode!r} is needed"
            )
        self.spec = foreign.spec
        self.num_envs = num_envs
        self.episode_length = episode_length
        self.seconds_per_step = foreign.seconds_per_step
        self.state_NS = torch.zeros(num_envs, self.spec.state_size)
        self.goal_NG = torch.zeros(num_envs, self.spec.goal_size)
        self.steps_N = torch.zeros(num_envs, dtype=torch.int32)
        self.trajectory_N = torch.zeros(num_envs, dtype=torch.int32)
        # Gymnasium envs do not report divergence, so these stay zero.
        self.unstable_N, self.unstable_step_N = torch.zeros(2, num_envs, dtype=torch.int32)
        self._goal_redraw, self._generator = goal_redraw, torch.Generator()
        self._redrawn_N = torch.zeros(num_envs, dtype=torch.bool)
        # Some random number generators reject seeds with more bits than this.
        self._seed = seed % 2**31
        self._group: EnvGroup | Workers
        if render_mode is not None or _stays_in_this_process(name):
            table = np.zeros((num_envs, columns(self.spec)["action"].stop), np.float32)
            self._group = EnvGroup(
                foreign,
                episode_length=episode_length,
                first=0,
                table=table,
                at_work=np.zeros(2, np.int64),
                render_mode=render_mode,
            )
        else:
            self._group = Workers(
                foreign,
                episode_length=episode_length,
                num_envs=num_envs,
                num_processes=num_processes or usable_cpus(),
                timeout=env_timeout,
            )
            table = self._group.table
        # The memory that the processes write to.
        memory = torch.from_numpy(table)
        self._parts = {part: memory[:, place] for part, place in columns(self.spec).items()}
        try:
            self.reset()
        except BaseException:
            self.close()
            raise

    def reset(self) -> None:
        """Begin a fresh episode in every env, the same for equal seeds and episode numbers."""
        seed = self._seed + int(self.trajectory_N.sum())
        self._group.reset(seed)
        self._generator.manual_seed(seed)
        self._redrawn_N.zero_()
        self._read_next()
        self.steps_N.zero_()
        self.trajectory_N += 1

    def step(self, action_NA: Tensor) -> StepResult:
        """Apply float32 actions in [-1, 1], shape [N, A], for one control step."""
        parts = self._parts
        parts["action"].copy_(action_NA)
        self._group.step()
        terminated_N = parts["terminated"][:, 0] > 0
        truncated_N = (parts["truncated"][:, 0] > 0) & ~terminated_N
        ended_N = terminated_N | truncated_N
        self.steps_N += 1
        self.steps_N.masked_fill_(ended_N, 0)
        self.trajectory_N += ended_N
        self._redrawn_N &= ~ended_N
        self._read_next()
        if self._goal_redraw:
            self._redraw_goals(~ended_N)
        return StepResult(
            final_state_NS=parts["final_state"].clone(),
            distance_N=parts["distance"][:, 0].clone(),
            success={"success": parts["success"][:, 0] > 0},
            terminated_N=terminated_N,
            truncated_N=truncated_N,
            unstable_N=torch.zeros_like(ended_N),
        )

    def goal_after(self, goal_NG: Tensor, state_NS: Tensor) -> Tensor:
        """The same goal: where a goal moves, the env's observations contain the new one."""
        del state_NS
        return goal_NG

    def outcome(
        self, achieved_goal_NG: Tensor, goal_NG: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Raises ValueError: an env reports distance and success of its present state only."""
        del achieved_goal_NG, goal_NG
        raise ValueError(f"{self.spec.name} cannot tell distance and success of other goals")

    def check(self) -> None:
        """Does nothing: what goes wrong in an env is raised by `step`."""

    def live_tensors(self) -> dict[str, Tensor]:
        """The tensors that `step` changes, by name."""
        return {
            "state": self.state_NS,
            "goal": self.goal_NG,
            "steps": self.steps_N,
            "trajectory": self.trajectory_N,
        }

    def render(self) -> list[Any]:
        """A picture of each env. Raises ForeignEnvError where it cannot be drawn."""
        assert isinstance(self._group, EnvGroup), "made without a render_mode"
        return self._group.render()

    def close(self) -> None:
        """Close the envs and end their processes; calling it again does nothing."""
        self._group.close()

    def state_dict(self) -> dict[str, Tensor]:
        """The numbers of the episodes, which are all that can be saved."""
        return {"trajectory": self.trajectory_N}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Begin the episodes that come after the saved ones."""
        self.trajectory_N.copy_(tensors["trajectory"])
        self.reset()

    def _read_next(self) -> None:
        self.state_NS.copy_(self._parts["state"])
        own_NG = self._parts["goal"]
        self.goal_NG.copy_(torch.where(self._redrawn_N[:, None], self.goal_NG, own_NG))

    def _redraw_goals(self, running_N: Tensor) -> None:
        """Command the present goals of other envs in some of the episodes in the mask."""
        uniform_N = torch.rand(self.num_envs, generator=self._generator)
        other_N = torch.randint(self.num_envs, (self.num_envs,), generator=self._generator)
        mask_N = running_N & (uniform_N < self._goal_redraw)
        drawn_NG = self._parts["goal"][other_N]
        self.goal_NG.copy_(torch.where(mask_N[:, None], drawn_NG, self.goal_NG))
        self._redrawn_N |= mask_N


def _stays_in_this_process(name: str) -> bool:
    """Whether the envs cannot be spread over processes; warns if so."""
    if multiprocessing.current_process().daemon:
        why = "a daemonic process, as in multiprocessing.Pool, may not start processes"
    elif os.access(_SHARED_MEMORY, os.F_OK) and not os.access(_SHARED_MEMORY, os.W_OK):
        why = f"{_SHARED_MEMORY}, through which processes share memory, is not writable"
    else:
        return False
    warnings.warn(
        f"{name}: {why}; the envs are stepped in this one, one after another, and an env that "
        "hangs is not detected",
        stacklevel=3,
    )
    return True
