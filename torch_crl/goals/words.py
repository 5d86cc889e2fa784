"""Goals as sentences about the places of a task, read through a frozen encoder.

B batch, N envs, G goal of the task, P places, F features.
"""

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from torch_crl.encoders import load_encoder
from torch_crl.encoders.projection import fit_projection
from torch_crl.envs.places import GoalPoints, Places, nearest
from torch_crl.envs.tasks.sampling import Constant
from torch_crl.goals.sentences import Reader, Tables, Vocabulary, plain
from torch_crl.goals.space import GoalSpace
from torch_crl.kernels.relabel import RelabeledBatch

NOISE = 0.25
"""Standard deviation of the noise on the features that networks learn from, whose own mean square
is 1. With it they learn to reach more of the places (benchmarks/LOG.md)."""


class WordGoals(GoalSpace):
    """The goal space of a run: hindsight describes the place where the robot got to."""

    def __init__(
        self,
        places: Places,
        encoder: str,
        size: int,
        *,
        device: torch.device,
        tells_places: bool = False,
    ) -> None:
        """Encodes all phrases. With `tells_places` a batch has the number of each goal's place.

        Raises EncoderError, and ValueError for an impossible size.
        """
        self._tells_places = tells_places
        loaded = load_encoder(encoder)
        count, each = len(places.names), len(places.phrases[0])
        said_ME = loaded.encode_text([plain(text) for some in places.phrases for text in some])
        said_PKE = said_ME.view(count, each, -1)
        projection = fit_projection(said_PKE, size)

        def table(texts: Sequence[Sequence[str]]) -> Tensor:
            flat = [plain(text) for some in texts for text in some]
            return projection(loaded.encode_text(flat)).view(len(texts), -1, size)

        centre_PE = said_PKE.mean(1)
        self.size = size
        self.reader = Reader(
            Vocabulary(
                encoder=encoder,
                sha256=loaded.sha256,
                names=places.names,
                phrases=places.phrases,
                unseen=places.unseen,
                size=size,
                goal_size=places.point_PG.shape[1],
                embedding_size=loaded.size,
            ),
            Tables(
                point_PG=places.point_PG,
                phrases_PKF=table(places.phrases),
                unseen_PKF=table(places.unseen),
                centre_PE=torch.nn.functional.normalize(centre_PE, dim=-1),
                mean_E=projection.mean_E,
                basis_EF=projection.basis_EF,
            ),
        )
        self._places = places
        phrases_PKF, near_PKF = self.reader.tensors()["phrases_PKF"], table(places.near)
        # One table for all: the places one after the other, and then what is near them. Phrases are
        # repeated, so that all have equally many rows.
        self._each = math.lcm(each, near_PKF.shape[1])
        rows = [
            part.repeat(1, self._each // part.shape[1], 1).flatten(0, 1)
            for part in (phrases_PKF, near_PKF)
        ]
        self._features = Constant(torch.cat(rows))
        self._points = Constant(places.point_PG)
        self._device = device
        self._features.on(device), self._points.on(device)

    @property
    def places(self) -> GoalPoints:
        """The points of all places."""
        return self.reader.places

    def state_dict(self) -> dict[str, Tensor]:
        """What networks were trained on: another machine may find other components."""
        return self.reader.tensors() | {"features": self._features.on(torch.device("cpu"))}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Restore what `state_dict` returned."""
        rest = dict(tensors)
        if rest["features"].shape != self._features.on(self._device).shape:
            raise ValueError("it is of a version of torch_crl that chose phrases in another way")
        self._features = Constant(rest.pop("features"))
        self._features.on(self._device)
        self.reader = Reader(self.reader.vocabulary, Tables(**rest))

    def of_future(
        self,
        goal_BG: Tensor,
        drawn: RelabeledBatch,  # noqa: ARG002
        generator: Generator,
    ) -> dict[str, Tensor]:
        """A phrase of the place where each goal is, or of what is near it, with noise.

        `place` is the number of the place, or P more for near it.
        """
        uniform_2B = torch.rand(2, len(goal_BG), generator=generator, device=goal_BG.device)
        index_B, there_B = self._places.place(goal_BG, uniform_2B[0])
        place_B = torch.where(there_B, index_B, index_B + len(self._places.names))
        told = {"place": place_B} if self._tells_places else {}
        phrase_BF = self._phrase(place_B, uniform_2B[1])
        noise_BF = torch.randn(phrase_BF.shape, generator=generator, device=phrase_BF.device)
        return {"goal": torch.add(phrase_BF, noise_BF, alpha=NOISE)} | told

    def commanded(self, goal_NG: Tensor, episode_N: Tensor) -> Tensor:
        """A phrase of the nearest place, chosen by the numbers of env, episode and place."""
        device = goal_NG.device
        place_N = nearest(self._points.on(device), goal_NG)
        env_N = torch.arange(len(goal_NG), device=device)
        mixed_N = _mixed(episode_N.long() * 1_000_003 + env_N * 8_191 + place_N)
        return self._phrase(place_N, mixed_N.double() / 2**31)

    def _phrase(self, place_N: Tensor, uniform_N: Tensor) -> Tensor:
        """Features [N, F] of one phrase of each place, by numbers in [0, 1)."""
        number_N = (uniform_N * self._each).long()
        row_N = torch.add(number_N, place_N, alpha=self._each)
        return self._features.on(place_N.device).index_select(0, row_N)


def _mixed(x_N: Tensor) -> Tensor:
    """Numbers in [0, 2^31) in which consecutive numbers have nothing in common any more."""
    for factor in (0x45D9F3B, 0x119DE1F3):
        x_N = ((x_N ^ (x_N >> 15)) * factor) & 0x7FFFFFFF
    return x_N ^ (x_N >> 15)
