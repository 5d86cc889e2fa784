"""One picture that explains a task: a start and its possible goals. N draws, G goal."""

from pathlib import Path

import torch

from torch_crl.envs.task import Task
from torch_crl.rendering.renderer import Image, Renderer

_DRAWS = 512
# A task with more different goals than this has a region of goals; only samples are drawn.
_LISTED = 64
_SAMPLED = 16


def task_picture(task: Task, *, size: tuple[int, int] = (640, 480)) -> tuple[Image, str]:
    """Draw the task's start with all its goals, or with some if there are infinitely many.

    Returns the picture, uint8 [height, width, 3], and the name of what drew it. Raises RenderError.
    """
    start = task.sample_start(_DRAWS, torch.Generator().manual_seed(0))
    goal_NG = torch.unique(start.goal_NG, dim=0)
    if len(goal_NG) > _LISTED:
        goal_NG = start.goal_NG[:_SAMPLED]
    with Renderer(task, tile=size) as renderer:
        picture = renderer.draw(start.qpos_NQ[:1], [goal_NG], torch.zeros(1), overview=True)
        return picture, renderer.backend


def save_image(image: Image, path: Path) -> None:
    """Write a PNG or JPEG file, depending on the suffix of the path."""
    from PIL import Image as Pillow

    Pillow.fromarray(image).save(path, quality=70)
