"""Positions of links from joint angles, against MuJoCo's."""

import mujoco
import pytest
import torch
from torch import Generator, Tensor

from torch_crl.envs.registry import make_task
from torch_crl.envs.tasks.kinematics import centre_of_mass

# Skew axes away from the bodies' origins, two joints on one body, a joint whose reference is not 0,
# a turned body, and joints of other kinds that do not move the tip.
ARM = """
<mujoco>
  <worldbody>
    <body name="box" pos="0 3 0"><freejoint/><geom size="0.1"/></body>
    <body name="base" pos="0.1 0.2 0.3" euler="20 -40 70">
      <joint name="a" axis="1 2 -1" pos="0.3 0 0.1"/>
      <joint name="b" axis="0 1 0.5" pos="-0.2 0.1 0" ref="40"/>
      <geom size="0.1" pos="0.4 0 0"/>
      <body name="still" pos="0 0 0.5" euler="0 30 0">
        <geom size="0.1"/>
        <body name="tip" pos="0.3 -0.1 0.2">
          <joint name="c" axis="-1 0 3" pos="0 0.2 0"/>
          <geom size="0.1" pos="0.1 0.7 -0.3"/>
          <body name="drawer"><joint name="d" type="slide" axis="1 0 0"/><geom size="0.1"/></body>
        </body>
      </body>
    </body>
  </worldbody>
</mujoco>
"""


def of_mujoco(model: mujoco.MjModel, body: str, qpos_NQ: Tensor) -> Tensor:
    data = mujoco.MjData(model)
    rows = []
    for qpos in qpos_NQ:
        data.qpos[:] = qpos.numpy()
        mujoco.mj_kinematics(model, data)
        rows.append(torch.from_numpy(data.body(body).xipos.copy()))
    return torch.stack(rows)


@pytest.mark.parametrize("body", ["base", "still", "tip"])
def test_any_chain_of_hinges(body: str) -> None:
    model = mujoco.MjModel.from_xml_string(ARM)
    qpos_NQ = 3.0 * torch.randn(50, model.nq, dtype=torch.float64, generator=Generator())
    expected = of_mujoco(model, body, qpos_NQ)
    assert expected.std(0).min() > 0.1
    torch.testing.assert_close(centre_of_mass(model, body)(qpos_NQ), expected, atol=1e-14, rtol=0)


def test_the_wrist_of_the_pusher() -> None:
    model = make_task("pusher2").model
    qpos_NQ = 3.0 * torch.randn(50, model.nq, dtype=torch.float64, generator=Generator())
    centre = centre_of_mass(model, "r_wrist_flex_link")
    expected = of_mujoco(model, "r_wrist_flex_link", qpos_NQ)
    torch.testing.assert_close(centre(qpos_NQ), expected, atol=1e-14, rtol=0)
    # MuJoCo Warp keeps positions in float32: angles are rounded, and nothing after them.
    rounded_NQ = qpos_NQ.float()
    torch.testing.assert_close(centre(rounded_NQ), centre(rounded_NQ.double()), atol=0, rtol=0)


@pytest.mark.parametrize("body", ["box", "drawer"])
def test_other_joints_are_refused(body: str) -> None:
    model = mujoco.MjModel.from_xml_string(ARM)
    with pytest.raises(ValueError, match=f"'{body}' is moved by a joint that is not a hinge"):
        centre_of_mass(model, body)
