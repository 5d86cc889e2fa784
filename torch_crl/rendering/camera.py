"""Places the camera so that given points fill the picture."""

from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_MARGIN = 0.9
_CORNERS = np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), axis=-1).reshape(8, 3)


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
