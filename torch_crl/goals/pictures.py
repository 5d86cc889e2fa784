"""Goals as pictures: what a camera sees where a goal is achieved, through a frozen encoder.

B batch, N envs, S state, G goal of the task, Q positions, P known goals, E embedding, F features.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from torch_crl import fields
from torch_crl.envs.goal_states import goal_states
from torch_crl.envs.places import GoalPoints, nearest
from torch_crl.envs.registry import make_task
from torch_crl.envs.tasks.sampling import Constant
from torch_crl.errors import NotFiniteError, UsageError, in_one_line
from torch_crl.fields import STRICT, Count, Positive
from torch_crl.goals.encoders import Encoder, load_encoder
from torch_crl.goals.projection import Projection, fit_components
from torch_crl.goals.space import GoalSpace, check_tables
from torch_crl.kernels.relabel import Batch, multiple_ahead
from torch_crl.rendering.renderer import Image
from torch_crl.rendering.snapshots import Snapshots

KNOWN = 128
"""P, the number of goals that are filmed before training, and commanded in it."""
MOST_FEATURES = KNOWN
"""The largest number of features that so few goals can tell apart."""
MOST_UNLIKE = 3.0
"""A picture of which more is left over than of the known ones, by this factor, shows something
else."""
_MOST_KEPT = 100_000


class PictureError(UsageError):
    """A picture cannot be read, or shows nothing that the policy knows."""


@dataclass(frozen=True, kw_only=True)
class Album:
    """All that turns pictures into features, as it is saved with a policy."""

    __pydantic_config__ = STRICT

    kind: str
    encoder: str
    sha256: str
    task: str
    """The task in which goals that are given as coordinates are filmed."""
    side: Count
    """Width and height of a picture in pixels."""
    size: Count
    """F, the number of features."""
    goal_size: Count
    """G, the length of the task's goals."""
    embedding_size: Count
    """E, the length of the encoder's embeddings."""
    left_over: Positive
    """Length of what the features leave out of an embedding, the largest over the known goals."""


@dataclass(frozen=True, kw_only=True)
class _Tables:
    """The numbers of an album."""

    known_PG: Tensor
    known_PF: Tensor
    mean_E: Tensor
    basis_EF: Tensor


