"""Where a link of an arm is, from the angles of its joints. N envs, J joints, Q positions (nq)."""

from collections.abc import Callable

import mujoco
import torch
from torch import Tensor

from torch_crl.envs.tasks.sampling import Constant


def centre_of_mass(model: mujoco.MjModel, body: str) -> Callable[[Tensor], Tensor]:
    """Function from qpos [N, Q] to the body's `xipos` in the world: float64 [N, 3], metres.

    After a step MuJoCo's own positions are one substep old, and to bring them up to date it looks
    for contacts too. The formula is the product of exponentials: from the body to the base, each
    joint turns the point about the axis that it has where the numbers of all of them are 0.

    Source: Lynch and Park, Modern Robotics, section 4.1. Raises ValueError if a joint that moves
    the body is not a hinge.
    """
    joints = _joints_from(model, body)
    if any(model.jnt_type[joint] != mujoco.mjtJoint.mjJNT_HINGE for joint in joints):
        raise ValueError(f"the body {body!r} is moved by a joint that is not a hinge")
    position_J = model.jnt_qposadr[joints]
    zero = mujoco.MjData(model)
    zero.qpos[position_J] = 0.0
    mujoco.mj_kinematics(model, zero)
    axes_J3, anchors_J3 = (torch.from_numpy(part[joints]) for part in (zero.xaxis, zero.xanchor))
    entries = Constant(torch.from_numpy(position_J))
    turns = Constant(torch.stack([_turn(*line) for line in zip(axes_J3, anchors_J3, strict=True)]))
    # A point is a column (x, y, z, 1): the envs' numbers lie side by side, which is twice as fast.
    start = Constant(torch.tensor([*zero.body(body).xipos, 1.0], dtype=torch.float64)[:, None])

    def centre(qpos_NQ: Tensor) -> Tensor:
        device = qpos_NQ.device
        # In float64 everywhere, since torch may round products of float32 to TF32.
        angle_JN = qpos_NQ.T.index_select(0, entries.on(device)).double()
        factor_J3N = torch.stack([torch.ones_like(angle_JN), angle_JN.cos(), angle_JN.sin()], dim=1)
        point_4N = start.on(device)
        for turn, factor_3N in zip(turns.on(device), factor_J3N, strict=True):
            point_4N = turn @ (point_4N[:, None] * factor_3N).flatten(0, 1)
        return point_4N[:3].T

    return centre


def _joints_from(model: mujoco.MjModel, body: str) -> list[int]:
    """The joints that move the body, from its own to that at the base."""
    joints: list[int] = []
    link = model.body(body).id
    while link:
        first = model.body_jntadr[link]
        joints += reversed(range(first, first + model.body_jntnum[link]))
        link = model.body_parentid[link]
    return joints


def _turn(axis_3: Tensor, anchor_3: Tensor) -> Tensor:
    """The matrix [4, 12] of a turn about an axis through a point, by Rodrigues' formula.

    It is applied to products of the four numbers (x, y, z, 1) of a point with the three numbers
    (1, cosine, sine) of the angle.
    """
    along = axis_3.outer(axis_3)
    across = torch.eye(3, dtype=axis_3.dtype) - along
    turned = torch.linalg.cross(axis_3.expand(3, 3), torch.eye(3, dtype=axis_3.dtype)).T
    parts = torch.zeros(4, 4, 3, dtype=axis_3.dtype)
    for number, part in enumerate((along, across, turned)):
        parts[:3, :3, number] = part
        parts[:3, 3, number] = -part @ anchor_3
    # The anchor itself stays where it is, and so does the number 1.
    parts[:3, 3, 0] += anchor_3
    parts[3, 3, 0] = 1.0
    return parts.flatten(1)
