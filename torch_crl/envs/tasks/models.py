"""Model building that several tasks share: base models from gymnasium, physics options, walls."""

from importlib.resources import files

import mujoco

from torch_crl.envs.tasks.layouts import cells


def gymnasium_model(file_name: str) -> mujoco.MjSpec:
    """An editable base model out of the installed gymnasium package."""
    path = files("gymnasium") / "envs" / "mujoco" / "assets" / file_name
    return mujoco.MjSpec.from_file(str(path))


def set_physics(spec: mujoco.MjSpec, *, timestep: float) -> None:
    """MuJoCo's Newton solver with implicitfast integration and pyramidal friction cones.

    Ten iterations are as good as a hundred: with random actions, falls, energy and penetration
    of ant and humanoid are the same numbers. The reference's single one is not stable here.
    """
    spec.option.timestep = timestep
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.solver = mujoco.mjtSolver.mjSOL_NEWTON
    spec.option.cone = mujoco.mjtCone.mjCONE_PYRAMIDAL
    spec.option.iterations = 10
    spec.option.ls_iterations = 20


def add_walls(
    spec: mujoco.MjSpec, layout: tuple[str, ...], *, scale: float, height: float, contype: int
) -> None:
    """One box for each `#` of the layout; boxes have conaffinity 1 and the given contype."""
    for i, j in cells(layout, "#"):
        spec.worldbody.add_geom(
            name=f"wall_{i}_{j}",
            type=mujoco.mjtGeom.mjGEOM_BOX,
            pos=[scale * i, scale * j, height / 2],
            size=[scale / 2, scale / 2, height / 2],
            contype=contype,
            conaffinity=1,
            condim=3,
            margin=0.0,
            rgba=[0.75, 0.55, 0.35, 1.0],
        )
