"""Selects the OpenGL that draws offscreen: the one in MUJOCO_GL, else EGL, else OSMesa."""

import importlib
import os
import sys
from contextlib import suppress
from typing import Any, NamedTuple

import mujoco

from torch_crl.errors import TorchCrlError

_MODULES = {
    "egl": "mujoco.egl",
    "osmesa": "mujoco.osmesa",
    "glfw": "mujoco.glfw",
    "glx": "mujoco.glfw",
    "": "mujoco.gl_context",
}
_HOW = (
    "Debian and Ubuntu: `apt install libegl1 libgl1-mesa-dri` for EGL, which also draws without "
    "a GPU, or `apt install libosmesa6` for OSMesa. MUJOCO_GL=egl or osmesa chooses one"
)


class RenderError(TorchCrlError, RuntimeError):
    """Nothing can be drawn here; the message says what is missing and where to get it."""


class Canvas(NamedTuple):
    """An OpenGL context, and MuJoCo's resources in it."""

    gl: Any
    """The OpenGL context, current in this thread."""
    mjr: mujoco.MjrContext
    """MuJoCo's resources in it: textures, meshes, the offscreen buffer."""
    backend: str
    """The API and its renderer, as text for people: `EGL, llvmpipe ...`."""


def make_canvas(model: mujoco.MjModel) -> Canvas:
    """An offscreen buffer of the size in `model.vis.global_`, with that model's textures.

    MuJoCo's default would be the context of a window, which needs a display. Raises RenderError if
    nothing can be drawn on this machine.
    """
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    if wanted not in _MODULES:
        raise RenderError(
            f"MUJOCO_GL={wanted} does not draw offscreen; set it to egl, osmesa or glfw, or not at "
            "all"
        )
    default = ["egl", "osmesa"] if sys.platform == "linux" else [""]
    failures = []
    load_triton_first()
    platform = os.environ.get("PYOPENGL_PLATFORM")
    size = (model.vis.global_.offwidth, model.vis.global_.offheight)
    for name in [wanted] if wanted else default:
        try:
            gl = importlib.import_module(_MODULES[name]).GLContext(*size)
            gl.make_current()
            mjr = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
            mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, mjr)
        # PyOpenGL reports a missing library by many kinds of errors, AttributeError among them.
        except Exception as error:
            failures.append(f"{name or 'MuJoCo'}: {type(error).__name__}: {error}")
            if platform is None:
                _forget_opengl()
        else:
            return Canvas(gl, mjr, _described(name))
    chosen = f"MUJOCO_GL={wanted} does not work" if wanted else "no OpenGL that draws offscreen"
    raise RenderError(f"{chosen} ({'; '.join(failures)}). {_HOW}")


def load_triton_first() -> None:
    """Load Triton before Mesa: each has its own LLVM, and a process crashes if Mesa's comes first.

    With MUJOCO_GL=osmesa it is too late here, because the import of MuJoCo has loaded Mesa's; the
    import of `torch_crl` then loads Triton first.
    """
    if os.environ.get("MUJOCO_GL", "").lower().strip() != "osmesa":
        with suppress(ImportError):
            importlib.import_module("triton")


def draw_without_display() -> None:
    """Let other code that draws with MuJoCo, such as Gymnasium's envs, draw without a display.

    By default it would use the context of a window. MUJOCO_GL still overrides this.
    """
    load_triton_first()
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("MUJOCO_GL", "egl")


def _described(name: str) -> str:
    """The API and its renderer: `EGL, llvmpipe ...`."""
    title = {"egl": "EGL", "osmesa": "OSMesa", "": "OpenGL"}.get(name, name)
    with suppress(Exception):
        opengl = importlib.import_module("OpenGL.GL")
        return f"{title}, {opengl.glGetString(opengl.GL_RENDERER).decode()}"
    return title


def _forget_opengl() -> None:
    """Unload PyOpenGL, which keeps the platform of its first import even if that failed."""
    os.environ.pop("PYOPENGL_PLATFORM", None)
    for module in list(sys.modules):
        if module.split(".")[0] == "OpenGL" or module.startswith(("mujoco.egl", "mujoco.osmesa")):
            del sys.modules[module]
