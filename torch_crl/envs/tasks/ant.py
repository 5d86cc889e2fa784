"""Ant: a quadruped walks to a point, on open floor and in mazes. N envs.

Task: bring the torso to the goal, a point (x, y). Control step 0.05 s (5 x 0.01 s).

- `ant` starts at the origin; the goal lies on the circle of 10 m around it.
- `ant_random_start` has the goals of `ant`, and starts anywhere on the circle of 10 m around the
  goal.
- `ant_<maze>` starts in the cell `R` of a layout (see `layouts`); the goal is the centre of one
  of its cells `G`. Cells are 4 m wide, walls 2 m high. `_eval` mazes have fewer, farther goals.
- `ant_<u|u2|u3|u4|u5>_maze_gen_1f2f` starts in the centre of a cell of the maze's corridor; the
  goal is one or two cells further on, with equal chance. Any numbers of cells that fit into the
  corridor can be given, as in `ant_u4_maze_gen_2f5f`, also in names that are not listed.

State, 29 numbers:

- 0:3 position of the torso, 3:7 its quaternion (w, x, y, z)
- 7:15 joint angles: hip and ankle of legs 1 to 4
- 15:18 velocity of the torso in the world, 18:21 its angular velocity in its own frame
- 21:29 joint velocities, in the order of the angles

Action, 8 motors of 150 N m: hip 4, ankle 4, hip 1, ankle 1, hip 2, ankle 2, hip 3, ankle 3. The
goal is compared with state 0:2.

Start: the standing pose at a height of 0.55 m with uniform noise of +-0.1 on every coordinate, and
velocities N(0, 0.1). `ant_random_start` and the `gen` mazes have no noise on x and y.

Success within 0.5 m, easy success within 2 m. An episode fails once the torso is below 0.2 m or
above 1 m.

Contacts: four feet touch the floor and nothing else does. In mazes torso, inner legs and feet
touch walls, and feet touch torso, inner legs and each other. The argument `contacts="body"` of the
functions in `torch_crl.envs.tasks.ant` selects Gymnasium's contacts instead: the whole body touches
floor, walls and objects, but not itself. A task of your own can use it like this:

    def make() -> Task:
        spec = dataclasses.replace(task_spec("ant_u_maze"), name="my_tasks:make")
        return ant.make_maze(spec, layout="u_maze", contacts="body")

Differences from the reference (scaling-crl and JaxGCRL):

- The dynamics are MuJoCo's, with true masses (0.911 kg in all), damping and armature. The reference
  has springs between links of 1 kg, without damping and armature.
- The goal is not part of the model. In the reference it is a body of 1 kg on slides, which is cut
  out of the state.
- The start's quaternion has unit length. In the reference the first state shows it as it was drawn.
- Start and goal are drawn for every episode. In the reference they are drawn once for a whole run.
- There is no reward. scaling-crl's `ant` rewards speed along x, whatever the goal.
- There are no options for contact forces. In the reference these options raise an error, and the
  cost of contacts is always 0.
- `ant_big_maze_eval` has the nine goals of scaling-crl; JaxGCRL has ten. Mazes have scaling-crl's
  noise on the start's x and y; JaxGCRL has none.
- Kept: middle legs and shins pass through walls, the torso passes through the floor (the episode
  has failed by then), and a jump above 1 m counts as a failure.
"""

import torch
from torch import Generator, Tensor

from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Task
from torch_crl.envs.tasks.ant_robot import Contacts, Places, ant_task, robot
from torch_crl.envs.tasks.layouts import LAYOUTS, corridor
from torch_crl.envs.tasks.models import add_walls
from torch_crl.envs.tasks.sampling import Constant, cell_centres, on_circle, one_of, uniform

SCALE = 4.0
"""Width of a maze's cells in metres."""
_GOAL_RADIUS = 10.0
_ON_OPEN_FLOOR = Contacts(feet=(1, 0))
_IN_MAZE = Contacts(feet=(1, 1), torso=(0, 1), inner_legs=(0, 1))


def make(spec: TaskSpec, *, contacts: str = "feet") -> Task:
    """Open floor; the goal lies on a circle around the origin, where the ant starts."""

    def sample_places(num_envs: int, generator: Generator) -> Places:
        goal_N2 = _around_origin(num_envs, generator)
        return Places(torch.zeros_like(goal_N2), goal_N2)

    return ant_task(spec, robot(_ON_OPEN_FLOOR, contacts=contacts).compile(), sample_places)


def make_random_start(spec: TaskSpec, *, contacts: str = "feet") -> Task:
    """Open floor; the ant starts on a circle around the goal."""

    def sample_places(num_envs: int, generator: Generator) -> Places:
        goal_N2 = _around_origin(num_envs, generator)
        return Places(goal_N2 + _around_origin(num_envs, generator), goal_N2)

    model = robot(_ON_OPEN_FLOOR, contacts=contacts).compile()
    return ant_task(spec, model, sample_places, exact_start=True)


def make_maze(spec: TaskSpec, *, layout: str, contacts: str = "feet") -> Task:
    """Walls of the layout; the goal is the centre of a goal cell."""
    grid = LAYOUTS[layout]
    model_spec = robot(_IN_MAZE, contacts=contacts)
    add_walls(model_spec, grid, scale=SCALE, height=2.0, contype=1)
    starts, goals = (cell_centres(grid, kind, scale=SCALE) for kind in "RG")

    def sample_places(num_envs: int, generator: Generator) -> Places:
        return Places(one_of(starts, num_envs, generator), one_of(goals, num_envs, generator))

    return ant_task(spec, model_spec.compile(), sample_places)


def make_generalization(
    spec: TaskSpec, *, layout: str, cells_ahead: tuple[int, ...], contacts: str = "feet"
) -> Task:
    """Start anywhere in the layout's corridor, the goal one of `cells_ahead` cells further on."""
    grid = LAYOUTS[layout]
    model_spec = robot(_IN_MAZE, contacts=contacts)
    add_walls(model_spec, grid, scale=SCALE, height=2.0, contype=1)
    path = Constant(SCALE * torch.tensor(corridor(grid), dtype=torch.float64))
    choices = Constant(torch.tensor(cells_ahead))

    def sample_places(num_envs: int, generator: Generator) -> Places:
        ahead_N = one_of(choices, num_envs, generator)
        share_N = uniform(0.0, 1.0, (num_envs,), generator)
        cell_N = (share_N * (len(path) - ahead_N)).long()
        centres = path.on(cell_N.device)
        return Places(centres[cell_N], centres[cell_N + ahead_N])

    return ant_task(spec, model_spec.compile(), sample_places, exact_start=True)


def _around_origin(num_envs: int, generator: Generator) -> Tensor:
    radius_N = torch.full((num_envs,), _GOAL_RADIUS, dtype=torch.float64)
    return on_circle(radius_N, generator)
