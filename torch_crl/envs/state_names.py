"""Names and units of the entries of the built-in tasks' states, in their order.

The docstrings of the modules in `torch_crl.envs.tasks` say what the entries mean.
"""

from collections.abc import Iterable

_AXES = ("x", "y", "z")


def _points(names: Iterable[str], unit: str = "m") -> list[str]:
    return [f"{name}_{axis} [{unit}]" for name in names for axis in _AXES]


def _angles(joints: Iterable[str]) -> list[str]:
    return [f"{joint} [rad]" for joint in joints]


def _rates(joints: Iterable[str]) -> list[str]:
    return [f"{joint}_velocity [rad/s]" for joint in joints]


def _numbered(name: str, count: int) -> list[str]:
    return [f"{name}{number}" for number in range(1, count + 1)]


_QUATERNION = [f"torso_quaternion_{part} [1]" for part in "wxyz"]
_MOVING_TORSO = [
    *_points(["torso_velocity"], "m/s"),
    *_points(["torso_angular_velocity_body"], "rad/s"),
]


def _free(joints: list[str]) -> list[str]:
    """Of a robot whose torso is free: position, orientation, joints, and their velocities."""
    still = [*_points(["torso"]), *_QUATERNION, *_angles(joints)]
    return [*still, *_MOVING_TORSO, *_rates(joints)]


_ANT = _free([f"{part}_{leg}" for leg in (1, 2, 3, 4) for part in ("hip", "ankle")])
_CHEETAH_JOINTS = [
    f"{leg}_{part}" for leg in ("back", "front") for part in ("thigh", "shin", "foot")
]
_PUSHER_JOINTS = ["shoulder_pan", "shoulder_lift", "upper_arm_roll", "elbow_flex", "forearm_roll"]
_PUSHER_JOINTS += ["wrist_flex", "wrist_roll"]
_ARM_JOINTS = _numbered("joint", 7)
_FLANGE = [*_points(["flange"]), *_points(["flange_velocity"], "m/s")]
_ARM_WITH_CUBE = [*_points(["cube"]), *_angles(_ARM_JOINTS), *_FLANGE, "finger_distance [m]"]
_HUMANOID_JOINTS = [f"abdomen_{axis}" for axis in "zyx"]
_HUMANOID_JOINTS += [
    f"{side}_{joint}" for side in ("right", "left") for joint in ("hip_x", "hip_z", "hip_y", "knee")
]
_HUMANOID_JOINTS += [
    f"{side}_{joint}"
    for side in ("right", "left")
    for joint in ("shoulder_1", "shoulder_2", "elbow")
]
_HUMANOID_LINKS = ["torso", "lower_waist", "pelvis"]
_HUMANOID_LINKS += [f"{side}_{link}" for side in ("right", "left") for link in ("thigh", "shin")]
_HUMANOID_LINKS += [
    f"{side}_{link}" for side in ("right", "left") for link in ("upper_arm", "lower_arm")
]


def _humanoid() -> list[str]:
    names = _free(_HUMANOID_JOINTS)
    for link in _HUMANOID_LINKS:
        names += [f"{link}_inertia_{row}{column} [kg m^2]" for row in _AXES for column in _AXES]
        names.append(f"{link}_mass [kg]")
    for link in _HUMANOID_LINKS:
        names += _points([f"{link}_velocity_by_mass"], "m/s")
        names += _points([f"{link}_angular_velocity"], "rad/s")
    names += _points(["torso_actuator_force"], "N") + _points(["torso_actuator_torque"], "N m")
    return names + [f"{joint}_actuator_torque [N m]" for joint in _HUMANOID_JOINTS]


def _pusher(objects: list[str]) -> list[str]:
    still = [*_angles(_PUSHER_JOINTS), *_points(["wrist"]), *_points(objects)]
    return [*still, *_rates(_PUSHER_JOINTS)]


_TIPS = [*_points(["left_fingertip", "right_fingertip"]), "fingertip_distance [m]"]
_GANTRY = [*_points(["cube", "hand"]), *_points(["hand_velocity"], "m/s")]
_NAMES: dict[str, list[str]] = {
    "reacher": [
        *("cos_joint1 [1]", "cos_joint2 [1]", "sin_joint1 [1]", "sin_joint2 [1]"),
        *_points(["fingertip"]),
        *_points(["fingertip_velocity"], "m/s"),
    ],
    "ant": _ANT,
    "ant_objects:make_ball": [*_ANT, "ball_x [m]", "ball_y [m]"],
    "ant_objects:make_ball_maze": [*_ANT, "ball_x [m]", "ball_y [m]"],
    "ant_objects:make_push": [*_ANT, "block_x [m]", "block_y [m]"],
    "humanoid": _humanoid(),
    "point": ["x [m]", "y [m]", "x_velocity [m/s]", "y_velocity [m/s]"],
    "half_cheetah": [
        *("torso_x [m]", "torso_height [m]", "torso_pitch [rad]", *_angles(_CHEETAH_JOINTS)),
        *("torso_x_velocity [m/s]", "torso_height_velocity [m/s]", "torso_pitch_velocity [rad/s]"),
        *_rates(_CHEETAH_JOINTS),
    ],
    "pusher:make": _pusher(["object"]),
    "pusher2": _pusher(["object1", "object2"]),
    "pusher:make_reacher": [
        *_angles(_PUSHER_JOINTS),
        *_rates(_PUSHER_JOINTS),
        *_points(["wrist"]),
    ],
    "arm:make_reach": [*_angles(_ARM_JOINTS), *_FLANGE],
    "arm:make_grasp": [*_ARM_WITH_CUBE[:16], *_TIPS],
    "arm:make_move": _ARM_WITH_CUBE,
    "arm:make_gantry": [*_GANTRY, "finger_distance [m]", "finger_force [10 N]"],
}


def state_names(task: str, build: str) -> tuple[str, ...]:
    """The names of a built-in task, found by its own name, its function or that one's module."""
    keys = (task, build, build.partition(":")[0])
    return tuple(next((_NAMES[key] for key in keys if key in _NAMES), ()))
