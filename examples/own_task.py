"""A task of your own: a puck slides on a table to a random place. Train on it with

    torch-crl train own_task:make        (in this folder)

or run this file. The function `make` is all that torch_crl needs.
"""

import os

import mujoco
import torch

from torch_crl import Start, Task, TaskSpec, preset, train, with_changes

PUCK = """
<mujoco>
  <option timestep="0.02" integrator="implicitfast"/>
  <worldbody>
    <body name="puck">
      <joint name="x" type="slide" axis="1 0 0" damping="2"/>
      <joint name="y" type="slide" axis="0 1 0" damping="2"/>
      <geom type="cylinder" size="0.1 0.02" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x" gear="4"/><motor joint="y" gear="4"/></actuator>
</mujoco>
"""


def make() -> Task:
    spec = TaskSpec(
        name="own_task:make",
        state_size=4,  # position and velocity of the puck
        goal_slice=(0, 2),  # a goal asks for a position
        action_size=2,
        success_radius={"success": 0.2},
        episode_length=100,
    )
    return Task(
        spec=spec,
        model=mujoco.MjModel.from_xml_string(PUCK),
        substeps=5,
        sample_start=sample_start,
        state=lambda sim: torch.cat([sim.data["qpos"], sim.data["qvel"]], dim=-1).float(),
    )


def sample_start(num_envs: int, generator: torch.Generator) -> Start:
    goal = 2.0 * torch.rand(num_envs, 2, generator=generator) - 1.0
    at_rest = torch.zeros(num_envs, 2, dtype=torch.float64)
    return Start(qpos_NQ=at_rest, qvel_NV=at_rest, goal_NG=goal)


if __name__ == "__main__":
    # The preset of a task of one's own is small; `os.environ` lets the tests make it smaller.
    steps = int(os.environ.get("TORCH_CRL_EXAMPLE_STEPS", "40000"))
    recipe = with_changes(preset("own_task:make"), budget={"env_steps": steps, "evaluations": 5})
    print(train(recipe, "runs/own_task", overwrite=True).evaluation)
