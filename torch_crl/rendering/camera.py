"""Places the camera so that all of a task, or given points, fill the picture.

N starts, Q positions, H limited hinges, M goals of G numbers, P points.
"""

from typing import Any

import mujoco
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torch_crl.envs.task import Task

Array = NDArray[np.float64]

# Number of random starts and goals that a picture of all of a task has room for.
_SAMPLES = 64
# Share of the way to a random angle: arms with all of their room would be small in the picture.
_MOVED = 0.2

_MARGIN = 0.9
_CORNERS = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(8, 3)


def sampled_points(
    task: Task, model: mujoco.MjModel, data: mujoco.MjData, *, radius: float, moved: bool = True
) -> Array:
    """Corners of everything that is visible at some random starts and goals: [P, 3].

    `model` is the task's in colours of its own, `radius` that of goals. With `moved`, limbs are
    also where they may be later. Positions in `data` change.
    """
    generator = torch.Generator().manual_seed(0)
    start = task.sample_start(_SAMPLES, generator)
    fixed, moving = visible_geoms(model)
    found = [sphere_corners(goal_points(task, start.goal_NG), radius)]
    positions_NQ = start.qpos_NQ
    if moved:
        later_NQ = _with_limbs_moved(model, start.qpos_NQ, generator)
        positions_NQ = torch.cat([positions_NQ, later_NQ])
    for qpos_Q in positions_NQ:
        pose(model, data, qpos_Q)
        found.append(geom_corners(model, data, moving))
    found.append(geom_corners(model, data, fixed))
    return np.concatenate(found)


def _with_limbs_moved(model: mujoco.MjModel, qpos_NQ: Tensor, generator: torch.Generator) -> Tensor:
    """Positions [N, Q] with every limited hinge part of the way to a random angle."""
    hinges = (model.jnt_type == mujoco.mjtJoint.mjJNT_HINGE) & model.jnt_limited.astype(bool)
    columns = torch.from_numpy(model.jnt_qposadr[hinges]).long()
    low_H, high_H = torch.from_numpy(model.jnt_range[hinges]).T.to(qpos_NQ)
    draws_NH = torch.rand(len(qpos_NQ), len(columns), generator=generator).to(qpos_NQ)
    moved_NQ = qpos_NQ.clone()
    angle_NH = low_H + draws_NH * (high_H - low_H)
    moved_NQ[:, columns] += _MOVED * (angle_NH - qpos_NQ[:, columns])
    return moved_NQ


def visible_geoms(model: mujoco.MjModel) -> tuple[NDArray[Any], NDArray[Any]]:
    """Ids of the visible fixed geoms but for planes, and of the visible geoms that move."""
    plane = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
    visible = (model.geom_rgba[:, 3] > 0) & ~plane & (model.geom_group < 3)
    fixed = model.body_weldid[model.geom_bodyid] == 0
    return np.flatnonzero(visible & fixed), np.flatnonzero(visible & ~fixed)


def goal_points(task: Task, goal_MG: Tensor) -> Array:
    """Where the spheres of these goals are, [P, 3]."""
    points = [task.goal_points(goal_G) for goal_G in goal_MG.detach().cpu()]
    return torch.cat([torch.zeros(0, 3), *points]).double().numpy()


def pose(model: mujoco.MjModel, data: mujoco.MjData, qpos_Q: Tensor) -> None:
    """Place the geoms as they are at these positions."""
    data.qpos[:] = qpos_Q.detach().cpu().numpy()
    mujoco.mj_kinematics(model, data)


def geom_corners(model: mujoco.MjModel, data: mujoco.MjData, geoms: Array) -> Array:
    """Corners of the bounding boxes of these geoms, in the world: [8 x geoms, 3]."""
    boxes = model.geom_aabb[geoms]
    local = boxes[:, None, :3] + boxes[:, None, 3:] * _CORNERS
    rotation = data.geom_xmat[geoms].reshape(-1, 3, 3)
    world: Array = local @ rotation.transpose(0, 2, 1) + data.geom_xpos[geoms][:, None]
    return world.reshape(-1, 3)


def sphere_corners(centres: Array, radius: float) -> Array:
    """Corners of boxes around spheres: [8 x spheres, 3]."""
    corners: Array = centres[:, None] + radius * _CORNERS
    return corners.reshape(-1, 3)


def frame(points: Array, *, azimuth: float, elevation: float, fovy: float, aspect: float) -> Any:
    """The camera, looking along azimuth and elevation (degrees), that sees all points [P, 3].

    `fovy` is the vertical angle of view in degrees, `aspect` the picture's width over its height.
    """
    a, e = np.radians([azimuth, elevation])
    forward = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
    right = np.array([np.sin(a), -np.cos(a), 0.0])
    up = np.cross(right, forward)
    tangent = _MARGIN * np.tan(np.radians(fovy / 2)) * np.array([aspect, 1.0])
    axes = np.stack([right, up])
    low, high = points.min(0), points.max(0)
    centre, distance = (low + high) / 2, 1.0
    # In perspective, points centred in space are not centred in the picture, so this repeats.
    for _ in range(8):
        offset = points - centre
        across, along = offset @ axes.T, offset @ forward
        distance = float((np.abs(across) / tangent - along[:, None]).max())
        seen = across / (distance + along)[:, None]
        middle = (seen.min(0) + seen.max(0)) / 2
        centre = centre + distance * middle @ axes
    camera = mujoco.MjvCamera()
    camera.lookat[:] = centre
    camera.distance, camera.azimuth, camera.elevation = distance * 1.01, azimuth, elevation
    return camera
