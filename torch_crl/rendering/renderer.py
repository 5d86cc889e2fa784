"""Pictures of simulations of a task, with their goals. N envs, G goal, Q positions, P points."""

import atexit
import math
import weakref
from contextlib import suppress
from typing import Any, TypeAlias

import mujoco
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_crl.envs.task import Task
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.rendering import camera, stage
from torch_crl.rendering.gl import Canvas, make_canvas

Image: TypeAlias = NDArray[np.uint8]

# On an open floor larger than this (metres), a camera that shows all of it shows robots too small.
_FOLLOW_BEYOND = 5.0
# Azimuth and elevation in degrees: MuJoCo's default, for mazes (the rows of the layout run
# downwards in the picture), and for an open floor.
_MUJOCO_DIRECTION = (90.0, -45.0)
_MAZE_DIRECTION = (180.0, -65.0)
# Where no wall hides what is behind it.
_FROM_ABOVE = (180.0, -90.0)
_FLOOR_DIRECTION = (90.0, -28.0)
_FOVY = 45.0
_MAX_GEOMS = 5000
_GAP = 4


class Renderer:
    """Draws N simulations of a task side by side. The task's model is only read.

    The camera sees everything where a task has walls or is small, and follows robot and goal on
    an open floor. A task can set its direction by `model.vis.global_.azimuth` and `.elevation`.
    `backend` names what draws. Close the renderer, or use it in a `with` statement.
    """

    def __init__(
        self,
        task: Task,
        *,
        columns: int = 1,
        rows: int = 1,
        tile: tuple[int, int],
        for_encoders: bool = False,
    ):
        """`tile` is the size of one simulation's picture, (width, height) in pixels.

        `for_encoders` leaves out shadows and smooth edges, which take most of the time on a CPU,
        and looks at mazes from above. Raises RenderError if nothing can be drawn on this machine.
        """
        self.task = task
        self.radius = task.spec.success_radius.get("success", 0.0)
        self._model = stage.painted(task.model)
        self._data = mujoco.MjData(self._model)
        self._grid, self._tile = (columns, rows), tile
        self.width, self.height = (
            count * (side + _GAP) - _GAP for count, side in zip(self._grid, tile, strict=True)
        )
        static, self._moving = camera.visible_geoms(self._model)
        # What encoders have learned to see must not change its size.
        self._overview = camera.sampled_points(
            task, self._model, self._data, radius=self.radius, moved=not for_encoders
        )
        low, high = self._overview.min(0), self._overview.max(0)
        span = high - low
        self._follows = float(span.max()) > _FOLLOW_BEYOND and len(static) == 0
        self._direction = direction_of(
            task.model, float(span.max()), follows=self._follows, for_encoders=for_encoders
        )
        self.radius = self.radius or 0.02 * float(span.max())
        # Many goals in one picture must not hide each other.
        self._small_radius = min(self.radius, 0.025 * float(span.max()))
        self._overview_camera = self._camera(self._overview)
        self._stage = stage.make_stage(
            self._model,
            floor=self._floor_height(),
            centre=(low + high) / 2,
            extent=float(np.linalg.norm(span)) / 2,
            size=(self.width, self.height),
            smooth=not for_encoders,
        )
        self._stage_data = mujoco.MjData(self._stage)
        mujoco.mj_forward(self._stage, self._stage_data)
        self._scene = mujoco.MjvScene(self._stage, _MAX_GEOMS)
        self._scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = not for_encoders
        self._options = mujoco.MjvOption()
        self._options.sitegroup[:] = 0
        canvas = make_canvas(self._stage)
        self.backend = canvas.backend
        self._canvas = canvas
        self.close = weakref.finalize(self, _free, canvas)
        # MuJoCo ends OpenGL in an atexit function, and functions registered later run first. That
        # of weakref may have been registered earlier, with the first finalizer of the process.
        self.close.atexit = False
        atexit.register(self.close)

    def __enter__(self) -> "Renderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def draw(
        self,
        qpos_NQ: Tensor,
        goals: list[Tensor],
        reached_N: Tensor,
        *,
        overview: bool = False,
    ) -> Image:
        """One tile for each simulation; uint8 [height, width, 3].

        Args:
            qpos_NQ: positions.
            goals: for each simulation its goals [goals, G], usually one; there may be none.
            reached_N: simulations whose goals are drawn as reached.
            overview: show all of an open floor instead of following the robot.
        """
        self._canvas.gl.make_current()
        picture = np.full((self.height, self.width, 3), 255, np.uint8)
        drawn = np.empty_like(picture)
        tiles = self.corners(len(goals))
        width, height = self._tile
        for (left, top), qpos_Q, goal_MG, reached in zip(
            tiles, qpos_NQ, goals, reached_N.tolist(), strict=True
        ):
            self._set_scene(qpos_Q, goal_MG, reached=bool(reached), overview=overview)
            # OpenGL counts rows from the bottom.
            tile = mujoco.MjrRect(left, self.height - top - height, width, height)
            mujoco.mjr_render(tile, self._scene, self._canvas.mjr)
        whole = mujoco.MjrRect(0, 0, self.width, self.height)
        mujoco.mjr_readPixels(drawn, None, whole, self._canvas.mjr)
        drawn = drawn[::-1]
        for left, top in tiles:
            part = np.s_[top : top + height, left : left + width]
            picture[part] = drawn[part]
        return picture

    def corners(self, count: int) -> list[tuple[int, int]]:
        """Left and top of the first tiles, in pixels."""
        sides = [side + _GAP for side in self._tile]
        places = [divmod(index, self._grid[0]) for index in range(count)]
        return [(column * sides[0], row * sides[1]) for row, column in places]

    def draw_envs(
        self,
        env: TaskVectorEnv,
        indices: list[int] | None = None,
        *,
        reached_N: Tensor | None = None,
    ) -> Image:
        """Draw these envs, or all, as they are now; goals are green while reached.

        If `reached_N` is given, it says instead which envs' goals are drawn as reached.
        """
        chosen = list(range(env.num_envs)) if indices is None else indices
        goal_NG = env.goal_NG[chosen]
        if reached_N is None:
            achieved_NG = self.task.achieved_goal(env.state_NS[chosen])
            reached_N = self.task.success(achieved_NG, goal_NG)["success"]
        return self.draw(
            env.simulator.data["qpos"][chosen],
            [goal_G[None] for goal_G in goal_NG],
            reached_N,
        )

    def _set_scene(self, qpos_Q: Tensor, goal_MG: Tensor, *, reached: bool, overview: bool) -> None:
        camera.pose(self._model, self._data, qpos_Q)
        points_P3 = camera.goal_points(self.task, goal_MG)
        view = self._overview_camera
        if self._follows and not overview:
            robot = camera.geom_corners(self._model, self._data, self._moving)
            goal = camera.sphere_corners(points_P3, 1.5 * self.radius)
            view = self._camera(np.concatenate([robot, goal]))
            # Shadows are drawn near the light's axis only, so the light follows the robot.
            light = robot.mean(0) + self._stage.stat.extent * stage.LIGHT
            self._stage_data.light_xpos[0] = light
        everything, unmoved = mujoco.mjtCatBit.mjCAT_ALL, mujoco.MjvPerturb()
        scene, options = self._scene, self._options
        mujoco.mjv_updateScene(
            self._stage, self._stage_data, options, unmoved, view, everything, scene
        )
        # As a decoration the floor casts no shadow; its shadow on itself would show specks.
        scene.geoms[0].category = mujoco.mjtCatBit.mjCAT_DECOR
        mujoco.mjv_addGeoms(self._model, self._data, options, unmoved, everything, scene)
        radius = self._small_radius if overview else self.radius
        add_spheres(scene, points_P3, radius, stage.REACHED if reached else stage.GOAL)

    def _camera(self, points: NDArray[np.float64]) -> Any:
        return camera.frame(
            points,
            azimuth=self._direction[0],
            elevation=self._direction[1],
            fovy=_FOVY,
            aspect=self._tile[0] / self._tile[1],
        )

    def _floor_height(self) -> float:
        """Height of the model's own floor; without one, of the lowest visible point."""
        model = self._model
        floors = [geom for geom in range(model.ngeom) if stage.is_floor(model, geom)]
        if floors:
            return float(min(self._data.geom_xpos[geom][2] for geom in floors))
        return float(self._overview[:, 2].min())