class PictureReader:
    """Reads goals of a policy: pictures, or coordinates, which are filmed."""

    def __init__(self, album: Album, tables: _Tables, shown: Image | None = None) -> None:
        """With `shown`, one picture [1, side, side, 3], all coordinates stand for it."""
        self.album, self._tables, self._shown = album, tables, shown
        self.size, self.goal_size = album.size, album.goal_size
        self.places: GoalPoints | None = None
        self._projection = Projection(tables.mean_E, tables.basis_EF)
        self._kept: dict[bytes, Tensor] = {}
        # The newest goals that were filmed: those of a video stay the same for many frames.
        self._filmed: tuple[bytes, Image] = (b"", np.zeros(0, np.uint8))

    @cached_property
    def _snapshots(self) -> Snapshots:
        return Snapshots(make_task(self.album.task), self.album.side)

    @property
    def _encoder(self) -> Encoder:
        return load_encoder(self.album.encoder, self.album.sha256)

    def film(self, goal_NG: Tensor) -> Image:
        """Pictures [N, side, side, 3], uint8, of the task where these goals are achieved.

        Raises GoalStateError if no such positions are found, RenderError if nothing can be drawn.
        """
        return self._snapshots(goal_states(self._snapshots.task, goal_NG.float().cpu()))

    def of_pictures(self, pictures: Image) -> Tensor:
        """Features [N, F] of pictures [N, side, side, 3]. Raises EncoderError."""
        return self._projection(self._encoder.encode_image(pictures))

    def showing(self, picture: "Image | str | Path") -> "PictureReader":
        """The reader that commands one goal by this picture, and judges by the nearest known goal.

        Raises PictureError if it is like no picture of a known goal, EncoderError.
        """
        made = PictureReader(self.album, self._tables, self._checked(picture)[:1])
        made.places = GoalPoints(self.nearest_goal(picture)[None], named=False)
        return made

    def nearest_goal(self, picture: "Image | str | Path") -> Tensor:
        """The known goal [G] whose picture is most like this one. Raises as `showing` does."""
        embedding_1E = self._encoder.encode_image(self._checked(picture)[:1])
        unlike = float(self._projection.left_over(embedding_1E))
        if not unlike <= MOST_UNLIKE * self.album.left_over:
            raise PictureError(
                f"the picture is not like those of {self.album.task}: of its features, "
                f"{unlike:.2g} are none that this policy knows, and at most "
                f"{MOST_UNLIKE * self.album.left_over:.2g} is taken. policy.reader.film(goals) "
                "takes pictures that it knows"
            )
        distance_P = (self._tables.known_PF - self._projection(embedding_1E)).norm(dim=-1)
        return self._tables.known_PG[int(distance_P.argmin())]

    def _checked(self, picture: Any) -> Image:
        """One or more pictures, or one in a file, as [N, side, side, 3]."""
        if isinstance(picture, str | Path):
            picture = _read(Path(picture))
        pictures = np.asarray(picture)
        pictures = pictures[None] if pictures.ndim == 3 else pictures
        side = self.album.side
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (side, side, 3):
            raise PictureError(
                f"this policy takes pictures of {side} x {side} pixels in 8-bit red, green and "
                f"blue, got {pictures.dtype} of shape {list(np.shape(picture))}; "
                "policy.reader.film(goals) takes such ones"
            )
        return pictures

    def __call__(self, goal: Any) -> Tensor:
        """Features [..., F] of a picture, of several, of one in a file, or of goals [..., G].

        Raises PictureError, ValueError, GoalStateError, RenderError.
        """
        if isinstance(goal, str | Path):
            return self.of_pictures(self._checked(goal))[0]
        given = goal if isinstance(goal, Tensor | np.ndarray) else np.asarray(goal)
        if given.dtype in (np.uint8, torch.uint8):
            features_NF = self.of_pictures(self._checked(given))
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
        new = {key: row for row, key in enumerate(keys) if key not in self._kept}
        if len(self._kept) + len(new) > _MOST_KEPT:
            self._kept.clear()
            new = {key: row for row, key in enumerate(keys)}
        if new:
            features_MF = self.of_pictures(self.pictures_of(goal_NG[[*new.values()]]))
            self._kept |= zip(new, features_MF, strict=True)
        return torch.stack([self._kept[key] for key in keys])

    def phrases_of(self, goal_NG: Tensor) -> None:
        """No sentences stand for these goals."""

    def pictures_of(self, goal_NG: Tensor) -> Image:
        """The pictures that stand for goals [N, G] of the task."""
        if self._shown is not None:
            return self._shown.repeat(len(goal_NG), 0)
        key = goal_NG.cpu().numpy().tobytes()
        if self._filmed[0] != key:
            self._filmed = key, self.film(goal_NG)
        return self._filmed[1]

    def description(self) -> dict[str, Any]:
        """The album as JSON takes it."""
        return dataclasses.asdict(self.album)

    def tensors(self) -> dict[str, Tensor]:
        """The numbers of the album by name."""
        return dict(vars(self._tables))

    @classmethod
    def rebuild(cls, description: dict[str, Any], tensors: dict[str, Tensor]) -> "PictureReader":
        """What `description` and `tensors` are of. Raises ValueError if they do not fit."""
        album = fields.read(Album, json.dumps(description))
        known = len(tensors["known_PG"]) if "known_PG" in tensors else 0
        wanted = {
            "known_PG": (known, album.goal_size),
            "known_PF": (known, album.size),
            "mean_E": (album.embedding_size,),
            "basis_EF": (album.embedding_size, album.size),
        }
        check_tables(tensors, wanted)
        if known < 2:
            raise ValueError("it knows pictures of fewer than two goals")
        return cls(album, _Tables(**tensors))


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

        Raises EncoderError, RenderError, GoalStateError, and ValueError for an impossible size.
        """
        self.size, self.every, self._discount = size, every, discount
        loaded = load_encoder(encoder)
        task = make_task(task_name)
        self._snapshots = Snapshots(task, side)
        goal_PG = task.sample_start(KNOWN, Generator().manual_seed(0)).goal_NG.float()
        # Where a task has few goals, hindsight shows what lies between them.
        share_P1 = torch.linspace(0.0, 1.0, KNOWN)[:, None]
        between_PG = torch.lerp(goal_PG, goal_PG.flip(0), share_P1)
        pictures = self._snapshots(goal_states(task, torch.cat([goal_PG, between_PG])))
        embedding_ME = loaded.encode_image(pictures)
        projection = fit_components(embedding_ME, size)
        album = Album(
            kind="pictures",
            encoder=encoder,
            sha256=loaded.sha256,
            task=task_name,
            side=side,
            size=size,
            goal_size=goal_PG.shape[1],
            embedding_size=embedding_ME.shape[1],
            left_over=float(projection.left_over(embedding_ME).max()),
        )
        self._device = device
        self._pictures = torch.zeros(
            rows // every, num_envs, size, dtype=torch.float16, device=device
        )
        known_PF = projection(embedding_ME[:KNOWN])
        self._use(album, _Tables(known_PG=goal_PG, known_PF=known_PF, **projection._asdict()))

    def _use(self, album: Album, tables: _Tables) -> None:
        self.reader = PictureReader(album, tables)
        self._points, self._known = Constant(tables.known_PG), Constant(tables.known_PF)
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
        self._use(self.reader.album, _Tables(**rest))

    def film(self, qpos_NQ: Tensor, row: int) -> None:
        """Take pictures of all envs before the step that becomes this row, if it is a k-th one."""
        if row % self.every == 0:
            features_NF = self.reader.of_pictures(self._snapshots(qpos_NQ))
            self._pictures[row // self.every % len(self._pictures)] = features_NF.half()

    def of_future(
        self,
        goal_BG: Tensor,  # noqa: ARG002
        drawn: Batch,
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


def _read(path: Path) -> Image:
    """A picture file as red, green and blue [H, W, 3]. Raises PictureError."""
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    try:
        with Pillow.open(path) as picture:
            return np.array(picture.convert("RGB"))
    except (OSError, UnidentifiedImageError, ValueError) as error:
        raise PictureError(
            f"{path} is no picture that can be read: {in_one_line(error)}"
        ) from error
