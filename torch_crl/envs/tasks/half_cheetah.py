"""Half-cheetah: a planar runner goes to a line.

Task: bring the torso to x = 5 m, in every episode. Control step 0.05 s (5 x 0.01 s).

State, 18 numbers:

- 0:3 x, height (relative to the model's zero pose) and pitch of the torso
- 3:9 joint angles: back thigh, shin, foot, front thigh, shin, foot
- 9:18 velocities, in the same order

Action, 6 motors in the order of the joints, gears 120, 90, 60, 120, 60, 30. The goal, one number,
is compared with state 0:1.

Start: the zero pose with uniform noise of +-0.1 on every coordinate, and velocities N(0, 0.1).

Success within 0.5 m, easy success within 2 m. Episodes end at the time limit only.

Contacts: head, thighs and feet touch the floor; torso and shins do not, and no part touches
another.

Differences from the reference (JaxGCRL's `cheetah`; scaling-crl has the class but no name for it):

- The robot weighs 14 kg, as Gymnasium's does. In the reference the 14 kg include the goal, a body
  of 1 kg before scaling, so that 13.37 kg are left for the robot.
- The goal is not part of the model.
- The start is drawn for every episode. In the reference it is drawn once for a whole run.
- There is no reward. In the reference the control cost has the wrong sign.
- Kept: the goal never varies, so there is only one goal to learn.
"""

import mujoco
import torch
from torch import Generator, Tensor

from torch_crl.envs.simulators import Simulator
from torch_crl.envs.spec import TaskSpec
from torch_crl.envs.task import Start, Task
from torch_crl.envs.tasks.models import gymnasium_model, set_physics
from torch_crl.envs.tasks.sampling import normal, uniform

_GOAL = 5.0
_MASS = 14.0
_NUM_JOINTS = 9
_TOUCHING = ("head", "bthigh", "bfoot", "fthigh", "ffoot")


def make(spec: TaskSpec) -> Task:
    """Gymnasium's half-cheetah, whose torso and shins touch nothing."""
    model_spec = gymnasium_model("half_cheetah.xml")
    set_physics(model_spec, timestep=0.01, iterations=4, ls_iterations=50)
    for geom in model_spec.geoms:
        geom.contype = int(geom.name in _TOUCHING)
    # `mj_setTotalmass` below replaces the file's own attribute, which MuJoCo has deprecated.
    model_spec.compiler.settotalmass = -1.0
    model = model_spec.compile()
    mujoco.mj_setTotalmass(model, _MASS)
    mujoco.mj_setConst(model, mujoco.MjData(model))
    return Task(
        spec=spec,
        model=model,
        substeps=5,
        sample_start=_sample_start,
        state=_state,
    )


def _sample_start(num_envs: int, generator: Generator) -> Start:
    """The zero pose with noise; the goal is always the same."""
    return Start(
        qpos_NQ=uniform(-0.1, 0.1, (num_envs, _NUM_JOINTS), generator),
        qvel_NV=normal(0.1, (num_envs, _NUM_JOINTS), generator),
        goal_NG=torch.full((num_envs, 1), _GOAL),
    )


def _state(simulator: Simulator) -> Tensor:
    """0:9 positions, 9:18 velocities."""
    return torch.cat([simulator.data["qpos"], simulator.data["qvel"]], dim=-1).float()
