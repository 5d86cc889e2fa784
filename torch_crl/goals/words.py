"""Goals as sentences about the places of a task, read through a frozen encoder.

B batch, N envs, G goal of the task, P places, K phrases of a place, E embedding, F features.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from torch_crl import fields
from torch_crl.encoders import Encoder, load_encoder
from torch_crl.encoders.projection import Projection, check_tables, fit_projection
from torch_crl.envs.places import GoalPoints, Places, nearest
from torch_crl.envs.tasks.sampling import Constant
from torch_crl.errors import NotFiniteError, UsageError
from torch_crl.fields import STRICT, Count
from torch_crl.goals.space import GoalSpace
from torch_crl.kernels.relabel import Batch

MOST_CHARACTERS = 500
"""Length of the longest sentence that is read."""
LEAST_SIMILARITY = 0.5
"""Cosine between a sentence and the mean of the known ones of a place, below which the sentence
counts as one about something else."""
NOISE = 0.25
"""Standard deviation of the noise on the features that networks learn from, whose own mean square
is 1: sentences of other forms are about as far from the known ones."""
_SHOWN = 3


class SentenceError(UsageError):
    """A sentence cannot be read, or is far from everything that the policy knows."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """All that turns sentences and goals into features, as it is saved with a policy."""

    __pydantic_config__ = STRICT

    encoder: str
    sha256: str
    names: tuple[str, ...]
    """P names of places."""
    phrases: tuple[tuple[str, ...], ...]
    """[P][K] phrases to learn from."""
    unseen: tuple[tuple[str, ...], ...]
    """[P][K'] phrases to evaluate with."""
    size: Count
    """F, the number of features."""
    goal_size: Count
    """G, the length of the task's goals."""
    embedding_size: Count
    """E, the length of the encoder's embeddings."""


@dataclass(frozen=True, kw_only=True)
class _Tables:
    """The numbers of a vocabulary."""

    point_PG: Tensor
    phrases_PKF: Tensor
    unseen_PKF: Tensor
    centre_PE: Tensor
    """The mean embedding of the phrases of each place, of norm 1."""
    mean_E: Tensor
    basis_EF: Tensor


@dataclass(frozen=True)
class _Commands:
    """The places that goals of the task may stand for, and the phrases that command them."""

    point_PG: Tensor
    phrases: tuple[tuple[str, ...], ...]
    phrases_PKF: Tensor


class Reader:
    """Reads goals of a policy: sentences, or coordinates as the nearest place's phrases."""

    films = False

    def __init__(
        self, vocabulary: Vocabulary, tables: _Tables, commands: "_Commands | None" = None
    ) -> None:
        """Without `commands`, these are all places by the phrases that the policy learned from."""
        self.vocabulary, self._tables = vocabulary, tables
        self.size, self.goal_size = vocabulary.size, vocabulary.goal_size
        self._commands = commands or _Commands(
            tables.point_PG, vocabulary.phrases, tables.phrases_PKF
        )
        self.point_PG = self._commands.point_PG
        self._points = Constant(self.point_PG)
        self._phrases = Constant(self._commands.phrases_PKF)
        self._known = {
            _plain(phrase): tables.phrases_PKF[place, number]
            for place, phrases in enumerate(vocabulary.phrases)
            for number, phrase in enumerate(phrases)
        }

    @property
    def places(self) -> GoalPoints:
        """The places that it commands."""
        return GoalPoints(self.point_PG)

    def with_unseen(self) -> "Reader":
        """The reader that commands places by phrases of which the policy has not learned."""
        commands = _Commands(self._tables.point_PG, self.vocabulary.unseen, self._tables.unseen_PKF)
        return Reader(self.vocabulary, self._tables, commands)

    def saying(self, sentence: str) -> "Reader":
        """The reader that commands one place, the most similar one, by this very sentence.

        Raises SentenceError, EncoderError.
        """
        place = self.vocabulary.names.index(self.nearest_place(sentence)[0])
        said_11F = self.read([sentence])[None]
        point_1G = self._tables.point_PG[place : place + 1]
        return Reader(self.vocabulary, self._tables, _Commands(point_1G, ((sentence,),), said_11F))

    def check_task(self, name: str) -> None:
        """Goals that are sentences do not look like anything."""

    def pictures_of(self, goal_NG: Tensor) -> None:
        """No pictures stand for these goals."""

    def phrases_of(self, goal_NG: Tensor) -> list[str]:
        """The sentence by which each of these goals is commanded, row by row."""
        place_N = nearest(self._points.on(goal_NG.device), goal_NG).tolist()
        phrases = self._commands.phrases
        return [phrases[place][row % len(phrases[place])] for row, place in enumerate(place_N)]

    def __call__(self, goal: Any) -> Tensor:
        """Features [..., F] of a sentence, of a list of sentences, or of coordinates [..., G].

        Coordinates stand for the nearest place; row i gets phrase i of that place, and so on.
        Raises SentenceError, ValueError.
        """
        if isinstance(goal, str):
            return self.read([goal])[0]
        if isinstance(goal, list | tuple) and goal and all(isinstance(each, str) for each in goal):
            return self.read(list(goal))
        if isinstance(goal, Tensor):
            return self.of_goals(goal.float())
        return self.of_goals(torch.from_numpy(np.array(goal, dtype=np.float32)))

    def of_goals(self, goal: Tensor) -> Tensor:
        """Features [..., F] of the nearest places of goals [..., G]."""
        if goal.shape[-1:] != (self.goal_size,):
            raise ValueError(
                f"this policy takes a sentence, or a goal of {self.goal_size} numbers for the "
                f"nearest of its places; got shape {list(goal.shape)}"
            )
        if goal.is_cpu and not goal.isfinite().all():
            raise NotFiniteError("the policy was given a goal that is not finite")
        goal_NG = goal.reshape(-1, self.goal_size)
        place_N = nearest(self._points.on(goal.device), goal_NG)
        phrases_PKF = self._phrases.on(goal.device)
        row_N = torch.arange(len(goal_NG), device=goal.device) % phrases_PKF.shape[1]
        return phrases_PKF[place_N, row_N].reshape(*goal.shape[:-1], self.size)

    def read(self, sentences: Sequence[str]) -> Tensor:
        """Features [N, F] of sentences; those that were learned from need no encoder.

        Raises SentenceError for an empty, very long or unrelated sentence, EncoderError if the
        encoder is missing or not the one of the training.
        """
        features = {text: self._known.get(_plain(text)) for text in sentences}
        new = [text for text, known in features.items() if known is None]
        for text in new:
            _check_length(text)
        if new:
            features |= zip(new, self._encoded(new), strict=True)
        return torch.stack([features[text] for text in sentences])  # type: ignore[misc]

    @property
    def _encoder(self) -> Encoder:
        return load_encoder(self.vocabulary.encoder, self.vocabulary.sha256)

    def _encoded(self, sentences: list[str]) -> Tensor:
        embedding_NE = self._encoder.encode_text([*map(_plain, sentences)])
        for text, similarity_P in zip(
            sentences, embedding_NE @ self._tables.centre_PE.T, strict=True
        ):
            if not similarity_P.max() >= LEAST_SIMILARITY:
                raise SentenceError(self._unrelated(text, similarity_P))
        return Projection(self._tables.mean_E, self._tables.basis_EF)(embedding_NE)

    def _unrelated(self, text: str, similarity_P: Tensor) -> str:
        names, count = self.vocabulary.names, min(_SHOWN, len(similarity_P))
        best, places = similarity_P.topk(count)
        near = ", ".join(
            f"{names[place]!r} ({similarity:.2f})"
            for similarity, place in zip(best.tolist(), places.tolist(), strict=True)
        )
        return (
            f"{_shortly(text)} is not like any sentence that this policy knows; the nearest "
            f"places are {near}, and a similarity of {LEAST_SIMILARITY} is needed. It knows "
            f"sentences such as {self.vocabulary.phrases[int(places[0])][0]!r}"
        )

    def nearest_place(self, sentence: str) -> tuple[str, float]:
        """The name of the place that a sentence is most like, and the similarity.

        Raises SentenceError, EncoderError.
        """
        _check_length(sentence)
        for name, phrases in zip(self.vocabulary.names, self.vocabulary.phrases, strict=True):
            if _plain(sentence) in map(_plain, phrases):
                return name, 1.0
        (embedding_E,) = self._encoder.encode_text([_plain(sentence)])
        similarity, place = (self._tables.centre_PE @ embedding_E).max(0)
        return self.vocabulary.names[int(place)], float(similarity)

    def description(self) -> dict[str, Any]:
        """The vocabulary as JSON takes it."""
        return dataclasses.asdict(self.vocabulary)

    def tensors(self) -> dict[str, Tensor]:
        """The numbers of the vocabulary by name."""
        return {
            field.name: getattr(self._tables, field.name) for field in dataclasses.fields(_Tables)
        }

    @classmethod
    def rebuild(cls, description: dict[str, Any], tensors: dict[str, Tensor]) -> "Reader":
        """What `description` and `tensors` are of. Raises ValueError if they do not fit."""
        vocabulary = fields.read(Vocabulary, json.dumps(description))
        for phrases in (vocabulary.phrases, vocabulary.unseen):
            counts = {len(each) for each in phrases}
            if len(counts) != 1 or 0 in counts or len(phrases) != len(vocabulary.names):
                raise ValueError("its places have no phrases, or different numbers of them")
        places, size = len(vocabulary.names), vocabulary.size
        wanted = {
            "point_PG": (places, vocabulary.goal_size),
            "phrases_PKF": (places, len(vocabulary.phrases[0]), size),
            "unseen_PKF": (places, len(vocabulary.unseen[0]), size),
            "centre_PE": (places, vocabulary.embedding_size),
            "mean_E": (vocabulary.embedding_size,),
            "basis_EF": (vocabulary.embedding_size, size),
        }
        check_tables(tensors, wanted)
        return cls(vocabulary, _Tables(**tensors))


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
        said_ME = loaded.encode_text([_plain(text) for some in places.phrases for text in some])
        said_PKE = said_ME.view(count, each, -1)
        projection = fit_projection(said_PKE, size)

        def table(texts: Sequence[Sequence[str]]) -> Tensor:
            flat = [_plain(text) for some in texts for text in some]
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
            _Tables(
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
        # One table for all: the places one after the other, and then what is near them.
        self._features = Constant(torch.cat([phrases_PKF.flatten(0, 1), near_PKF.flatten(0, 1)]))
        first_P, near = torch.arange(count) * each, near_PKF.shape[1]
        self._first = Constant(torch.cat([first_P, count * each + torch.arange(count) * near]))
        self._count = Constant(torch.tensor([each] * count + [near] * count))
        self._points = Constant(places.point_PG)
        self._device = device
        self._features.on(device), self._first.on(device), self._count.on(device)

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
        self._features = Constant(rest.pop("features"))
        self._features.on(self._device)
        self.reader = Reader(self.reader.vocabulary, _Tables(**rest))

    def of_future(
        self,
        goal_BG: Tensor,
        drawn: Batch,  # noqa: ARG002
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
        return {"goal": phrase_BF + NOISE * noise_BF} | told

    def commanded(self, goal_NG: Tensor, episode_N: Tensor) -> Tensor:
        """A phrase of the nearest place, chosen by the numbers of env, episode and place."""
        device = goal_NG.device
        place_N = nearest(self._points.on(device), goal_NG)
        env_N = torch.arange(len(goal_NG), device=device)
        mixed_N = _mixed(episode_N.long() * 1_000_003 + env_N * 8_191 + place_N)
        return self._phrase(place_N, mixed_N.double() / 2**31)

    def _phrase(self, place_N: Tensor, uniform_N: Tensor) -> Tensor:
        """Features [N, F] of one phrase of each place, by numbers in [0, 1)."""
        device = place_N.device
        count_N = self._count.on(device)[place_N]
        number_N = (uniform_N * count_N).long().clamp(max=count_N - 1)
        return self._features.on(device)[self._first.on(device)[place_N] + number_N]


def _mixed(x_N: Tensor) -> Tensor:
    """Numbers in [0, 2^31) in which consecutive numbers have nothing in common any more."""
    for factor in (0x45D9F3B, 0x119DE1F3):
        x_N = ((x_N ^ (x_N >> 15)) * factor) & 0x7FFFFFFF
    return x_N ^ (x_N >> 15)


def _plain(text: str) -> str:
    """Lower case, single spaces, no full stop: sentences that differ in no more are the same."""
    return re.sub(r"\s+", " ", text).strip().rstrip(".!").lower()


def _check_length(text: str) -> None:
    if not _plain(text):
        raise SentenceError("the sentence is empty; say where to go, as in 'go to the left side'")
    if len(text) > MOST_CHARACTERS:
        raise SentenceError(
            f"the sentence has {len(text):,} characters, and at most {MOST_CHARACTERS} are read"
        )


def _shortly(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
