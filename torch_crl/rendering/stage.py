"""How everything looks: a stage of floor, sky and light around a painted copy of a task's model.

The stage is a MuJoCo model of its own, so that the task's model stays unchanged.
"""

import copy
import math
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

GOAL = (0.91, 0.36, 0.30, 0.45)
REACHED = (0.27, 0.70, 0.42, 0.50)

_ROBOT = ((0.29, 0.46, 0.66, 1.0), (0.42, 0.60, 0.78, 1.0))
_OBJECT = (0.93, 0.69, 0.29, 1.0)
_FIXED = (0.79, 0.74, 0.68, 1.0)
_FLOOR = ((0.93, 0.945, 0.96), (0.87, 0.89, 0.915))
_SKY = ((0.80, 0.88, 0.95), (0.95, 0.97, 0.985))
# From the floor's centre towards the light.
LIGHT = 6.0 * np.array([0.35, -0.45, 1.0])


def painted(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy in our colours: robots blue, movable objects amber, everything fixed sand.

    A robot is a kinematic tree with an actuator. Floors are hidden, because the stage has
    its own; what the model hides stays hidden.
    """
    model = copy.deepcopy(model)
    robots = _actuated_bodies(model)
    for geom in range(model.ngeom):
        body = model.geom_bodyid[geom]
        hidden = model.geom_rgba[geom, 3] == 0.0 and model.geom_matid[geom] < 0
        if model.body_weldid[body] == 0:
            colour = _FIXED
        else:
            depth = _depth(model, body)
            colour = _ROBOT[depth % 2] if body in robots else _OBJECT
            # Round ends of two links overlap exactly; one is made larger, so that it lies outside.
            model.geom_size[geom] *= 1.0 + 0.005 * depth
        model.geom_rgba[geom] = colour
        if hidden or is_floor(model, geom):
            model.geom_rgba[geom, 3] = 0.0
    model.geom_matid[:] = -1
    return model


def is_floor(model: mujoco.MjModel, geom: int) -> bool:
    """Whether this geom is a plane that one can stand on."""
    upright = abs(model.geom_quat[geom, 1]) + abs(model.geom_quat[geom, 2]) < 0.1
    return bool(model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_PLANE and upright)


def make_stage(
    painted_model: mujoco.MjModel,
    *,
    floor: float,
    centre: Array,
    extent: float,
    size: Any,
    smooth: bool = True,
) -> mujoco.MjModel:
    """A checkered floor at height `floor`, a pale sky, one light, and the meshes of the model.

    `extent` in metres determines shadows, clipping planes and the floor's squares; `size` is the
    size of the offscreen buffer, (width, height) in pixels; `smooth` draws edges smoothly.
    """
    spec = mujoco.MjSpec()
    visual = spec.visual
    visual.global_.offwidth, visual.global_.offheight = size
    visual.quality.offsamples = 4 if smooth else 0
    visual.quality.shadowsize = 2048
    visual.headlight.ambient = [0.42] * 3
    visual.headlight.diffuse = [0.28] * 3
    visual.headlight.specular = [0.0] * 3
    visual.rgba.haze = [*_SKY[1], 1.0]
    visual.map.shadowclip = 2.5
    visual.map.zfar = 100.0
    spec.stat.extent = extent
    spec.stat.center = centre
    _add_sky_and_floor(spec, floor=floor, square=_nice(extent / 12))
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=centre + extent * LIGHT,
        dir=-LIGHT,
        diffuse=[0.42] * 3,
        specular=[0.12] * 3,
        castshadow=True,
    )
    _add_shapes(spec, painted_model)
    stage = spec.compile()
    # The compiler rotates meshes into their principal axes; these meshes are rotated already.
    for name in ("mesh_vert", "mesh_normal"):
        getattr(stage, name)[:] = getattr(painted_model, name)
    return stage


def _add_sky_and_floor(spec: mujoco.MjSpec, *, floor: float, square: float) -> None:
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=_SKY[1],
        rgb2=_SKY[0],
        width=128,
        height=768,
    )
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        rgb1=_FLOOR[0],
        rgb2=_FLOOR[1],
        width=256,
        height=256,
    )
    material = spec.add_material(
        name="floor", texrepeat=[0.5 / square] * 2, texuniform=True, specular=0.0
    )
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    spec.worldbody.add_geom(
        type=mujoco.mjtGeom.mjGEOM_PLANE, size=[0, 0, 1], pos=[0, 0, floor], material="floor"
    )


def _add_shapes(spec: mujoco.MjSpec, model: mujoco.MjModel) -> None:
    """Add meshes and height fields in the model's order: its geoms refer to them by number."""
    for mesh in range(model.nmesh):
        vertex, face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
        spec.add_mesh(
            name=f"mesh{mesh}",
            uservert=model.mesh_vert[vertex : vertex + model.mesh_vertnum[mesh]].ravel(),
            userface=model.mesh_face[face : face + model.mesh_facenum[mesh]].ravel(),
            inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
        )
    for field in range(model.nhfield):
        rows, columns = model.hfield_nrow[field], model.hfield_ncol[field]
        first = model.hfield_adr[field]
        spec.add_hfield(
            name=f"hfield{field}",
            nrow=rows,
            ncol=columns,
            size=model.hfield_size[field],
            userdata=model.hfield_data[first : first + rows * columns],
        )


def _actuated_bodies(model: mujoco.MjModel) -> set[int]:
    """Bodies of the kinematic trees that an actuator moves."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    moment = np.zeros((model.nu, model.nv))
    mujoco.mju_sparse2dense(
        moment, data.actuator_moment, data.moment_rownnz, data.moment_rowadr, data.moment_colind
    )
    dofs = np.flatnonzero(moment.any(0))
    roots = {int(model.body_rootid[model.dof_bodyid[dof]]) for dof in dofs}
    return {body for body in range(1, model.nbody) if int(model.body_rootid[body]) in roots}


def _depth(model: mujoco.MjModel, body: int) -> int:
    depth = 0
    while model.body_parentid[body] != 0:
        body, depth = model.body_parentid[body], depth + 1
    return depth


def _nice(length: float) -> float:
    """The number nearest to the length that is 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(length))
    return power * min((1, 2, 5, 10), key=lambda step: abs(math.log(step * power / length)))
