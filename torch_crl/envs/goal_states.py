"""Finds positions in which given goals are achieved, by inverse kinematics for any task.

N goals, G goal, Q positions, D candidates.
"""

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators.cpu import CpuSimulator
from torch_crl.envs.task import Task
from torch_crl.errors import TorchCrlError
from torch_crl.system.torch_defaults import torch_defaults

_CANDIDATES = 2048
# Candidates from which each goal is tried; joint limits may stop some of them.
_TRIED = 4
_ITERATIONS = 30
# Goals that are solved at once; each takes a simulation for every position and one more.
_AT_ONCE = 32
_DIFFERENCE = 1e-4
_DAMPING = 1e-8
_LARGEST_STEP = 0.3


class GoalStateError(TorchCrlError, ValueError):
    """No position was found in which a goal is achieved; the message names the goal."""


@torch_defaults()
def goal_states(task: Task, goal_NG: Tensor, *, seed: int = 0) -> Tensor:
    """Positions [N, Q], float64, in which these goals are achieved.

    They are starts of the task, or random angles of its joints, that are moved until what is
    achieved there is the goal: damped Gauss-Newton steps on the positions. Nothing keeps bodies
    from touching. Raises GoalStateError for a goal that is missed by half of the success radius.
    """
    candidate_DQ, achieved_DG = _candidates(task, Generator().manual_seed(seed))
    found = [
        _solved(task, candidate_DQ, achieved_DG, goal_MG) for goal_MG in goal_NG.split(_AT_ONCE)
    ]
    qpos_NQ, distance_N = (torch.cat(part) for part in zip(*found, strict=True))
    worst = int(distance_N.argmax())
    radius = task.spec.success_radius["success"]
    if not distance_N[worst] <= radius / 2:
        raise GoalStateError(
            f"no position of {task.spec.name} was found in which the goal "
            f"{[round(number, 3) for number in goal_NG[worst].tolist()]} is achieved; the nearest "
            f"is at a distance of {distance_N[worst]:.3g}, and half of the success radius, "
            f"{radius / 2:.3g}, is needed"
        )
    return qpos_NQ


def _solved(
    task: Task, candidate_DQ: Tensor, achieved_DG: Tensor, goal_NG: Tensor
) -> tuple[Tensor, Tensor]:
    """The best positions [N, Q] that were found from several candidates, and the distances [N]."""
    distance_ND = torch.cdist(goal_NG.double(), achieved_DG)
    near_ND = distance_ND.topk(_TRIED, largest=False).indices
    goal_MG = goal_NG.repeat_interleave(_TRIED, 0)
    qpos_MQ = _moved(task, candidate_DQ[near_ND.flatten()], goal_MG.double())
    distance_M = task.distance(_achieved(task, qpos_MQ).to(goal_MG.dtype), goal_MG)
    distance_NT = distance_M.view(-1, _TRIED)
    # The first of those that are as good: which of them is better by rounding depends on the batch.
    close = task.spec.success_radius["success"] / 50
    best_N = (distance_NT <= distance_NT.amin(1, keepdim=True) + close).int().argmax(1)
    row_N = torch.arange(len(goal_NG))
    return qpos_MQ.view(len(goal_NG), _TRIED, -1)[row_N, best_N], distance_NT[row_N, best_N]


