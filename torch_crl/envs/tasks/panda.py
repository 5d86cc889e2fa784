"""The model of the arm tasks: a Franka-Panda-like arm or its hand on a gantry, table, cube, bins.

Kinematics and inertials are Franka's as MuJoCo Menagerie publishes them. Links are drawn as
capsules that weigh nothing and touch nothing: contacts exist between listed pairs of geoms only.
"""

from typing import NamedTuple

import mujoco

from torch_crl.envs.tasks.models import set_physics

HALF_CUBE = 0.03
FINGER_STROKE = 0.05
FINGER_STIFFNESS, FINGER_FORCE = 500.0, 500.0
# Ratio of damping to stiffness of every servo, s.
SERVO_DAMPING = 0.1
FINGER_JOINTS = ("left_finger", "right_finger")
# Parts of a hand with fingers that touch the cube and the bins.
_HAND_PARTS = ("hand", *FINGER_JOINTS)
_WHITE, _DARK = [0.9, 0.92, 0.93, 1.0], [0.25, 0.25, 0.25, 1.0]
BLUE, RED = [0.1, 0.25, 0.8, 1.0], [0.8, 0.15, 0.15, 1.0]
_VISUAL_GROUP = 2


class _Link(NamedTuple):
    """A body of the arm that turns about its own z axis."""

    offset: tuple[float, float, float]
    rotation: tuple[float, float, float, float]
    """Quaternion, w first, not normalised; like `offset`, in the frame of the previous link."""
    low: float
    high: float
    """Limits of the joint, `low` and `high`, rad."""
    mass: float
    centre: tuple[float, float, float]
    inertia: tuple[float, float, float, float, float, float]
    """xx, yy, zz, xy, xz, yz about the centre of mass, in the link's axes."""
    stiffness: float
    """Stiffness of the position servo, N m / rad."""
    reference_gain: float
    """Gain in the reference, N m per rad of target; less than the stiffness in joints 3 to 7."""
    force: float
    """Largest torque of the servo, N m."""


# fmt: off
_LINKS = (
    _Link((0.0, 0.0, 0.333), (1, 0, 0, 0), -2.8973, 2.8973,
          4.970684, (0.003875, 0.002081, -0.04762),
          (0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169), 4500.0, 4500.0, 87.0),
    _Link((0.0, 0.0, 0.0), (1, -1, 0, 0), -1.7628, 1.7628,
          0.646926, (-0.003141, -0.02872, 0.003495),
          (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704), 4500.0, 4500.0, 87.0),
    _Link((0.0, -0.316, 0.0), (1, 1, 0, 0), -2.8973, 2.8973,
          3.228604, (0.027518, 0.039252, -0.066502),
          (0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805), 3500.0, 2000.0, 87.0),
    _Link((0.0825, 0.0, 0.0), (1, 1, 0, 0), -3.0718, -0.0698,
          3.587895, (-0.05317, 0.104419, 0.027454),
          (0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641), 3500.0, 2000.0, 87.0),
    _Link((-0.0825, 0.384, 0.0), (1, -1, 0, 0), -2.8973, 2.8973,
          1.225946, (-0.011953, 0.041065, -0.038437),
          (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229), 2000.0, 1000.0, 12.0),
    _Link((0.0, 0.0, 0.0), (1, 1, 0, 0), -0.0175, 3.7525,
          1.666555, (0.060149, -0.014117, -0.010517),
          (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341), 2000.0, 1000.0, 12.0),
    _Link((0.088, 0.0, 0.0), (1, 1, 0, 0), -2.8973, 2.8973,
          0.735522, (0.010517, -0.004252, 0.061597),
          (0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741), 2000.0, 1000.0, 12.0),
)
# fmt: on
_FLANGE = (0.0, 0.0, 0.107)
_HAND_ROTATION = (0.92388, 0.0, 0.0, -0.38268)
SERVOS = ("exact", "reference")


def new_scene(*, bins: bool) -> mujoco.MjSpec:
    """An empty table, the plane z = 0, with physics steps of 2 ms.

    With random actions the reference's 6 solver iterations give the same energy, penetration and
    speeds as a hundred. `bins` makes friction stiffer against slip, as the reference does in tasks
    with bins; this takes 8 iterations: with 6 the cube is now and then thrown twice as high and
    the fingers come apart.
    """
    spec = mujoco.MjSpec()
    iterations = 8 if bins else 6
    set_physics(spec, timestep=0.002, iterations=iterations, ls_iterations=2 * iterations)
    spec.option.impratio = 10.0 if bins else 1.0
    spec.compiler.degree = False
    # Pictures look at the table from beyond it, where the arm hides nothing.
    spec.visual.global_.azimuth, spec.visual.global_.elevation = -60.0, -35.0
    table = _add_geom(spec.worldbody, "table", mujoco.mjtGeom.mjGEOM_PLANE, [1.0, 1.0, 0.1])
    table.pos = [0.0, 0.5, 0.0]
    table.rgba = [0.8, 0.8, 0.78, 1.0]
    return spec


