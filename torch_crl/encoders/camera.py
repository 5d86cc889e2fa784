"""What a camera sees of a task, as features of a frozen encoder.

N pictures, Q positions, E embedding, F features.
"""

import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from torch_crl import fields
from torch_crl.encoders import Encoder, load_encoder
from torch_crl.encoders.encoder import EncoderError
from torch_crl.encoders.projection import Projection, check_tables, fit_components
from torch_crl.envs.registry import make_task, module_of
from torch_crl.envs.task import Task
from torch_crl.fields import STRICT, Count, Positive
from torch_crl.rendering.snapshots import Snapshots

Pictures = NDArray[np.uint8]

MOST_UNLIKE = 3.0
"""A picture of which more is left over than of the known ones, by this factor, shows something
else."""

DRAWING = 2
"""The way in which pictures are drawn. Policies know those of their training, so that what draws
otherwise has another number: 2 looks at mazes from above."""


@dataclass(frozen=True, kw_only=True)
class CameraSettings:
    """All of a camera but its numbers, as it is saved with a policy."""

    __pydantic_config__ = STRICT

    encoder: str
    sha256: str
    task: str
    """The task that is filmed."""
    side: Count
    """Width and height of a picture in pixels."""
    size: Count
    """F, the number of features of a picture."""
    embedding_size: Count
    """E, the length of the encoder's embeddings."""
    left_over: Positive
    """Length of what the features leave out of an embedding, the largest over known pictures."""
    drawing: Count = 1
    """`DRAWING` of the training; the first files lack it."""


# Fields of a model that say, for given positions, which shapes are where.
_SHAPES = (
    *("body_parentid", "body_pos", "body_quat", "qpos0"),
    *("jnt_type", "jnt_bodyid", "jnt_pos", "jnt_axis"),
    *("geom_bodyid", "geom_type", "geom_dataid", "geom_size", "geom_pos", "geom_quat"),
    *("mesh_vert", "mesh_face", "hfield_size", "hfield_data"),
)

_trusted: set[str] = set()


def trust_task(name: str) -> None:
    """Allow cameras to film `module:function`, a task that is Python code and runs when filmed."""
    _trusted.add(name)


def filmed_task(name: str) -> Task:
    """The task that a camera films.

    Raises EncoderError for Python code that only the file of a policy names, UnknownTaskError.
    """
    if (module := module_of(name)) and name not in _trusted:
        raise EncoderError(
            f"this policy films the task {name}, which is Python code and would import {module}; "
            "give --trust if you trust who made the policy (in Python: "
            "torch_crl.encoders.camera.trust_task)"
        )
    return make_task(name)


def look_alike(filmed: str, name: str) -> bool:
    """Whether another task has the same bodies and walls, placed alike, as one that is filmed."""
    if name == filmed:
        return True
    ours, theirs = filmed_task(filmed).model, make_task(name).model
    return all(np.array_equal(getattr(ours, part), getattr(theirs, part)) for part in _SHAPES)


@lru_cache(maxsize=4)
def snapshots_of(task: str, side: int) -> Snapshots:
    """What films a task in pictures of `side` x `side` pixels; shared, since each takes a second
    to set up and memory of the graphics card.
    """
    return Snapshots(filmed_task(task), side)


class Camera:
    """Takes pictures of simulations of a task, and turns pictures into features."""

    def __init__(self, settings: CameraSettings, projection: Projection) -> None:
        """Nothing is drawn or encoded before the first picture."""
        self.settings, self._projection = settings, projection
        self.size = settings.size

    @classmethod
    def fit(
        cls, task: str, qpos_MQ: Tensor, *, encoder: str, side: int, size: int
    ) -> tuple["Camera", Tensor]:
        """A camera whose features tell these positions apart, and their features [M, F].

        Raises RenderError, and EncoderError also for more features than they have.
        """
        trust_task(task)
        loaded = load_encoder(encoder)
        embedding_ME = loaded.encode_image(snapshots_of(task, side)(qpos_MQ))
        try:
            projection = fit_components(embedding_ME, size)
        except ValueError as error:
            raise EncoderError(
                f"{len(qpos_MQ)} pictures of {task} of {side} x {side} pixels do not differ "
                f"enough: {error}"
            ) from None
        settings = CameraSettings(
            encoder=encoder,
            sha256=loaded.sha256,
            task=task,
            side=side,
            size=size,
            embedding_size=embedding_ME.shape[1],
            left_over=float(projection.left_over(embedding_ME).max()),
            drawing=DRAWING,
        )
        return cls(settings, projection), projection(embedding_ME)

    @property
    def _encoder(self) -> Encoder:
        return load_encoder(self.settings.encoder, self.settings.sha256)

    def film(self, qpos_NQ: Tensor) -> Pictures:
        """Pictures [N, side, side, 3] of simulations at these positions. Raises RenderError."""
        return snapshots_of(self.settings.task, self.settings.side)(qpos_NQ)

    def of_pictures(self, pictures: Pictures) -> Tensor:
        """Features [N, F] of pictures [N, side, side, 3]. Raises EncoderError for other shapes."""
        return self._projection(self._encoder.encode_image(self.checked(pictures)))

    def checked(self, pictures: Any) -> Pictures:
        """The pictures, if they are such as this camera takes; else raises EncoderError."""
        given, side = np.asarray(pictures), self.settings.side
        if given.dtype != np.uint8 or given.ndim != 4 or given.shape[1:] != (side, side, 3):
            raise EncoderError(
                f"this policy takes pictures of {side} x {side} pixels in 8-bit red, green and "
                f"blue, got {given.dtype} of shape {list(given.shape)}"
            )
        return given

    def check_task(self, name: str) -> None:
        """Raise EncoderError if this task looks otherwise than the one that is filmed."""
        if not look_alike(self.settings.task, name):
            raise EncoderError(
                f"this policy has learned from pictures of {self.settings.task}, and {name} looks "
                "otherwise"
            )

    def check_known(self, picture: Pictures) -> None:
        """Raise EncoderError if a picture [side, side, 3] shows something else than the task."""
        unlike = float(self._projection.left_over(self._encoder.encode_image(picture[None])))
        most = MOST_UNLIKE * self.settings.left_over
        if not unlike <= most:
            raise EncoderError(
                f"the picture is not like those of {self.settings.task}: of its features, "
                f"{unlike:.2g} are none that this policy knows, and at most {most:.2g} is taken"
            )

    def description(self) -> dict[str, Any]:
        """The settings as JSON takes them."""
        return asdict(self.settings)

    def tensors(self) -> dict[str, Tensor]:
        """Its numbers by name."""
        return self._projection._asdict()

    @classmethod
    def rebuild(cls, description: dict[str, Any], tensors: dict[str, Tensor]) -> "Camera":
        """What `description` and `tensors` are of. Raises ValueError if they do not fit."""
        settings = fields.read(CameraSettings, json.dumps(description))
        if settings.drawing != DRAWING:
            raise ValueError(
                "it has learned from pictures that another version draws otherwise; train it again"
            )
        width, size = settings.embedding_size, settings.size
        check_tables(tensors, {"mean_E": (width,), "basis_EF": (width, size)})
        return cls(settings, Projection(**tensors))
