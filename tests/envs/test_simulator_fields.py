"""Derived MuJoCo fields are what `mj_forward` makes of the present state, or refused by name."""

import copy

import mujoco
import numpy as np
import pytest
import torch

from torch_crl.envs.registry import make_task
from torch_crl.envs.simulators import Simulator, SimulatorError, make_simulator
from torch_crl.envs.simulators.fields import stage_for

XML = """
<mujoco>
  <option timestep="0.005" density="1.2" viscosity="0.1">{flags}</option>
  <worldbody>
    <light pos="0 0 3"/>
    <geom type="plane" size="5 5 .1"/>
    <body name="puck" pos="0 0 .12">
      <freejoint/>
      <geom size=".1" mass="1"/>
      <site name="imu" pos=".05 0 0"/>
      <camera pos="0 .3 0"/>
      <body name="arm" pos=".1 0 .1" gravcomp=".5">
        <joint name="hinge" axis="0 1 0" damping=".3" stiffness="2"/>
        <geom type="capsule" fromto="0 0 0 .3 0 .1" size=".03"/>
        <site name="tip" pos=".3 0 .1"/>
      </body>
    </body>
    <body pos="1 0 1">
      <joint name="slide" type="slide" axis="1 0 0" damping="1"/>
      <geom size=".1"/>
      <site name="other"/>
    </body>
  </worldbody>
  <tendon><spatial stiffness="3"><site site="tip"/><site site="other"/></spatial></tendon>
  <actuator>
    <general joint="hinge" dyntype="filter" dynprm=".1" gainprm="2"/>
    <motor joint="slide" gear="4"/>
  </actuator>
  <sensor>{sensors}</sensor>
</mujoco>
"""
FRAME = '<framepos objtype="site" objname="tip"/>'
SENSORS = f'{FRAME}<accelerometer site="imu"/><subtreelinvel body="puck"/>'
ENERGY = '<flag energy="enable"/>'

# By the stage of MuJoCo's `mj_forward` that computes them: position, velocity, acceleration.
FIELDS = {
    1: (
        "xpos xquat xmat xipos ximat xanchor geom_xpos geom_xmat site_xpos site_xmat cam_xpos "
        "cam_xmat light_xpos light_xdir subtree_com cdof cinert crb ten_length actuator_length"
    ),
    2: (
        "cvel cdof_dot qfrc_bias qfrc_spring qfrc_damper qfrc_gravcomp qfrc_fluid qfrc_passive "
        "ten_velocity actuator_velocity subtree_linvel subtree_angmom energy"
    ),
    3: (
        "qacc act_dot actuator_force qfrc_actuator qfrc_smooth qacc_smooth qfrc_constraint cacc "
        "cfrc_int cfrc_ext sensordata"
    ),
}


def model(*, sensors: str = SENSORS, flags: str = ENERGY) -> mujoco.MjModel:
    return mujoco.MjModel.from_xml_string(XML.format(sensors=sensors, flags=flags))


def forward(data: mujoco.MjData, puck: mujoco.MjModel) -> mujoco.MjData:
    """What MuJoCo makes of this state, controls and warm start, in a copy."""
    data = copy.copy(data)
    mujoco.mj_forward(puck, data)
    return data


def same(simulator: Simulator, data: mujoco.MjData, name: str, **tolerance: float) -> None:
    wanted, got = getattr(data, name), simulator.data[name][1].numpy()
    np.testing.assert_allclose(got, wanted, **tolerance, err_msg=name)


