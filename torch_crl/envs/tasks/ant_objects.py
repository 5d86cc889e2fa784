"""Ant with an object: a quadruped moves a ball to a point, or a block out of its way. N envs.

Task: in `ant_ball`, `ant_ball_u_maze` and `ant_ball_big_maze` bring the ball to the goal, a point
(x, y); in `ant_push` bring the torso there. Control step 0.05 s (5 x 0.01 s).

State, 31 numbers: 0:29 are those of `ant`, 29:31 are x and y of the ball's or the block's centre.
The object's velocity is not part of it. Action as in `ant`. The goal is compared with state 29:31
in the ball's tasks, with state 0:2 in `ant_push`.

- `ant_ball`: the ant starts as in `ant`. The goal lies on the circle of 5 m around the origin;
  the ball lies on a circle of 1 m whose centre is a fifth of the way to the goal, where it does not
  touch the ant.
- `ant_ball_<maze>`: cells of 4 m; the ant starts in the centre of the cell `R`, the ball in the
  centre of one of the cells `B`; the goal is the centre of one of the cells `G`, which are never
  `B`. Ball and goal are drawn independently.
- `ant_push`: rooms of 8 m. The ant starts at (0, 0), the block of 7.2 m stands at (8, 8) in front
  of two pockets, and the goal lies in one of them, uniform in (16..18, 8..10) or (8..10, 16..18).
  The ant starts at a height of 0.75 m; the block starts 0.2 m above the floor, at rest, with
  uniform noise of +-0.1 m on each axis.

Success within 0.5 m, easy success within 2 m. An episode fails once the torso is below 0.2 m or
above 1 m.

The ball has a radius of 0.5 m and weighs 0.576 kg, with 1 kg of armature on each of its two
slides. It glides without friction or damping; walls, torso and feet touch it. The block weighs
0.2 g on three slides without armature; floor, walls, torso and feet touch it. In `ant_push` the
ant weighs 7.29 kg, contacts are stiffer, and the torso touches the floor too. `contacts="body"`
is as in `ant`.

Differences from the reference (scaling-crl and JaxGCRL), in addition to those of `ant`:

- The goal is compared with the ball. In scaling-crl's `ant_ball` and JaxGCRL's ball mazes that
  slice of the state is off by one: it holds an ankle's velocity and the ball's x.
- The ball lies on a true circle. In the reference its y offset uses the goal's angle, so that the
  ball lies at (cos a + cos b, 2 sin a), and may lie inside the ant.
- Ball and goal of a maze are drawn independently. In the reference both use the same random key.
- The mazes are called `ant_ball_u_maze` and `ant_ball_big_maze`. JaxGCRL lists `ant_ball_maze`,
  which cannot be built.
- The block starts at rest. In the reference it has a random velocity along x.
- Kept: the ball slides, never rolls and never leaves the floor; inner legs pass through walls
  here; the block weighs 0.2 g, falls at the start, and flies when a leg kicks it.
"""

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Capacity
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Task
from torch_crl.envs.tasks.ant import SCALE
from torch_crl.envs.tasks.ant_robot import Contacts, Places, ant_task, body_points, robot
from torch_crl.envs.tasks.layouts import BALL_LAYOUTS
from torch_crl.envs.tasks.models import add_slides, add_wall, add_walls
from torch_crl.envs.tasks.sampling import (
    Constant,
    angles,
    cell_centres,
    direction,
    first_of,
    one_of,
    uniform,
)

_WITH_BALL = Contacts(feet=(1, 1), torso=(0, 1))
_WITH_BLOCK = Contacts(feet=(1, 0), torso=(1, 0))
_BALL_RADIUS = 0.5
_BALL_GOAL_RADIUS = 5.0
_NUM_DRAWS = 16
_TORSO_RADIUS = 0.25
# Two centimetres more than a leg's radius, since only three points represent a leg.
_LEG_RADIUS = 0.1
_BLOCK_START = (8.0, 8.0, 2.0)
_PUSH_WALLS = (
    ("upper_left", (-4.0, 20.0), (8.0, 8.0)),
    ("upper", (8.0, 24.0), (4.0, 4.0)),
    ("upper_right", (20.0, 20.0), (8.0, 8.0)),
    ("left", (-8.0, 4.0), (4.0, 8.0)),
    ("right", (24.0, 8.0), (4.0, 4.0)),
    ("lower_right", (20.0, -4.0), (8.0, 8.0)),
    ("lower", (0.0, -8.0), (12.0, 4.0)),
)


def make_ball(spec: TaskSpec, *, contacts: str = "feet") -> Task:
    """Open floor: the ball lies on a circle of 1 m around a fifth of the way to the goal."""
    model_spec = robot(_WITH_BALL, contacts=contacts)
    _add_ball(model_spec, limit=10.3)

    def sample_places(num_envs: int, generator: Generator) -> Places:
        towards_N2 = direction(angles(num_envs, generator))
        return Places(torch.zeros_like(towards_N2), _BALL_GOAL_RADIUS * towards_N2)

    return ant_task(spec, model_spec.compile(), sample_places, sample_object=_ball_on_ring)


