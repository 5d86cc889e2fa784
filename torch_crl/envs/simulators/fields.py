"""Which MjData fields a task may read, and how far MuJoCo must compute to make each current."""

import difflib
from collections.abc import Iterable

import mujoco
from torch import Tensor

from torch_crl.envs.simulators.simulator import SimulatorError
from torch_crl.errors import listed

_SENSOR, _STAGE = mujoco.mjtSensor, mujoco.mjtStage

# Grouped as in the comments of MuJoCo's mjdata.h.
_BY_STAGE = {
    _STAGE.mjSTAGE_NONE: (
        "qpos qvel ctrl act time qacc_warmstart qfrc_applied xfrc_applied mocap_pos mocap_quat "
        "userdata"
    ),
    _STAGE.mjSTAGE_POS: (
        "xpos xquat xmat xipos ximat xanchor xaxis geom_xpos geom_xmat site_xpos site_xmat "
        "cam_xpos cam_xmat light_xpos light_xdir subtree_com cdof cinert crb flexvert_xpos "
        "flexedge_length ten_length actuator_length"
    ),
    _STAGE.mjSTAGE_VEL: (
        "cvel cdof_dot qfrc_bias qfrc_spring qfrc_damper qfrc_gravcomp qfrc_fluid qfrc_passive "
        "flexedge_velocity ten_velocity actuator_velocity subtree_linvel subtree_angmom energy"
    ),
    _STAGE.mjSTAGE_ACC: (
        "qacc act_dot actuator_force qfrc_actuator qfrc_smooth qacc_smooth qfrc_constraint cacc "
        "cfrc_int cfrc_ext"
    ),
}
_STAGES = {name: int(stage) for stage, names in _BY_STAGE.items() for name in names.split()}
_NAMES = [*_STAGES, "sensordata"]

# Sensors that make MuJoCo compute the fields in `_ON_REQUEST`, which it skips otherwise.
_SUBTREE_SENSORS: tuple[mujoco.mjtSensor, ...] = (
    _SENSOR.mjSENS_SUBTREELINVEL,
    _SENSOR.mjSENS_SUBTREEANGMOM,
)
_BODY_SENSORS: tuple[mujoco.mjtSensor, ...] = (
    _SENSOR.mjSENS_ACCELEROMETER,
    _SENSOR.mjSENS_FORCE,
    _SENSOR.mjSENS_TORQUE,
    _SENSOR.mjSENS_FRAMELINACC,
    _SENSOR.mjSENS_FRAMEANGACC,
)
_ON_REQUEST = {
    **dict.fromkeys(("subtree_linvel", "subtree_angmom"), _SUBTREE_SENSORS),
    **dict.fromkeys(("cacc", "cfrc_int", "cfrc_ext"), _BODY_SENSORS),
}


class Fields(dict[str, Tensor]):
    """Tensors by the name of their MjData field; the error for a missing one says how to get it."""

    def __missing__(self, name: str) -> Tensor:
        if name in _NAMES:
            raise SimulatorError(
                f"simulator.data[{name!r}] is read, and Task.fields does not ask for it; add "
                f"fields=({name!r},) to the Task"
            )
        raise SimulatorError(f"simulator.data[{name!r}] is read; {_no_field(name)}")


def stage_for(model: mujoco.MjModel, fields: Iterable[str]) -> int:
    """The first mjtStage after which all of these fields are current.

    Raises SimulatorError with a line for each field that is unknown, or that MuJoCo does not keep
    current for this model.
    """
    problems = [problem for name in fields if (problem := field_problem(model, name))]
    if problems:
        raise SimulatorError(f"Task.fields, {listed(problems)}")
    return max((_stage(model, name) for name in fields), default=int(_STAGE.mjSTAGE_NONE))


def field_problem(model: mujoco.MjModel, name: str) -> str:
    """Why MuJoCo does not keep this field current for this model; empty if it does."""
    if name not in _NAMES:
        return _no_field(name)
    no_sensors = bool(model.opt.disableflags & mujoco.mjtDisableBit.mjDSBL_SENSOR)
    if name == "sensordata" and (no_sensors or not model.nsensor):
        why = "are disabled in its <option>" if no_sensors else "do not exist"
        return f"'sensordata' would stay empty or 0: the sensors of the model {why}"
    kinds = _ON_REQUEST.get(name, ())
    if kinds and (no_sensors or not {int(kind) for kind in kinds} & set(model.sensor_type)):
        elements = ", ".join(f"<{kind.name.removeprefix('mjSENS_').lower()}>" for kind in kinds)
        return (
            f"{name!r} would stay 0: MuJoCo computes it only for a sensor that needs it; add one "
            f"of {elements} to the model's <sensor>"
        )
    if name == "energy" and not model.opt.enableflags & mujoco.mjtEnableBit.mjENBL_ENERGY:
        return "'energy' would stay 0: set <option><flag energy=\"enable\"/></option> in the model"
    return ""


def _stage(model: mujoco.MjModel, name: str) -> int:
    # `sensordata` is current at the stage that its latest sensor needs.
    return int(model.sensor_needstage.max()) if name == "sensordata" else _STAGES[name]


def _no_field(name: str) -> str:
    near = difflib.get_close_matches(name, _NAMES, n=4, cutoff=0.4)
    allowed = f"nearest: {', '.join(near)}" if near else f"allowed are {', '.join(_NAMES)}"
    return f"{name!r} is no MjData array that tasks can read; {allowed}"