@pytest.mark.parametrize("stage", FIELDS)
def test_every_field_is_current_after_step_and_reset_and_set_state(stage: int) -> None:
    puck, fields = model(), FIELDS[stage].split()
    simulator = make_simulator("cpu", puck, num_envs=3, fields=fields, num_threads=1)
    assert stage_for(puck, fields) == stage
    data = mujoco.MjData(puck)
    control = torch.tensor([0.3, -0.8], dtype=torch.float64)
    for _ in range(12):
        simulator.data["ctrl"][1] = data.ctrl[:] = control
        simulator.step(3)
        mujoco.mj_step(puck, data, 3)
        control = -control
    for name in fields:
        assert simulator.data[name][1].any(), f"{name} is 0, which proves nothing"
        same(simulator, forward(data, puck), name, atol=0, rtol=0)

    state = simulator.get_state()
    values = {name: simulator.data[name][1].clone() for name in fields}
    start = mujoco.MjData(puck)
    start.qpos[2], start.qvel[:] = 0.09, 0.5
    qpos, qvel = (torch.tensor(np.stack([part] * 3)) for part in (start.qpos, start.qvel))
    simulator.reset(torch.tensor([False, True, True]), qpos, qvel)
    fresh = forward(start, puck)
    for name in fields:
        same(simulator, fresh, name, atol=0, rtol=0)
    simulator.set_state(state)
    for name, value in values.items():
        assert torch.equal(simulator.data[name][1], value), name


def test_the_cheapest_stage_that_does() -> None:
    puck = model(sensors=FRAME)
    assert stage_for(puck, ()) == 0
    assert stage_for(puck, ("xpos", "sensordata")) == 1
    assert stage_for(puck, ("xpos", "cvel")) == 2
    assert stage_for(model(), ("sensordata",)) == 3


@pytest.mark.parametrize(
    ("field", "sensors", "message"),
    [
        ("cfrc_ext", FRAME, "'cfrc_ext' would stay 0: .* <accelerometer>, <force>"),
        ("subtree_linvel", "", "'subtree_linvel' would stay 0: .* <subtreelinvel>"),
        ("sensordata", "", "the sensors of the model do not exist"),
        ("energy", SENSORS, '<flag energy="enable"/>'),
        ("xpoz", SENSORS, "'xpoz' is no MjData array that tasks can read; nearest: xpos"),
        ("qLD", SENSORS, "'qLD' is no MjData array that tasks can read"),
        ("efc_force", SENSORS, "'efc_force' is no MjData array"),
    ],
)
def test_what_mujoco_does_not_keep_current_is_refused_by_name(
    field: str, sensors: str, message: str
) -> None:
    with pytest.raises(SimulatorError, match=message):
        make_simulator("cpu", model(sensors=sensors, flags=""), num_envs=1, fields=("xpos", field))


def test_disabled_sensors_keep_nothing_current() -> None:
    puck = model(flags='<flag sensor="disable"/>')
    with pytest.raises(SimulatorError, match=r"2 problems:\n.*'sensordata'.*\n.*'cacc'"):
        make_simulator("cpu", puck, num_envs=1, fields=("sensordata", "cacc"))


def test_a_field_that_was_not_asked_for_says_how_to_ask() -> None:
    data = make_simulator("cpu", model(), num_envs=1, fields=("xpos",)).data
    with pytest.raises(SimulatorError, match=r"add fields=\('cvel',\) to the Task"):
        _ = data["cvel"]
    with pytest.raises(SimulatorError, match=r"nearest: xpos"):
        _ = data["xposs"]
    assert "cvel" not in data and data.get("cvel") is None


def test_warp_keeps_the_same_fields_current_in_the_same_shapes() -> None:
    pytest.importorskip("mujoco_warp")
    pytest.importorskip("warp").config.optimization_level = 1
    # A model whose kernels other tests compile too.
    ant = make_task("ant").model
    fields = ["xmat", "cvel", "qfrc_bias", "qacc", "actuator_force"]
    warp = make_simulator("warp", ant, num_envs=3, fields=fields)
    data = mujoco.MjData(ant)
    for _ in range(4):
        warp.data["ctrl"][1] = 0.5
        data.ctrl[:] = 0.5
        warp.step(3)
        mujoco.mj_step(ant, data, 3)
    for name in fields:
        assert warp.data[name].shape[1:] == getattr(data, name).shape
        same(warp, forward(data, ant), name, atol=2e-3, rtol=2e-3)


def test_warp_refuses_by_name_what_it_does_not_keep() -> None:
    pytest.importorskip("mujoco_warp")
    with pytest.raises(SimulatorError, match=r"'xfrc_applied' is kept current by --simulator cpu"):
        make_simulator("warp", model(flags=""), num_envs=1, fields=("xpos", "xfrc_applied"))