def _ball_on_ring(qpos_NQ: Tensor, goal_N2: Tensor, generator: Generator) -> Tensor:
    """A place on the circle, clear of the ant, [N, 2]: the first of several draws that is clear."""
    towards_N2 = goal_N2 / _BALL_GOAL_RADIUS
    offsets_ND2 = direction(angles(len(goal_N2) * _NUM_DRAWS, generator)).unflatten(
        0, (-1, _NUM_DRAWS)
    )
    # The last draw is replaced by the point straight ahead, 2 m from the origin, which is clear
    # of any start. It is taken if no other draw is clear, in about one of a hundred thousand cases.
    offsets_ND2[:, -1] = towards_N2
    ball_ND2 = towards_N2[:, None] + offsets_ND2
    body_NP3 = body_points(qpos_NQ)
    flat_NDP = (ball_ND2[:, :, None] - body_NP3[:, None, :, :2]).square().sum(-1)
    upright_NP = (_BALL_RADIUS - body_NP3[..., 2]).square()
    gap_NDP = (flat_NDP + upright_NP[:, None]).sqrt() - _BALL_RADIUS
    clear_ND = (gap_NDP[..., 0] > _TORSO_RADIUS) & (gap_NDP[..., 1:] > _LEG_RADIUS).all(-1)
    return first_of(ball_ND2, clear_ND)


def make_ball_maze(spec: TaskSpec, *, layout: str, contacts: str = "feet") -> Task:
    """Walls of the layout; the ball starts in the centre of one of its `B` cells."""
    grid = BALL_LAYOUTS[layout]
    model_spec = robot(_WITH_BALL, contacts=contacts)
    _add_ball(model_spec, limit=100.0)
    add_walls(model_spec, grid, scale=SCALE, height=2.0, contype=1)
    starts, goals, balls = (cell_centres(grid, kind, scale=SCALE) for kind in "RGB")

    def sample_places(num_envs: int, generator: Generator) -> Places:
        return Places(one_of(starts, num_envs, generator), one_of(goals, num_envs, generator))

    def sample_ball(qpos_NQ: Tensor, goal_N2: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
        return one_of(balls, len(goal_N2), generator)

    return ant_task(
        spec, model_spec.compile(), sample_places, sample_object=sample_ball, exact_start=True
    )


def make_push(spec: TaskSpec, *, contacts: str = "feet") -> Task:
    """A block bars the way into two pockets, one of which holds the goal."""
    model_spec = robot(_WITH_BLOCK, contacts=contacts)
    for name, centre, half in _PUSH_WALLS:
        add_wall(model_spec, name, centre=centre, half=half, height=4.0, contype=0)
    _add_block(model_spec)
    for geom in model_spec.geoms:
        geom.solimp[:3] = 0.995, 0.995, 0.01
        if geom.parent.name not in ("world", "block"):
            geom.density = 40.0
    pockets = Constant(torch.tensor([[16.0, 8.0], [8.0, 16.0]], dtype=torch.float64))
    block = Constant(torch.tensor(_BLOCK_START, dtype=torch.float64))

    def sample_places(num_envs: int, generator: Generator) -> Places:
        corner_N2 = one_of(pockets, num_envs, generator)
        goal_N2 = corner_N2 + uniform(0.0, 2.0, (num_envs, 2), generator)
        return Places(torch.zeros_like(goal_N2), goal_N2)

    def sample_block(qpos_NQ: Tensor, goal_N2: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
        return block.like(goal_N2) + uniform(-0.1, 0.1, (len(goal_N2), 3), generator)

    return ant_task(
        spec,
        model_spec.compile(),
        sample_places,
        sample_object=sample_block,
        height=0.75,
        # Ants thrown at the block had at most 54 constraints.
        capacity=Capacity(constraints=96),
    )


def _add_ball(spec: mujoco.MjSpec, *, limit: float) -> None:
    """A sphere on two slides: it neither rolls nor leaves the floor."""
    body = spec.worldbody.add_body(name="ball", pos=[0.0, 0.0, _BALL_RADIUS])
    # The density is that of the reference's two spheres, one inside the other.
    body.add_geom(
        name="ball",
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[_BALL_RADIUS, 0.0, 0.0],
        density=1.1,
        contype=1,
        conaffinity=1,
        margin=0.0,
        rgba=[0.9, 0.9, 0.9, 1.0],
    )
    add_slides(body, "xy", armature=1.0, damping=0.0, limit=limit)


def _add_block(spec: mujoco.MjSpec) -> None:
    body = spec.worldbody.add_body(name="block", pos=_BLOCK_START)
    body.add_geom(
        name="block",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        size=[3.6, 3.6, 1.8],
        mass=0.0002,
        contype=1,
        conaffinity=1,
        margin=0.0,
        rgba=[0.9, 0.2, 0.2, 1.0],
    )
    add_slides(body, "xyz", armature=0.0, damping=0.0)
