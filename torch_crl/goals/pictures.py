"""Goals as pictures: what a camera sees where a goal is achieved, through a frozen encoder.

B batch, N envs, G goal of the task, Q positions, P known goals, F features.
"""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from torch_crl.encoders import EncoderError
from torch_crl.encoders.camera import Camera, Pictures, filmed_task
from torch_crl.encoders.projection import check_tables
from torch_crl.envs.goal_states import goal_states
from torch_crl.envs.places import GoalPoints, nearest
from torch_crl.envs.registry import make_task
from torch_crl.envs.task import Task
from torch_crl.envs.tasks.sampling import Constant
from torch_crl.errors import NotFiniteError, in_one_line
from torch_crl.goals.space import GoalSpace
from torch_crl.kernels.relabel import RelabeledBatch, multiple_ahead

KNOWN = 128
"""P, the number of goals that are filmed before training, and commanded in it."""
MOST_FEATURES = KNOWN
"""The largest number of features that so few goals can tell apart."""
_MOST_KEPT = 100_000


class PictureReader:
    """Reads goals of a policy: pictures, or coordinates, which are filmed."""

    films = True

    def __init__(
        self, camera: Camera, known_PG: Tensor, known_PF: Tensor, shown: Pictures | None = None
    ) -> None:
        """`known_PF` are the features of goals that were filmed before training.

        With `shown`, one picture [side, side, 3], all coordinates stand for it.
        """
        self.camera, self._shown = camera, shown
        self._known_PG, self._known_PF = known_PG, known_PF
        self.size, self.goal_size = camera.size, known_PG.shape[1]
        self.places: GoalPoints | None = None
        self._kept: dict[bytes, Tensor] = {}
        # The newest goals that were filmed: those of a video stay the same for many frames.
        self._filmed: tuple[bytes, Pictures] = (b"", np.zeros(0, np.uint8))

    @cached_property
    def _task(self) -> Task:
        return filmed_task(self.camera.settings.task)

    def check_task(self, name: str) -> None:
        """Raise EncoderError for a task that looks otherwise than the one that is filmed."""
        self.camera.check_task(name)

    def film(self, goals: Any) -> Pictures:
        """Pictures [N, side, side, 3], uint8, of the task where goals [N, G] are achieved.

        Raises GoalStateError if no such positions are found, RenderError if nothing can be drawn.
        """
        goal_NG = torch.as_tensor(goals, dtype=torch.float32, device="cpu")
        return self.camera.film(goal_states(self._task, goal_NG))

    def showing(self, picture: "Pictures | str | Path") -> "PictureReader":
        """The reader that commands one goal by this picture, and judges by the nearest known goal.

        Raises EncoderError if it shows something else than the task.
        """
        (shown,) = self._given(picture)
        made = PictureReader(self.camera, self._known_PG, self._known_PF, shown)
        made.places = GoalPoints(self.nearest_goal(shown)[None], named=False)
        return made

    def nearest_goal(self, picture: "Pictures | str | Path") -> Tensor:
        """The known goal [G] whose picture is most like this one. Raises as `showing` does."""
        (given,) = self._given(picture)
        self.camera.check_known(given)
        distance_P = (self._known_PF - self.camera.of_pictures(given[None])).norm(dim=-1)
        return self._known_PG[int(distance_P.argmin())]

    def _given(self, picture: Any) -> Pictures:
        """One or more pictures, or one in a file, as [N, side, side, 3]."""
        if isinstance(picture, str | Path):
            picture = _read(Path(picture))
        given = np.asarray(picture)
        return self.camera.checked(given[None] if given.ndim == 3 else given)

    def __call__(self, goal: Any) -> Tensor:
        """Features [..., F] of a picture, of several, of one in a file, or of goals [..., G].

        Raises EncoderError, ValueError, GoalStateError, RenderError.
        """
        if isinstance(goal, str | Path):
            return self.camera.of_pictures(self._given(goal))[0]
        given = goal if isinstance(goal, Tensor | np.ndarray) else np.asarray(goal)
        if given.dtype in (np.uint8, torch.uint8):
            features_NF = self.camera.of_pictures(self._given(given))
            return features_NF[0] if given.ndim == 3 else features_NF
        if not isinstance(given, Tensor):
            given = torch.from_numpy(np.array(given, dtype=np.float32))
        return self.of_goals(given.float())

    def of_goals(self, goal: Tensor) -> Tensor:
        """Features [..., F] of the pictures of goals [..., G]; each goal is filmed once."""
        if goal.shape[-1:] != (self.goal_size,):
            raise ValueError(
                f"this policy takes a picture, or a goal of {self.goal_size} numbers, which it "
                f"films; got shape {list(goal.shape)}"
            )
        rows_NG = goal.reshape(-1, self.goal_size).cpu()
        if not rows_NG.isfinite().all():
            raise NotFiniteError("the policy was given a goal that is not finite")
        if self._shown is not None:
            rows_NG = torch.zeros_like(rows_NG)
        features_NF = self._kept_features(rows_NG)
        return features_NF.view(*goal.shape[:-1], self.size).to(goal.device)

    def _kept_features(self, goal_NG: Tensor) -> Tensor:
        keys = [row.tobytes() for row in goal_NG.numpy()]
        if not keys:
            return torch.empty(0, self.size)
        if len(self._kept) + len(keys) > _MOST_KEPT:
            self._kept.clear()
        new = {key: row for row, key in enumerate(keys) if key not in self._kept}
        if new:
            pictures = self.pictures_of(goal_NG[[*new.values()]])
            self._kept |= zip(new, self.camera.of_pictures(pictures), strict=True)
        return torch.stack([self._kept[key] for key in keys])

    def phrases_of(self, goal_NG: Tensor) -> None:
        """No sentences stand for these goals."""

    def pictures_of(self, goal_NG: Tensor) -> Pictures:
        """The pictures that stand for goals [N, G] of the task."""
        if self._shown is not None:
            return self._shown[None].repeat(len(goal_NG), 0)
        key = goal_NG.cpu().numpy().tobytes()
        if self._filmed[0] != key:
            self._filmed = key, self.film(goal_NG)
        return self._filmed[1]

    def description(self) -> dict[str, Any]:
        """The camera's settings, and that goals are pictures."""
        return {"kind": "pictures", **self.camera.description()}

    def tensors(self) -> dict[str, Tensor]:
        """The numbers of the camera and the known goals by name."""
        return {
            "known_PG": self._known_PG,
            "known_PF": self._known_PF,
            **self.camera.tensors(),
        }

    @classmethod
    def rebuild(cls, description: dict[str, Any], tensors: dict[str, Tensor]) -> "PictureReader":
        """What `description` and `tensors` are of. Raises ValueError if they do not fit."""
        rest = dict(tensors)
        known = [rest.pop(name, torch.empty(0)) for name in ("known_PG", "known_PF")]
        settings = {name: value for name, value in description.items() if name != "kind"}
        camera = Camera.rebuild(settings, rest)
        count, goal_size = len(known[0]), known[0].shape[-1]
        if not count or known[0].ndim != 2:
            raise ValueError("it knows no pictures of goals")
        wanted = {"known_PG": (count, goal_size), "known_PF": (count, camera.size)}
        check_tables(dict(zip(wanted, known, strict=True)), wanted)
        return cls(camera, known[0], known[1])


