"""Model building that several tasks share: base models from gymnasium, physics options, walls."""

from importlib.resources import files

import mujoco

from torch_crl.envs.tasks.layouts import cells


def gymnasium_model(file_name: str) -> mujoco.MjSpec:
    """An editable base model from the installed gymnasium package."""
    path = files("gymnasium") / "envs" / "mujoco" / "assets" / file_name
    return mujoco.MjSpec.from_file(str(path))


def set_physics(
    spec: mujoco.MjSpec, *, timestep: float, iterations: int = 10, ls_iterations: int = 20
) -> None:
    """Set MuJoCo's Newton solver, implicitfast integration and pyramidal friction cones.

    Ten solver iterations are as good as a hundred: with random actions, ant and humanoid have the
    same falls, energy and penetration. The reference's single iteration is not stable here.
    """
    spec.option.timestep = timestep
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
    spec.option.iterations = iterations
    spec.option.ls_iterations = ls_iterations


def add_walls(
    spec: mujoco.MjSpec, layout: tuple[str, ...], *, scale: float, height: float, contype: int
) -> None:
    """One box for each `#` of the layout; boxes have conaffinity 1 and the given contype."""
    for i, j in cells(layout, "#"):
        add_wall(
            spec,
            f"{i}_{j}",
            centre=(scale * i, scale * j),
            half=(scale / 2, scale / 2),
            height=height,
            contype=contype,
        )


def add_wall(
    spec: mujoco.MjSpec,
    name: str,
    *,
    centre: tuple[float, float],
    half: tuple[float, float],
    height: float,
    contype: int,
) -> None:
    """A box `wall_<name>` on the floor, with half-widths `half` and conaffinity 1."""
    spec.worldbody.add_geom(
        name=f"wall_{name}",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=[*centre, height / 2],
        size=[*half, height / 2],
        contype=contype,
        conaffinity=1,
        condim=3,
        margin=0.0,
        rgba=[0.75, 0.55, 0.35, 1.0],
    )


def add_slides(
    body: mujoco.MjsBody, axes: str, *, armature: float, damping: float, limit: float = 0.0
) -> None:
    """Slide joints along some of the axes "xyz"; their positions are the body's in the world.

    A limit of 0 means no limit.
    """
    for axis in axes:
        index = "xyz".index(axis)
        body.add_joint(
            name=f"{body.name}_{axis}",
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[float(index == k) for k in range(3)],
            ref=body.pos[index],
            armature=armature,
            damping=damping,
            limited=int(limit > 0.0),
            range=[-limit, limit],
        )
