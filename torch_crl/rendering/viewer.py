"""A policy in MuJoCo's own interactive viewer. G goal, S state, A action, one env."""

import os
import sys
import threading
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from torch_crl.envs.vector_env import VectorEnv
from torch_crl.rendering import stage
from torch_crl.rendering.gl import RenderError, load_triton_first
from torch_crl.rendering.renderer import add_spheres


@torch.no_grad()
def watch(policy: Callable[[Tensor, Tensor], Tensor], env: VectorEnv) -> None:
    """Run the policy in the first env of `env` in real time until the window is closed.

    The goal is a sphere of the success radius, green while reached. Raises RenderError where no
    window can be opened.
    """
    load_triton_first()
    _require_display()
    import mujoco.viewer

    task, model = env.task, env.task.model
    data = mujoco.MjData(model)
    radius = next(iter(task.spec.success_radius.values()), 0.05)
    seconds = model.opt.timestep * task.substeps
    threads = set(threading.enumerate())
    try:
        viewer = mujoco.viewer.launch_passive(model, data)
    except Exception as error:
        raise RenderError(f"MuJoCo's viewer could not be opened: {error}. {_OTHERWISE}") from error
    try:
        with viewer:
            while viewer.is_running():
                begin = time.perf_counter()
                result = env.step(policy(env.state_NS, env.goal_NG))
                data.qpos[:] = env.simulator.data["qpos"][0].cpu().numpy()
                mujoco.mj_forward(model, data)
                points_P3 = task.goal_points(env.goal_NG[0].cpu()).double().numpy()
                reached = bool(next(iter(result.success.values()))[0])
                with viewer.lock():
                    viewer.user_scn.ngeom = 0
                    colour = stage.REACHED if reached else stage.GOAL
                    add_spheres(viewer.user_scn, points_P3, radius, colour)
                viewer.sync()
                time.sleep(max(0.0, seconds - (time.perf_counter() - begin)))
    finally:
        # The window's thread takes OpenGL down; a process that ends before it crashes.
        for thread in set(threading.enumerate()) - threads:
            thread.join(timeout=5.0)


_OTHERWISE = "`torch-crl eval RUN --video out.gif` films without a display"


def _require_display() -> None:
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        raise RenderError(
            "MuJoCo's viewer needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set "
            f"(over ssh: `ssh -X`). {_OTHERWISE}"
        )
    import glfw

    # MuJoCo would end the process, or wait for its window for ever.
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        opened = glfw.init()
    if not opened:
        why = "; ".join(str(one.message) for one in said)
        raise RenderError(f"no window can be opened on this display ({why}). {_OTHERWISE}")
