"""Whether this machine can draw offscreen, and a mark for the tests that need it."""

import pytest

from torch_crl.envs.registry import make_task
from torch_crl.rendering.gl import RenderError
from torch_crl.rendering.renderer import Renderer


def missing_gl() -> str:
    """Why nothing can be drawn here; empty if it can."""
    try:
        Renderer(make_task("reacher"), tile=(16, 16)).close()
    except RenderError as error:
        return str(error)
    return ""


MISSING_GL = missing_gl()
draws = pytest.mark.skipif(bool(MISSING_GL), reason=MISSING_GL or "there is OpenGL")
