"""Parses the name of a task: a registered one, a function of the user's, or a Gymnasium env."""

from typing import Literal, NamedTuple

_GYMNASIUM = "gymnasium:"


class TaskName(NamedTuple):
    """The parts of a task's name."""

    kind: Literal["registered", "own", "gymnasium"]
    """`ant` is registered, `module:function` a task of the user's own, `gymnasium:ID` or
    `gymnasium:module:ID` a Gymnasium goal env."""
    module: str
    """The module that loading the task imports; empty if its name contains none."""
    rest: str
    """The registered name, the function of the module, or Gymnasium's id, module included."""


def parse_task_name(name: str) -> TaskName:
    """Split a name into its parts. Whether such a task exists is checked when it is loaded."""
    if name.startswith(_GYMNASIUM):
        env_id = name.removeprefix(_GYMNASIUM)
        module, colon, _ = env_id.partition(":")
        return TaskName("gymnasium", module if colon else "", env_id)
    module, colon, function = name.partition(":")
    return TaskName("own", module, function) if colon else TaskName("registered", "", name)
