"""What a task is: functions over whole batches of simulations, independent of where they run.

N envs, S state, G goal, A action, Q positions (nq), V velocities (nv).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import torch
from torch import Tensor

from torch_crl.envs.simulator import Simulator
from torch_crl.envs.spec import TaskSpec


class Start(NamedTuple):
    """The beginning of N episodes."""

    qpos_NQ: Tensor
    """float64 generalised positions."""
    qvel_NV: Tensor
    """float64 generalised velocities."""
    goal_NG: Tensor
    """float32 commanded goals."""


def never_failed(state_NS: Tensor) -> Tensor:
    """No state is a failure: episodes end by the time limit only. Returns bool [N]."""
    return torch.zeros(len(state_NS), dtype=torch.bool, device=state_NS.device)


def height_outside(low: float, high: float) -> Callable[[Tensor], Tensor]:
    """A state fails if its third entry, the torso's height, leaves [low, high] (metres)."""

    def failed(state_NS: Tensor) -> Tensor:
        height_N = state_NS[:, 2]
        return (height_N < low) | (height_N > high)

    return failed


def direct_control(action_NA: Tensor, simulator: Simulator) -> Tensor:  # noqa: ARG001
    """The action is the actuators' control, unchanged."""
    return action_NA


def euclidean_distance(achieved_NG: Tensor, goal_NG: Tensor) -> Tensor:
    """|achieved - goal| in the goal's units. Returns [N]."""
    return (achieved_NG - goal_NG).square().sum(-1).sqrt()


@dataclass(frozen=True, kw_only=True)
class Task:
    """A goal-reaching task on one MuJoCo model.

    A task is stateless. `sample_start` draws start and goal of N episodes; `state` reads the
    simulator after a step; `failed` says which states end an episode early.
    """

    spec: TaskSpec
    model: mujoco.MjModel
    substeps: int
    """Physics steps per control step."""
    sample_start: Callable[[int, torch.Generator], Start]
    state: Callable[[Simulator], Tensor]
    """Simulator to float32 state [N, S], a new tensor."""
    fields: tuple[str, ...] = ()
    """Derived MjData fields that `state` or `control` read, such as `xpos`."""
    control: Callable[[Tensor, Simulator], Tensor] = direct_control
    """(action [N, A], simulator) to actuator controls [N, nu]."""
    failed: Callable[[Tensor], Tensor] = never_failed
    """State [N, S] to bool [N]."""
    distance: Callable[[Tensor, Tensor], Tensor] = euclidean_distance
    """(achieved goal [N, G], goal [N, G]) to distance [N]."""

    def achieved_goal(self, state_NS: Tensor) -> Tensor:
        """The slice of the state that a goal asks for. Any leading shape."""
        first, stop = self.spec.goal_slice
        return state_NS[..., first:stop]

    def success(self, distance_N: Tensor) -> dict[str, Tensor]:
        """Success level to bool [N]."""
        return {level: distance_N < radius for level, radius in self.spec.success_radius.items()}