def direction_of(
    model: mujoco.MjModel, span: float, *, follows: bool, for_encoders: bool = False
) -> tuple[float, float]:
    """Azimuth and elevation of the camera, in degrees, where a task spans so many metres.

    Names of places, such as "the upper left corner", are as they look from there.
    """
    asked = (model.vis.global_.azimuth, model.vis.global_.elevation)
    if asked != _MUJOCO_DIRECTION or span <= _FOLLOW_BEYOND:
        return asked
    if follows:
        return _FLOOR_DIRECTION
    return _FROM_ABOVE if for_encoders else _MAZE_DIRECTION


def add_spheres(
    scene: Any, points_P3: NDArray[np.float64], radius: float, colour: tuple[float, ...]
) -> None:
    """Add translucent spheres to the scene, as many as it has room for."""
    for point in points_P3:
        if scene.ngeom == scene.maxgeom:
            return
        mujoco.mjv_initGeom(
            scene.geoms[scene.ngeom],
            mujoco.mjtGeom.mjGEOM_SPHERE,
            np.full(3, radius),
            point,
            np.eye(3).ravel(),
            np.array(colour, np.float32),
        )
        scene.ngeom += 1


def _free(canvas: Canvas) -> None:
    # OpenGL reports by many kinds of errors that a thread which has ended still has the context.
    with suppress(Exception):
        # MuJoCo deletes OpenGL's objects by their numbers, in whatever context is current.
        canvas.gl.make_current()
        canvas.mjr.free()
    canvas.gl.free()


def grid_of(num_envs: int) -> tuple[int, int]:
    """Columns and rows of a grid for the envs, as square as possible."""
    columns = math.ceil(math.sqrt(num_envs))
    return columns, math.ceil(num_envs / columns)
