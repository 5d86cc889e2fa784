"""What a task is: functions over whole batches of simulations, independent of the simulator.

N envs, S state, G goal, A action, Q positions (nq), V velocities (nv).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import mujoco
import torch
from torch import Tensor

from torch_crl.envs.simulators import DEFAULT_CAPACITY, Capacity, Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.errors import UsageError

if TYPE_CHECKING:
    from torch_crl.envs.places import Places


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


def scaled_control(action_NA: Tensor, simulator: Simulator) -> Tensor:
    """[-1, 1] stretched to the `ctrlrange` of each actuator; unchanged for one without limits."""
    if simulator.control_range is None:
        return action_NA
    middle_U, half_U = simulator.control_range
    return middle_U + half_U * action_NA


def direct_control(action_NA: Tensor, simulator: Simulator) -> Tensor:  # noqa: ARG001
    """The action is the actuators' control, unchanged, whatever their `ctrlrange`."""
    return action_NA


def euclidean_distance(achieved_NG: Tensor, goal_NG: Tensor) -> Tensor:
    """Norm of achieved - goal, in the goal's units. Returns [N]."""
    return (achieved_NG - goal_NG).square().sum(-1).sqrt()


def goal_points(goal_G: Tensor) -> Tensor:
    """Where to draw a goal: 1 or 2 numbers are a point on the floor, 3k numbers are k points.

    Returns [points, 3] in metres. Raises UsageError for goals of other sizes.
    """
    if len(goal_G) > 2 and len(goal_G) % 3:
        raise UsageError(
            f"a goal of {len(goal_G)} numbers cannot be drawn; give the task `goal_points`, which "
            "returns points [K, 3] for a goal"
        )
    if len(goal_G) < 3:
        goal_G = torch.nn.functional.pad(goal_G, (0, 3 - len(goal_G)))
    return goal_G.reshape(-1, 3)


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
    """Function from the simulator to the float32 state [N, S], which must be a new tensor."""
    fields: tuple[str, ...] = ()
    """Derived MjData fields that `state` or `control` read, such as `xpos`. They hold what
    `mj_forward` computes from the present state and the control of the step before."""
    control: Callable[[Tensor, Simulator], Tensor] = scaled_control
    """(action [N, A], simulator) to actuator controls [N, nu]. By default -1 and 1 map to the
    ends of each actuator's `ctrlrange`; an actuator without limits gets the action unchanged."""
    failed: Callable[[Tensor], Tensor] = never_failed
    """State [N, S] to bool [N]."""
    distance: Callable[[Tensor, Tensor], Tensor] = euclidean_distance
    """(achieved goal [N, G], goal [N, G]) to distance [N]."""
    reached: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None
    """(achieved goal [N, G], goal [N, G]) to a dict of success level to bool [N], for tasks whose
    success is more than a distance below `spec.success_radius`."""
    moved_goal: Callable[[Tensor, Tensor], Tensor] | None = None
    """(goal [N, G], state after a step [N, S]) to the goal from then on, for a goal that moves."""
    capacity: Capacity = DEFAULT_CAPACITY
    """Room for contacts, where the simulator reserves it; too little raises an error there."""
    goal_points: Callable[[Tensor], Tensor] = goal_points
    """Goal [G] to the points [P, 3] at which pictures draw it."""
    places: "Places | None" = None
    """Places with phrases, for goals that are commanded by words."""

    def achieved_goal(self, state_NS: Tensor) -> Tensor:
        """The slice of the state that is compared with a goal. Any leading shape."""
        first, stop = self.spec.goal_slice
        return state_NS[..., first:stop]

    def success(self, achieved_NG: Tensor, goal_NG: Tensor) -> dict[str, Tensor]:
        """Dict of success level to bool [N]."""
        return self.outcome(achieved_NG, goal_NG)[1]

    def outcome(self, achieved_NG: Tensor, goal_NG: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Distance [N], and a dict of success level to bool [N]."""
        distance_N = self.distance(achieved_NG, goal_NG)
        if self.reached is not None:
            return distance_N, self.reached(achieved_NG, goal_NG)
        levels = self.spec.success_radius.items()
        return distance_N, {level: distance_N < radius for level, radius in levels}
