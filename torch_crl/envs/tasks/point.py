"""Point: a force-driven sphere goes to a point in a maze. N envs.

Task: in `point_<maze>` bring the sphere to the goal, the centre of one of the cells `G` of a layout
(see `layouts`). Cells are 4 m wide, walls 2 m high. Control step 0.05 s (5 x 0.01 s).
`big_maze_eval` has ten goals.
`point_three_mazes` has three small mazes side by side with walls between them: that of `u_maze`,
its mirror image and one with the shape of an H. Start and goal are two cells of one of them.

State, 4 numbers: 0:2 position (x, y), 2:4 velocity. Action: the force along x and y, 5 N at full
action. The goal is compared with state 0:2.

Start: the centre of the cell `R`, with a velocity of N(0, 0.1); in `point_three_mazes` the centre
of any cell of a maze that is drawn.

Success within 0.5 m, easy success within 2 m. Episodes end at the time limit only.

The sphere has a radius of 0.25 m and weighs 0.327 kg, with 1 kg of armature on each of two slides
without damping, at a height of 0.75 m. It touches walls but not the floor.

Differences from the reference (JaxGCRL's `simple_u_maze`, `simple_big_maze` and
`simple_hardest_maze`):

- The dynamics are MuJoCo's, with the true mass. In the reference every link weighs 1 kg.
- The control step is 0.05 s, as in JaxGCRL; the class in scaling-crl has 0.1 s.
- The goal is not part of the model. In the reference it is a body of 1 kg on slides.
- Start and goal are drawn for every episode. In the reference they are drawn once for a whole run.
- There is no reward, and no failure by height, since the height cannot change.
- Every layout has a point task. The reference has the three above, and no `point_three_mazes`.
"""

import itertools
from collections.abc import Callable

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.places import Places, named_places
from torch_crl.envs.simulators import Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task
from torch_crl.envs.tasks import place_names
from torch_crl.envs.tasks.layouts import LAYOUTS, THREE_MAZES, cells, first_columns, side_by_side
from torch_crl.envs.tasks.models import add_walls, set_physics
from torch_crl.envs.tasks.sampling import Constant, cell_centres, normal, one_of

_SCALE = 4.0
_HEIGHT = 0.75
_PLACE_RADIUS = 1.0


def make_maze(spec: TaskSpec, *, layout: str) -> Task:
    """A sphere of radius 0.25 m on two slides, 5 N at full action, control step 0.05 s."""
    grid = LAYOUTS[layout]
    starts, goals = (cell_centres(grid, kind, scale=_SCALE) for kind in "RG")

    def sample_start(num_envs: int, generator: Generator) -> Start:
        """The centre of a start cell, almost at rest; the goal is the centre of a goal cell."""
        return Start(
            qpos_NQ=one_of(starts, num_envs, generator),
            qvel_NV=normal(0.1, (num_envs, 2), generator),
            goal_NG=one_of(goals, num_envs, generator).float(),
        )

    names = place_names.of_cells(grid, scale=_SCALE)
    return _task(spec, grid, sample_start, named_places(names, radius=_PLACE_RADIUS))


def make_three_mazes(spec: TaskSpec) -> Task:
    """Three mazes side by side; an episode stays in the one where it starts."""
    names = place_names.of_mazes(THREE_MAZES, scale=_SCALE)
    pairs = Constant(torch.tensor(_ways(), dtype=torch.float64))

    def sample_start(num_envs: int, generator: Generator) -> Start:
        """Two cells of a maze: the start, almost at rest, and the goal."""
        way_N4 = one_of(pairs, num_envs, generator)
        return Start(
            qpos_NQ=way_N4[:, :2],
            qvel_NV=normal(0.1, (num_envs, 2), generator),
            goal_NG=way_N4[:, 2:].float(),
        )

    places = named_places(names, radius=_PLACE_RADIUS)
    return _task(spec, side_by_side(THREE_MAZES), sample_start, places)


def _ways() -> list[tuple[float, ...]]:
    """The centres of any two cells of the same maze, in `point_three_mazes`."""
    ways: list[tuple[float, ...]] = []
    for layout, column in zip(THREE_MAZES, first_columns(THREE_MAZES), strict=True):
        centres = [(_SCALE * i, _SCALE * (j + column)) for i, j in cells(layout, ".")]
        ways += [(*start, *goal) for start, goal in itertools.permutations(centres, 2)]
    return ways


def _task(
    spec: TaskSpec,
    grid: tuple[str, ...],
    sample_start: Callable[[int, Generator], Start],
    places: Places,
) -> Task:
    """A point in a maze of these cells."""
    model_spec = mujoco.MjSpec()
    set_physics(model_spec, timestep=0.01)
    add_walls(model_spec, grid, scale=_SCALE, height=2.0, contype=1)
    _add_floor(model_spec, grid)
    _add_point(model_spec)
    return Task(
        spec=spec,
        model=model_spec.compile(),
        substeps=5,
        sample_start=sample_start,
        state=_state,
        places=places,
    )


def _state(simulator: Simulator) -> Tensor:
    """0:2 position, 2:4 velocity."""
    return torch.cat([simulator.data["qpos"], simulator.data["qvel"]], dim=-1).float()


def _add_floor(spec: mujoco.MjSpec, grid: tuple[str, ...]) -> None:
    rows, columns = len(grid), len(grid[0])
    spec.worldbody.add_geom(
        name="floor",
        type=mujoco.mjtGeom.mjGEOM_PLANE,
        pos=[_SCALE * (rows - 1) / 2, _SCALE * (columns - 1) / 2, 0.0],
        size=[_SCALE * rows / 2, _SCALE * columns / 2, 1.0],
        contype=0,
        conaffinity=0,
        rgba=[0.9, 0.9, 0.9, 1.0],
    )


def _add_point(spec: mujoco.MjSpec) -> None:
    body = spec.worldbody.add_body(name="point", pos=[0.0, 0.0, _HEIGHT])
    body.add_geom(
        name="point",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[0.25, 0.0, 0.0],
        density=5.0,
        friction=[1.0, 0.5, 0.5],
        condim=3,
        contype=1,
        conaffinity=0,
        rgba=[0.2, 0.4, 0.8, 1.0],
    )
    for name, axis in (("x", [1.0, 0.0, 0.0]), ("y", [0.0, 1.0, 0.0])):
        body.add_joint(
            name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis, damping=0.0, armature=1.0
        )
        motor = spec.add_actuator(name=name, target=name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
        motor.gear[0] = 5.0
