"""What a file of a policy tells of its task: everything that a robot's program has to know."""

import json
from typing import Any

import mujoco

import torch_crl
from torch_crl.deploy.actor import ExportedActor
from torch_crl.envs.registry import make_task, task_spec
from torch_crl.envs.task import Task, direct_control, scaled_control
from torch_crl.envs.task_name import parse_task_name
from torch_crl.errors import UsageError

_CONTROLS: dict[object, str] = {
    direct_control: "the action is the actuators' control, unchanged",
    scaled_control: "-1 and 1 are the ends of each actuator's range, and the action lies between; "
    "an actuator without a range gets the action itself",
}


def describe(actor: ExportedActor, task_name: str) -> dict[str, Any]:
    """Task, sizes, and how an action becomes a control; to be written as JSON.

    Raises UnknownTaskError, and UsageError for a task of other sizes.
    """
    spec = task_spec(task_name)
    sizes = actor.state_size, actor.goal_size, actor.action_size
    if sizes != (spec.state_size, spec.goal_size, spec.action_size):
        raise UsageError(
            f"{task_name} has {spec.state_size}, {spec.goal_size} and {spec.action_size} numbers "
            f"of state, goal and action, and the policy {sizes[0]}, {sizes[1]} and {sizes[2]}"
        )
    told: dict[str, Any] = {
        "torch_crl": torch_crl.__version__,
        "task": task_name,
        **actor.sizes,
        "goal_slice": list(spec.goal_slice),
        "success_radius": dict(spec.success_radius),
        "sha256_of_weights": actor.sha256,
        "tolerance": actor.tolerance,
    }
    if spec.state_names:
        told["state_names"] = list(spec.state_names)
        told["goal_names"] = list(spec.state_names[slice(*spec.goal_slice)])
    if parse_task_name(task_name).kind != "gymnasium":
        told |= _of_model(make_task(task_name))
    return told


def as_properties(told: dict[str, Any], actor: ExportedActor) -> dict[str, str]:
    """The description for a file of ONNX: whole under `torch_crl`, and under mjlab's keys."""
    test = {name: value.tolist() for name, value in actor.pairs.items()}
    properties = {"torch_crl": json.dumps(told | {"self_test": test}, sort_keys=True)}
    keys = {
        "joint_names": told.get("actuated_joints"),
        "observation_names": told.get("state_names"),
        "command_names": told.get("goal_names"),
    }
    return properties | {key: ",".join(names) for key, names in keys.items() if names}


def _of_model(task: Task) -> dict[str, Any]:
    model = task.model
    actuators = []
    for index in range(model.nu):
        actuator = model.actuator(index)
        limited = bool(model.actuator_ctrllimited[index])
        low, high = actuator.ctrlrange.tolist()
        name = actuator.name or f"actuator{index}"
        actuators.append({"name": name, "range": [low, high] if limited else None})
    joints = [
        model.joint(int(model.actuator_trnid[index, 0])).name
        for index in range(model.nu)
        if model.actuator_trntype[index] == mujoco.mjtTrn.mjTRN_JOINT
    ]
    return {
        "control_period": task.substeps * float(model.opt.timestep),
        "substeps": task.substeps,
        "actuators": actuators,
        "actuated_joints": joints,
        "control": _CONTROLS.get(task.control, "computed by the task's own `control`"),
    }
