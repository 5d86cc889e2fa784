"""Shows a policy in MuJoCo's own interactive viewer. G goal, S state, A action, one env."""

import math
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable

import mujoco
import torch

from torch_crl.agent.policy import Acts, Policy, controller_of, places_of
from torch_crl.envs.task import Task
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.rendering import camera, stage
from torch_crl.rendering.gl import RenderError, load_triton_first
from torch_crl.rendering.renderer import add_spheres, direction_of

# Windows begin with two thirds of the screen, which is this wide over its height or wider.
_ASPECT = 4 / 3


@torch.no_grad()
def watch(
    policy: Acts, env: TaskVectorEnv, *, told: Callable[[], Policy | None] = lambda: None
) -> None:
    """Run the policy in the first env of `env` in real time until the window is closed.

    `told` is asked at every step for a policy that takes over, one that follows another sentence.
    A policy that can be commanded to one place only is commanded to it in every episode.

    The goal is a sphere of the success radius, green while reached. Raises RenderError where no
    window can be opened.
    """
    load_triton_first()
    _require_display()
    # Imported here, because the import needs GLFW's library.
    import mujoco.viewer

    controller = controller_of(policy, env.num_envs, env)
    task = env.task
    # A copy also because the window's controls change the model that it shows.
    model = _coloured(task.model)
    data = mujoco.MjData(model)
    radius = task.spec.success_radius.get("success", 0.05)
    seconds = model.opt.timestep * task.substeps
    threads = set(threading.enumerate())
    try:
        # Tab and shift-tab show the panels, which would hide most of a small window.
        viewer = mujoco.viewer.launch_passive(model, data, show_left_ui=False, show_right_ui=False)
    except Exception as error:
        raise RenderError(f"MuJoCo's viewer could not be opened: {error}. {_OTHERWISE}") from error
    try:
        with viewer:
            _aim(viewer.cam, task, model, radius)
            while viewer.is_running():
                begin = time.perf_counter()
                if (new := told()) is not None:
                    policy, controller = new, controller_of(new, env.num_envs, env)
                places = places_of(policy)
                if places is not None and len(places.point_PG) == 1:
                    env.goal_NG.copy_(places.point_PG.expand_as(env.goal_NG))
                result = env.step(controller(env.state_NS, env.goal_NG))
                controller.reset(result.terminated_N | result.truncated_N)
                data.qpos[:] = env.simulator.data["qpos"][0].cpu().numpy()
                mujoco.mj_forward(model, data)
                points_P3 = task.goal_points(env.goal_NG[0].cpu()).double().numpy()
                success = task.success(task.achieved_goal(env.state_NS), env.goal_NG)
                reached = bool(success["success"][0])
                with viewer.lock():
                    viewer.user_scn.ngeom = 0
                    colour = stage.REACHED if reached else stage.GOAL
                    add_spheres(viewer.user_scn, points_P3, radius, colour)
                viewer.sync()
                time.sleep(max(0.0, seconds - (time.perf_counter() - begin)))
    finally:
        # The window's thread shuts OpenGL down; a process that exits before that crashes.
        for thread in set(threading.enumerate()) - threads:
            thread.join(timeout=5.0)


def _coloured(model: mujoco.MjModel) -> mujoco.MjModel:
    """A copy in the colours of pictures and videos, with the model's own floor and sky, but paler.

    A model without a light gets a brighter one at the camera.
    """
    shown = stage.painted(model)
    floors = [geom for geom in range(model.ngeom) if stage.is_floor(model, geom)]
    shown.geom_rgba[floors], shown.geom_matid[floors] = (
        model.geom_rgba[floors],
        model.geom_matid[floors],
    )
    shown.mat_reflectance[:] = 0.0
    shown.tex_data[:] = 190 + shown.tex_data // 4
    shown.light_diffuse[:] *= 0.6
    if model.nlight == 0:
        shown.vis.headlight.ambient[:], shown.vis.headlight.diffuse[:] = 0.4, 0.6
    return shown


def _aim(view: mujoco.MjvCamera, task: Task, model: mujoco.MjModel, radius: float) -> None:
    """Let the camera see all of a task, or follow a robot, from where films see it."""
    mujoco.mjv_defaultFreeCamera(model, view)
    root = _followed(model)
    if root is not None:
        view.azimuth, view.elevation = direction_of(model, math.inf, follows=True)
        view.type = mujoco.mjtCamera.mjCAMERA_TRACKING
        view.trackbodyid = root
        return
    points = camera.sampled_points(task, model, mujoco.MjData(model), radius=radius)
    span = float((points.max(0) - points.min(0)).max())
    view.azimuth, view.elevation = direction_of(model, span, follows=False)
    fitting = camera.frame(
        points,
        azimuth=view.azimuth,
        elevation=view.elevation,
        fovy=model.vis.global_.fovy,
        aspect=_ASPECT,
    )
    view.lookat[:], view.distance = fitting.lookat, fitting.distance


def _followed(model: mujoco.MjModel) -> int | None:
    """The body that the camera follows; None if anything but a floor is fixed around it."""
    fixed = model.body_weldid[model.geom_bodyid] == 0
    if (fixed & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE)).any():
        return None
    return next((body for body in range(model.nbody) if model.body_weldid[body] != 0), None)


_OTHERWISE = "`torch-crl eval RUN --video out.gif` films without a display"


def _require_display() -> None:
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise RenderError(
            "MuJoCo's viewer needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set "
            f"(over ssh: `ssh -X`). {_OTHERWISE}"
        )
    import glfw

    # Without this check MuJoCo would end the process, or wait for its window for ever.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        opened = glfw.init()
    if not opened:
        why = "; ".join(str(one.message) for one in said)
        raise RenderError(f"no window can be opened on this display ({why}). {_OTHERWISE}")