def _candidates(task: Task, generator: Generator) -> tuple[Tensor, Tensor]:
    """Positions [D, Q] spread over the joints' ranges, and the goals [D, G] achieved there."""
    model = task.model
    qpos_DQ = task.sample_start(_CANDIDATES, generator).qpos_NQ.double().clone()
    hinge, slide = int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE)
    spread = slice(_CANDIDATES // 4, None)
    for joint in range(model.njnt):
        kind, address = int(model.jnt_type[joint]), int(model.jnt_qposadr[joint])
        low, high = model.jnt_range[joint] if model.jnt_limited[joint] else (-torch.pi, torch.pi)
        if kind == hinge or (kind == slide and model.jnt_limited[joint]):
            column = qpos_DQ[spread, address]
            uniform = torch.rand(len(column), generator=generator, dtype=torch.float64)
            qpos_DQ[spread, address] = low + (high - low) * uniform
    return qpos_DQ, _achieved(task, qpos_DQ)


def _achieved(task: Task, qpos_NQ: Tensor) -> Tensor:
    """The goals [N, G], float64, that are achieved at these positions."""
    simulator = CpuSimulator(task.model, num_envs=len(qpos_NQ), fields=task.fields, num_threads=1)
    still_NV = torch.zeros(len(qpos_NQ), task.model.nv, dtype=torch.float64)
    simulator.reset(torch.ones(len(qpos_NQ), dtype=torch.bool), qpos_NQ, still_NV)
    return task.achieved_goal(task.state(simulator)).double()


def _moved(task: Task, qpos_NQ: Tensor, goal_NG: Tensor) -> Tensor:
    """The positions [N, Q] moved towards the goals; of all on the way, the nearest to them."""
    count, size = qpos_NQ.shape
    offset_XQ = torch.cat([torch.zeros(1, size), _DIFFERENCE * torch.eye(size)]).double()
    damping_GG = _DAMPING * torch.eye(goal_NG.shape[1], dtype=torch.float64)
    low_Q, high_Q = _limits(task.model)
    best_NQ, least_N = qpos_NQ, torch.full((count,), torch.inf, dtype=torch.float64)
    for _ in range(_ITERATIONS):
        around_NXQ = qpos_NQ[:, None] + offset_XQ
        achieved_NXG = _achieved(task, around_NXQ.flatten(0, 1)).view(count, size + 1, -1)
        missing_NG = goal_NG - achieved_NXG[:, 0]
        missing_N = missing_NG.norm(dim=-1)
        best_NQ = torch.where((missing_N < least_N)[:, None], qpos_NQ, best_NQ)
        least_N = torch.minimum(missing_N, least_N)
        if missing_N.max() < 1e-4:
            break
        slope_NQG = (achieved_NXG[:, 1:] - achieved_NXG[:, :1]) / _DIFFERENCE
        square_NGG = slope_NQG.mT @ slope_NQG + damping_GG
        step_NQ = (slope_NQG @ torch.linalg.solve(square_NGG, missing_NG[..., None])).squeeze(-1)
        # Angles turn by a small step at most; what is far along a slide may be moved at once.
        turn_NQ = torch.where(_turns(task.model), step_NQ.abs(), 0.0)
        shrink_N1 = (_LARGEST_STEP / turn_NQ.amax(1, keepdim=True)).clamp(max=1.0)
        qpos_NQ = (qpos_NQ + shrink_N1 * step_NQ).clamp(low_Q, high_Q)
    return best_NQ


def _limits(model: mujoco.MjModel) -> tuple[Tensor, Tensor]:
    """Lowest and highest value [Q] of each position; infinite without limits."""
    low_Q = torch.full((model.nq,), -torch.inf, dtype=torch.float64)
    high_Q = -low_Q
    scalar = (int(mujoco.mjtJoint.mjJNT_HINGE), int(mujoco.mjtJoint.mjJNT_SLIDE))
    for joint in range(model.njnt):
        if model.jnt_limited[joint] and int(model.jnt_type[joint]) in scalar:
            low_Q[model.jnt_qposadr[joint]], high_Q[model.jnt_qposadr[joint]] = model.jnt_range[
                joint
            ]
    return low_Q, high_Q


def _turns(model: mujoco.MjModel) -> Tensor:
    """bool [Q]: the angles of hinges."""
    hinges = model.jnt_type == int(mujoco.mjtJoint.mjJNT_HINGE)
    turns_Q = torch.zeros(model.nq, dtype=torch.bool)
    turns_Q[model.jnt_qposadr[hinges].tolist()] = True
    return turns_Q
