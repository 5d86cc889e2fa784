"""Pictures of single simulations for encoders: small, quickly drawn, without goals. N, Q positions.

They are what a camera sees that shows all of the task, mazes from above.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from torch_crl.envs.task import Task
from torch_crl.rendering.renderer import Image, Renderer

# Pictures that are drawn into one buffer, which is read once.
_COLUMNS, _ROWS = 8, 8


class Snapshots:
    """Takes pictures of `side` x `side` pixels of simulations of a task."""

    def __init__(self, task: Task, side: int) -> None:
        """Nothing is drawn, or asked of OpenGL, before the first picture."""
        self.task, self.side = task, side

    @cached_property
    def _renderer(self) -> Renderer:
        tile = (self.side, self.side)
        return Renderer(self.task, columns=_COLUMNS, rows=_ROWS, tile=tile, for_encoders=True)

    def __call__(self, qpos_NQ: Tensor) -> Image:
        """Pictures [N, side, side, 3], uint8, of simulations at these positions.

        Raises RenderError if nothing can be drawn on this machine.
        """
        pictures = [np.zeros((0, self.side, self.side, 3), np.uint8)]
        none_0G = torch.zeros(0, self.task.spec.goal_size)
        for some_MQ in qpos_NQ.detach().cpu().split(_COLUMNS * _ROWS):
            count = len(some_MQ)
            sheet = self._renderer.draw(
                some_MQ, [none_0G] * count, torch.zeros(count), overview=True
            )
            pictures.append(
                np.stack(
                    [
                        sheet[top : top + self.side, left : left + self.side]
                        for left, top in self._renderer.corners(count)
                    ]
                )
            )
        return np.concatenate(pictures)
