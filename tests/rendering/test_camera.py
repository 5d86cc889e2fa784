"""Geometry of pictures against the definition of MuJoCo's camera; OpenGL beside other libraries."""

import math
import os
import subprocess
import sys
from dataclasses import replace

import mujoco
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.helpers.drawing import draws
from tests.helpers.tasks import make_env
from torch_crl.envs.registry import make_task
from torch_crl.envs.task import Task
from torch_crl.rendering import camera
from torch_crl.rendering.renderer import Renderer
from torch_crl.rendering.snapshots import Snapshots
from torch_crl.rendering.viewer import _aim, _coloured

TILE = (160, 120)


def reddish(image: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a goal is drawn that has not been reached; sand and amber are not."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return (red - green > 60) & (np.abs(green - blue) < 40)


def projected(view: mujoco.MjvCamera, point: list[float], tile: tuple[int, int]) -> list[float]:
    """Column and row of a point, from the definition of MuJoCo's free camera."""
    a, e = math.radians(view.azimuth), math.radians(view.elevation)
    forward = np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    right = np.array([math.sin(a), -math.cos(a), 0.0])
    up = np.cross(right, forward)
    offset = np.array(point) - (view.lookat - view.distance * forward)
    focal = tile[1] / 2 / math.tan(math.radians(45.0 / 2))
    depth = offset @ forward
    return [
        tile[0] / 2 + focal * (offset @ right) / depth,
        tile[1] / 2 - focal * (offset @ up) / depth,
    ]


@draws
@pytest.mark.parametrize("goal", [[0.1, 0.15, 0.1], [-0.15, -0.1, 0.1], [0.0, 0.2, 0.06]])
def test_the_goal_is_drawn_where_it_is(goal: list[float]) -> None:
    task, tile = make_task("reacher"), (320, 240)
    with Renderer(task, tile=tile) as renderer:
        image = renderer.draw(torch.zeros(1, 2), [torch.tensor([goal])], torch.tensor([False]))
        rows, columns = np.nonzero(reddish(image))
        column, row = projected(renderer._overview_camera, goal, tile)
    assert abs(columns.mean() - column) < 3.0
    assert abs(rows.mean() - row) < 3.0
    # Its size is that of the success radius, 0.05 m.
    focal = tile[1] / 2 / math.tan(math.radians(45.0 / 2))
    radius = 0.05 * focal / renderer._overview_camera.distance
    assert np.ptp(columns) / 2 == pytest.approx(radius, rel=0.2)


@draws
def test_a_goal_is_drawn_by_success_whatever_other_levels_a_task_names_first() -> None:
    task = make_task("own_task:make")
    levels = {"success_easy": 1.5, "success": 0.2}
    task = replace(task, spec=replace(task.spec, success_radius=levels))
    env = make_env(task, num_envs=1)
    env.goal_NG.copy_(torch.tensor([[1.0, 0.0]]))
    with Renderer(task, tile=TILE) as renderer:
        assert renderer.radius == 0.2
        assert reddish(renderer.draw_envs(env)).any()


@pytest.mark.parametrize("seed", range(5))
def test_the_camera_sees_all_points_and_no_more_than_needed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(20, 3)) * rng.uniform(0.1, 10.0, size=3) + rng.normal(size=3)
    view = camera.frame(
        points,
        azimuth=rng.uniform(0, 360),
        elevation=rng.uniform(-80, -10),
        fovy=45.0,
        aspect=4 / 3,
    )
    seen = np.array([projected(view, list(point), (400, 300)) for point in points])
    share = np.abs(seen - [200, 150]) / [200, 150]
    assert 0.8 < share.max() <= 0.9


MESH = """
<mujoco>
  <asset>
    <mesh name="wedge" vertex="0 0 0  0.3 0 0  0 0.1 0  0.2 0 0.8  0.6 0.1 0.1"/>
  </asset>
  <worldbody>
    <body pos="0.5 0.2 0">
      <joint name="x" type="slide" axis="1 0 0"/>
      <geom type="mesh" mesh="wedge"/>
    </body>
  </worldbody>
  <actuator><motor joint="x"/></actuator>
</mujoco>
"""