class PictureGoals(GoalSpace):
    """The goal space of a run: hindsight shows pictures that were taken of every k-th row."""

    def __init__(
        self,
        task_name: str,
        encoder: str,
        size: int,
        *,
        side: int,
        every: int,
        rows: int,
        num_envs: int,
        discount: float,
        device: torch.device,
    ) -> None:
        """Films goals of the task, and chooses features that tell them apart.

        Args:
            size: F, the number of features.
            side: of a picture, in pixels.
            every: k, the number of rows of the replay from one picture to the next.
            rows: capacity of the replay, a multiple of `every`.
            discount: that of hindsight goals.

        Raises EncoderError, RenderError, GoalStateError.
        """
        self.size, self.every, self._discount, self._device = size, every, discount, device
        task = make_task(task_name)
        goal_PG = task.sample_start(KNOWN, Generator().manual_seed(0)).goal_NG.float()
        # Where a task has few goals, hindsight shows what lies between them.
        share_P1 = torch.linspace(0.0, 1.0, KNOWN)[:, None]
        between_PG = torch.lerp(goal_PG, goal_PG.flip(0), share_P1)
        qpos_MQ = goal_states(task, torch.cat([goal_PG, between_PG]))
        camera, features_MF = Camera.fit(task_name, qpos_MQ, encoder=encoder, side=side, size=size)
        self._pictures = torch.zeros(
            rows // every, num_envs, size, dtype=torch.float16, device=device
        )
        self._use(PictureReader(camera, goal_PG, features_MF[:KNOWN]))

    def _use(self, reader: PictureReader) -> None:
        self.reader = reader
        known = reader.tensors()
        self._points, self._known = Constant(known["known_PG"]), Constant(known["known_PF"])
        self._points.on(self._device), self._known.on(self._device)

    @property
    def places(self) -> GoalPoints:
        """The goals that are commanded in training."""
        return GoalPoints(self.reader.tensors()["known_PG"], named=False)

    def state_dict(self) -> dict[str, Tensor]:
        """The pictures so far, and what the networks were trained on."""
        return self.reader.tensors() | {"pictures": self._pictures}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        rest = dict(tensors)
        self._pictures.copy_(rest.pop("pictures"))
        self._use(PictureReader.rebuild(self.reader.description(), rest))

    def film(self, qpos_NQ: Tensor, row: int) -> None:
        """Take pictures of all envs before the step that becomes this row, if it is a k-th one."""
        if row % self.every == 0:
            camera = self.reader.camera
            features_NF = camera.of_pictures(camera.film(qpos_NQ))
            self._pictures[row // self.every % len(self._pictures)] = features_NF.half()

    def of_future(
        self,
        goal_BG: Tensor,  # noqa: ARG002
        drawn: RelabeledBatch,
        generator: Generator,
    ) -> dict[str, Tensor]:
        """Features of a picture that was taken later in each trajectory, by `multiple_ahead`.

        `whole` is 0 for steps after the last picture of their trajectory; their goals are earlier
        pictures of the same env, which serve others as negatives.
        """
        uniform_B = torch.rand(
            len(drawn.row_B), generator=generator, device=drawn.row_B.device, dtype=torch.float64
        )
        row_B, is_ahead_B = multiple_ahead(
            uniform_B, drawn.row_B, drawn.last_B, every=self.every, discount=self._discount
        )
        slot_B = row_B // self.every % len(self._pictures)
        goal_BF = self._pictures[slot_B, drawn.column_B].float()
        return {"goal": goal_BF, "whole": is_ahead_B.float()}

    def commanded(self, goal_NG: Tensor, episode_N: Tensor) -> Tensor:  # noqa: ARG002
        """Features of the picture of the nearest goal that was filmed before training."""
        device = goal_NG.device
        return self._known.on(device)[nearest(self._points.on(device), goal_NG)]


def _read(path: Path) -> Pictures:
    """A picture file as red, green and blue [H, W, 3]. Raises EncoderError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
        raise EncoderError(
            f"{path} is no picture that can be read: {in_one_line(error)}"
        ) from error