def add_arm(spec: mujoco.MjSpec, *, fingers: bool, servo: str) -> None:
    """Add seven hinges with position servos at the origin, the hand and, if asked for, fingers.

    The `exact` servo pulls towards its target. The `reference` one has less gain than stiffness in
    joints 3 to 7 and settles, without load, at 0.571 (3, 4) and 0.5 (5 to 7) of the target.
    """
    if servo not in SERVOS:
        raise ValueError(f"servo must be one of {', '.join(SERVOS)}, not {servo!r}")
    body = spec.worldbody
    for number, link in enumerate(_LINKS, start=1):
        _draw_link(body, link.offset, number)
        body = body.add_body(name=f"link{number}", pos=link.offset, quat=link.rotation)
        body.explicitinertial = True
        body.mass, body.ipos, body.fullinertia = link.mass, link.centre, link.inertia
        joint = f"joint{number}"
        body.add_joint(
            name=joint,
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[0.0, 0.0, 1.0],
            range=[link.low, link.high],
            armature=0.1,
            damping=5.0,
        )
        gain = link.stiffness if servo == "exact" else link.reference_gain
        _add_servo(spec, joint, (link.low, link.high), gain, link.stiffness, link.force)
    _draw_link(body, _FLANGE, number=8)
    hand = body.add_body(name="hand", pos=_FLANGE, quat=_HAND_ROTATION)
    _add_palm(spec, hand)
    if fingers:
        _add_fingers(spec, hand)


def add_gantry(spec: mujoco.MjSpec) -> None:
    """The hand alone, pointing down, on weightless slides whose positions are world x, y and z."""
    hand = spec.worldbody.add_body(name="hand", quat=[0.0, -1.0, 1.0, 0.0], gravcomp=1.0)
    # World axes in the hand's own frame.
    axes = {"x": [0.0, -1.0, 0.0], "y": [-1.0, 0.0, 0.0], "z": [0.0, 0.0, -1.0]}
    ranges = {"x": (-0.4, 0.4), "y": (0.35, 0.85), "z": (0.0, 0.3)}
    for name, axis in axes.items():
        hand.add_joint(
            name=name, type=mujoco.mjtJoint.mjJNT_SLIDE, axis=axis, range=list(ranges[name])
        )
        _add_servo(spec, name, (-2.8973, 2.8973), 1000.0, 1000.0, 87.0)
    _add_palm(spec, hand)
    _add_fingers(spec, hand)


def add_cube(spec: mujoco.MjSpec) -> None:
    """A free cube of 6 cm and 0.216 kg that table, hand and fingers touch."""
    body = spec.worldbody.add_body(name="cube", pos=[0.0, 0.6, HALF_CUBE])
    body.add_freejoint(name="cube")
    cube = _add_geom(body, "cube", mujoco.mjtGeom.mjGEOM_BOX, [HALF_CUBE] * 3)
    cube.density = 1000.0
    cube.rgba = [0.95, 0.7, 0.1, 1.0]
    for other in ("table", *_HAND_PARTS):
        _touch(spec, "cube", other)


def add_bin(
    spec: mujoco.MjSpec, name: str, *, xy: tuple[float, float], inner: float, rgba: list[float]
) -> None:
    """Four walls around xy, 1 cm thick and 6.6 cm high; `inner` is half the inner width."""
    thin, long, high = 0.005, inner + 0.01, 0.033
    for wall, x, y, half_x, half_y in (
        (f"{name}_x_low", -(inner + thin), 0.0, thin, long),
        (f"{name}_x_high", inner + thin, 0.0, thin, long),
        (f"{name}_y_low", 0.0, -(inner + thin), long, thin),
        (f"{name}_y_high", 0.0, inner + thin, long, thin),
    ):
        size = [half_x, half_y, high]
        geom = _add_geom(spec.worldbody, wall, mujoco.mjtGeom.mjGEOM_BOX, size)
        geom.pos = [xy[0] + x, xy[1] + y, high]
        geom.rgba = rgba
        for other in ("cube", *_HAND_PARTS):
            _touch(spec, wall, other)


def add_fence(spec: mujoco.MjSpec) -> None:
    """Invisible walls around the gantry's range that only the cube touches."""
    for name, x, y, half_x, half_y in (
        ("fence_y_low", 0.0, 0.35, 0.41, 0.01),
        ("fence_y_high", 0.0, 0.85, 0.41, 0.01),
        ("fence_x_low", -0.4, 0.6, 0.01, 0.24),
        ("fence_x_high", 0.4, 0.6, 0.01, 0.24),
    ):
        size = [half_x, half_y, 0.15]
        geom = _add_geom(spec.worldbody, name, mujoco.mjtGeom.mjGEOM_BOX, size)
        geom.pos = [x, y, 0.15]
        geom.rgba = [0.0, 0.0, 0.0, 0.0]
        _touch(spec, name, "cube")


