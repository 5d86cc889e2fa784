"""What a student sees of states and goals, where that is not what its teacher sees.

N envs, S state, G goal of the task, Q positions, F features.
"""

import json
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torch_crl.agent.policy import Policy, controller_of, places_of
from torch_crl.agent.senses import MemoryTraces, ReadsGoals
from torch_crl.encoders import DEFAULTS
from torch_crl.encoders.camera import Camera
from torch_crl.envs.make import make_vector_env
from torch_crl.envs.places import GoalPoints, nearest, without_places
from torch_crl.envs.registry import make_task
from torch_crl.envs.task_vector_env import TaskVectorEnv
from torch_crl.errors import UsageError
from torch_crl.goals.pictures import PictureReader
from torch_crl.goals.words import WordGoals

SIDE, FEATURES = 256, 64
"""Width of a student's pictures in pixels, and number of features of each.

The encoder scales pictures down to 128, so that what is small moves by less than one of its pixels.
"""
_ENVS, _PICTURES = 16, 256


@dataclass(frozen=True)
class Senses:
    """The ways in which a student reads goals, and sees states."""

    reader: ReadsGoals | None = None
    camera: Camera | None = None

    def _state_size(self, teacher: Policy) -> int:
        if self.camera is None:
            return teacher.state_size
        return MemoryTraces.size(self.camera.size, teacher.action_size)

    def policy(self, teacher: Policy, actor: torch.nn.Module) -> Policy:
        """A student of this teacher with these weights."""
        return Policy(
            actor,
            state_size=self._state_size(teacher),
            goal_size=teacher.goal_size,
            head=teacher.head,
            chunk=teacher.chunk,
            reader=self.reader,
            camera=self.camera,
        )

    def input_size(self, teacher: Policy) -> int:
        """Length of the input of a student's network."""
        goal_size = self.reader.size if self.reader else teacher.goal_size
        return self._state_size(teacher) + goal_size

    @property
    def places(self) -> GoalPoints | None:
        """The goals at which a student can be commanded to be; None for all."""
        return self.reader.places if self.reader else None

    def description(self) -> dict[str, Any]:
        """How a student sees, for comparison with one that was begun before; empty by default."""
        told: dict[str, Any] = {}
        if self.camera is not None:
            told["camera"] = self.camera.description()
            # The last bits depend on the machine.
            del told["camera"]["left_over"]
        if self.reader is not None:
            told["reader"] = self.reader.description()
        # As it comes back from a file: lists in place of tuples.
        found: dict[str, Any] = json.loads(json.dumps(told))
        return found

    def goals(self, teacher: Policy, goal_NG: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher, and what the student, takes for these goals of the task."""
        if self.places is not None:
            point_PG = self.places.point_PG
            goal_NG = point_PG[nearest(point_PG, goal_NG)]
        ours = self.reader(goal_NG) if self.reader else goal_NG
        return teacher.reader(goal_NG) if teacher.reader else goal_NG, ours


def senses_of(
    teacher: Policy, task: str, *, observe: str, goals: str, episode_length: int
) -> Senses:
    """What a student sees with `observe` state or camera, and `goals` as its teacher or words.

    Raises UsageError if the task names no places or cannot be filmed, RenderError, EncoderError.
    """
    if teacher.camera is not None:
        raise UsageError("a student that sees a camera cannot be a teacher; distil its teacher")
    if isinstance(teacher.reader, PictureReader):
        raise UsageError("a policy of --goals pictures cannot be a teacher; one by words can")
    reader = teacher.reader
    if goals == "words" and reader is None:
        places = make_task(task).places
        if places is None:
            raise UsageError(f"--goals words: {without_places(task)}")
        device = torch.device("cpu")
        reader = WordGoals(places, DEFAULTS["words"], 16, device=device).reader
    if observe == "state":
        return Senses(reader)
    qpos_MQ = _met_positions(teacher, task, reader, episode_length)
    camera, _ = Camera.fit(task, qpos_MQ, encoder=DEFAULTS["pictures"], side=SIDE, size=FEATURES)
    return Senses(reader, camera)


def _met_positions(
    teacher: Policy, task: str, reader: ReadsGoals | None, episode_length: int
) -> Tensor:
    """Positions [M, Q] from all over the episodes of a teacher."""
    places = reader.places if reader else places_of(teacher)
    made = make_vector_env(
        task, num_envs=_ENVS, episode_length=episode_length, seed=0, places=places
    )
    with closing(made) as env:
        if not isinstance(env, TaskVectorEnv):
            raise UsageError(f"--observe camera films MuJoCo tasks of ours or yours, got {task}")
        controller, met = controller_of(teacher, _ENVS), []
        for _ in range(episode_length):
            met.append(env.simulator.data["qpos"].clone())
            result = env.step(controller(env.state_NS, env.goal_NG))
            controller.reset(result.terminated_N | result.truncated_N)
    every = max(1, _ENVS * episode_length // _PICTURES)
    return torch.stack(met)[::every].flatten(0, 1)
