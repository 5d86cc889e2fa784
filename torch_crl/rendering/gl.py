"""Which OpenGL draws offscreen: what MUJOCO_GL names, else EGL, else OSMesa."""

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
    """What draws."""

    gl: Any
    """The OpenGL context, current in this thread."""
    mjr: mujoco.MjrContext
    """MuJoCo's resources in it: textures, meshes, the offscreen buffer."""
    backend: str
    """The API and who draws, for people: `EGL, llvmpipe ...`."""


def make_canvas(model: mujoco.MjModel) -> Canvas:
    """An offscreen buffer of the size in `model.vis.global_`, with that model's textures.

    MuJoCo's own choice would be a window's context, which needs a display. Raises RenderError.
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
        # PyOpenGL has many ways to say that a library is missing, AttributeError among them.
        except Exception as error:
            failures.append(f"{name or 'MuJoCo'}: {type(error).__name__}: {error}")
            if platform is None:
                _forget_opengl()
        else:
            return Canvas(gl, mjr, _described(name))
    chosen = f"MUJOCO_GL={wanted} does not work" if wanted else "no OpenGL that draws offscreen"
    raise RenderError(f"{chosen} ({'; '.join(failures)}). {_HOW}")


def load_triton_first() -> None:
    """Mesa brings one LLVM and Triton another; a process survives only if Triton's comes first.

    With MUJOCO_GL=osmesa it is too late here, MuJoCo's import has loaded Mesa's; `torch_crl`
    loads Triton first then.
    """
    if os.environ.get("MUJOCO_GL", "").lower().strip() != "osmesa":
        with suppress(ImportError):
            importlib.import_module("triton")


def draw_without_display() -> None:
    """Let others that draw with MuJoCo, such as Gymnasium's envs, do so where no display is.

    Their own choice would be a window's context; MUJOCO_GL still says otherwise.
    """
    load_triton_first()
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("MUJOCO_GL", "egl")


def _described(name: str) -> str:
    """`EGL (llvmpipe ...)`: the API and who draws."""
    title = {"egl": "EGL", "osmesa": "OSMesa", "": "OpenGL"}.get(name, name)
    with suppress(Exception):
        opengl = importlib.import_module("OpenGL.GL")
        return f"{title}, {opengl.glGetString(opengl.GL_RENDERER).decode()}"
    return title


def _forget_opengl() -> None:
    """PyOpenGL keeps to the platform of its first import, whether that worked or not."""
    os.environ.pop("PYOPENGL_PLATFORM", None)
    for module in list(sys.modules):
        if module.split(".")[0] == "OpenGL" or module.startswith(("mujoco.egl", "mujoco.osmesa")):
            del sys.modules[module]