def paint_square(
    spec: mujoco.MjSpec, name: str, *, xy: tuple[float, float], half: float, rgba: list[float]
) -> None:
    """A mark on the table that touches nothing."""
    size = [half, half, 0.0005]
    geom = _add_geom(spec.worldbody, name, mujoco.mjtGeom.mjGEOM_BOX, size)
    geom.pos = [*xy, 0.0005]
    geom.rgba = rgba


def _add_palm(spec: mujoco.MjSpec, hand: mujoco.MjsBody) -> None:
    palm = _add_geom(hand, "hand", mujoco.mjtGeom.mjGEOM_CAPSULE, [0.04, 0.06, 0.0])
    palm.density = 1000.0
    palm.pos = [0.0, 0.0, 0.035]
    palm.quat = [1.0, 1.0, 0.0, 0.0]
    palm.rgba = _WHITE
    _touch(spec, "table", "hand")


def _add_fingers(spec: mujoco.MjSpec, hand: mujoco.MjsBody) -> None:
    """Two boxes on slides along the hand's y, coupled; each with a site at its fingertip."""
    for name, quat in zip(FINGER_JOINTS, ([1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]), strict=True):
        finger = hand.add_body(name=name, pos=[0.0, 0.0, 0.0584], quat=quat)
        finger.explicitinertial = True
        finger.mass, finger.ipos = 0.015, [0.0, 0.0, 0.0]
        finger.inertia = [2.375e-6, 2.375e-6, 7.5e-7]
        finger.add_joint(
            name=name,
            type=mujoco.mjtJoint.mjJNT_SLIDE,
            axis=[0.0, 1.0, 0.0],
            range=[0.0, FINGER_STROKE],
            armature=0.1,
            damping=5.0,
        )
        pad = _add_geom(finger, name, mujoco.mjtGeom.mjGEOM_BOX, [0.015, 0.005, 0.04])
        pad.pos = [0.0, 0.0055, 0.035]
        pad.rgba = _DARK
        finger.add_site(name=f"{name}_tip", pos=[0.0, 0.005, 0.07], size=[0.004] * 3)
        limits = (0.0, FINGER_STROKE)
        _add_servo(spec, name, limits, FINGER_STIFFNESS, FINGER_STIFFNESS, FINGER_FORCE)
        _touch(spec, "table", name)
    _touch(spec, *FINGER_JOINTS)
    coupling = spec.add_equality(type=mujoco.mjtEq.mjEQ_JOINT, objtype=mujoco.mjtObj.mjOBJ_JOINT)
    coupling.name1, coupling.name2 = FINGER_JOINTS
    # left = 0 + 1 right
    coupling.data[:5] = [0.0, 1.0, 0.0, 0.0, 0.0]
    coupling.solref = [0.005, 1.0]
    coupling.solimp = [0.95, 0.99, 0.001, 0.5, 2.0]


def _add_servo(
    spec: mujoco.MjSpec,
    joint: str,
    limits: tuple[float, float],
    gain: float,
    stiffness: float,
    force: float,
) -> None:
    """Force = gain ctrl - stiffness (q + 0.1 s qd), at most `force` either way."""
    servo = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.gainprm[0] = gain
    servo.biastype = mujoco.mjtBias.mjBIAS_AFFINE
    servo.biasprm[:3] = [0.0, -stiffness, -SERVO_DAMPING * stiffness]
    servo.ctrllimited = servo.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
    servo.ctrlrange = limits
    servo.forcerange = [-force, force]


def _draw_link(parent: mujoco.MjsBody, offset: tuple[float, float, float], number: int) -> None:
    """A capsule from the parent's origin to where the next body begins."""
    if any(offset):
        geom = _add_geom(parent, f"drawn{number}", mujoco.mjtGeom.mjGEOM_CAPSULE, [0.045, 0.0, 0.0])
        geom.fromto = [0.0, 0.0, 0.0, *offset]
        geom.mass = 0.0
        geom.group = _VISUAL_GROUP
        geom.rgba = _WHITE


def _add_geom(
    body: mujoco.MjsBody, name: str, kind: mujoco.mjtGeom, size: list[float]
) -> mujoco.MjsGeom:
    """A geom without contype and conaffinity, which touches only what `_touch` lists."""
    return body.add_geom(name=name, type=kind, size=size, contype=0, conaffinity=0)


def _touch(spec: mujoco.MjSpec, first: str, second: str) -> None:
    """A contact pair with MuJoCo's default softness and a friction of 1."""
    spec.add_pair(
        geomname1=first,
        geomname2=second,
        condim=3,
        friction=[1.0, 1.0, 0.005, 0.0001, 0.0001],
        solref=[0.02, 1.0],
        solimp=[0.9, 0.95, 0.001, 0.5, 2.0],
    )