@draws
def test_meshes_are_drawn_in_place() -> None:
    puck = make_task("own_task:make")
    task: Task = replace(
        puck,
        model=mujoco.MjModel.from_xml_string(MESH),
        sample_start=lambda num_envs, generator: puck.sample_start(num_envs, generator)._replace(
            qpos_NQ=torch.zeros(num_envs, 1, dtype=torch.float64)
        ),
    )
    with Renderer(task, tile=TILE) as renderer:
        far = torch.tensor([[-0.9, -0.9]])
        image = renderer.draw(torch.zeros(1, 1), [far], torch.tensor([False])).astype(int)
        rows, columns = np.nonzero(image[..., 2] - image[..., 0] > 40)
        corners = [[0.5, 0.2, 0.0], [0.8, 0.2, 0.0], [0.5, 0.3, 0.0], [0.7, 0.2, 0.8]]
        corners.append([1.1, 0.3, 0.1])
        seen = np.array([projected(renderer._overview_camera, point, TILE) for point in corners])
    for found, expected in ((columns, seen[:, 0]), (rows, seen[:, 1])):
        assert abs(found.min() - expected.min()) < 3
        assert abs(found.max() - expected.max()) < 3


@draws
def test_triton_and_mesa_live_in_one_process() -> None:
    program = (
        "from torch_crl.envs.registry import make_task\n"
        "from torch_crl.rendering.pictures import task_picture\n"
        "task_picture(make_task('reacher'))\n"
        "import triton, tensordict\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="a display server of Linux")
def test_a_display_that_cannot_be_opened_is_an_error_and_no_wait() -> None:
    program = (
        "import torch\n"
        "from torch_crl.envs.make import make_vector_env\n"
        "from torch_crl.rendering.gl import RenderError\n"
        "from torch_crl.rendering.viewer import watch\n"
        "env = make_vector_env('reacher', num_envs=1, episode_length=9, seed=0)\n"
        "try:\n    watch(lambda state, goal: torch.zeros(1, 2), env)\n"
        "except RenderError as error:\n    print(error)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"DISPLAY": ":9999"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert "no window can be opened on this display" in result.stdout
    assert "eval RUN --video" in result.stdout


@draws
def test_no_wall_hides_a_robot_from_an_encoder() -> None:
    task = make_task("point_u_maze")
    assert task.places is not None
    # Cells are 4 m wide, and the sphere's radius is 0.25 m.
    to_walls = 1.74 * torch.tensor([[0.0, 0.0], [1, 1], [1, -1], [-1, 1], [-1, -1]])
    positions = (task.places.point_PG[:, None] + to_walls).flatten(0, 1)
    pictures = Snapshots(task, 256)(positions).astype(int)
    blue = (pictures[..., 2] - pictures[..., 0] > 30).sum((1, 2)).reshape(-1, len(to_walls))
    assert (blue >= 0.5 * blue[:, :1]).all() and (blue[:, 0] > 8).all(), blue


@draws
def test_an_arm_that_reaches_further_up_is_still_in_the_picture() -> None:
    task = make_task("arm_reach")
    with Renderer(task, tile=TILE) as films, Renderer(task, tile=TILE, for_encoders=True) as seen:
        start = task.sample_start(1, torch.Generator().manual_seed(0)).qpos_NQ[0]
        # The second joint lifts the shoulder; policies lift it by some tenths of a radian.
        start[task.model.joint("joint2").qposadr] -= 0.3
        camera.pose(films._model, films._data, start)
        corners = camera.geom_corners(films._model, films._data, films._moving)
        rows = [
            [projected(view, corner, TILE)[1] for corner in corners.tolist()]
            for view in (films._overview_camera, seen._overview_camera)
        ]
    assert min(rows[0]) >= 0.0
    # What encoders see has remained as it was when they learned it.
    assert min(rows[1]) < 0.0


@draws
@pytest.mark.parametrize(
    "name", ["reacher", "point_u_maze", "ant_u_maze", "ant", "humanoid", "pusher_easy"]
)
def test_the_viewer_looks_from_where_films_do(name: str) -> None:
    task, view = make_task(name), mujoco.MjvCamera()
    with Renderer(task, tile=(16, 12)) as renderer:
        _aim(view, task, _coloured(task.model), renderer.radius)
        assert (view.azimuth, view.elevation) == renderer._direction
        if view.type == mujoco.mjtCamera.mjCAMERA_FREE:
            of_films = renderer._overview_camera
            assert view.distance == pytest.approx(of_films.distance)
            np.testing.assert_allclose(view.lookat, of_films.lookat)
