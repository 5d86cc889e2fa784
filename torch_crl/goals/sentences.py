"""What a policy that is commanded by sentences makes of them.

N goals, G goal of the task, P places, K phrases of a place, E embedding, F features.
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from torch_crl import fields
from torch_crl.encoders import load_encoder
from torch_crl.encoders.projection import Projection, check_tables
from torch_crl.envs.places import GoalPoints, nearest
from torch_crl.envs.tasks.sampling import Constant
from torch_crl.errors import NotFiniteError, UsageError
from torch_crl.fields import STRICT, Count

MOST_CHARACTERS = 500
"""Length of the longest sentence that is read."""
LEAST_SIMILARITY = 0.5
"""Cosine between a sentence and the mean of the known ones of a place, below which the sentence
counts as one about something else."""
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
class Tables:
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


class Meaning(NamedTuple):
    """How a sentence is read."""

    place: int
    number: int
    """The phrase of that place that the networks see in the sentence's place."""
    similarity: float
    """Cosine between the sentence and the mean of the place's phrases; 1 for a known sentence."""


class Reader:
    """Reads goals of a policy: sentences, or coordinates as the nearest place's phrases.

    Networks see the phrases that they have learned from and nothing else: a new sentence is read as
    the phrase whose features are nearest to its own. These lie half as far from it as phrases do
    from the mean of all, and policies that are given them take some places for others
    (benchmarks/LOG.md).
    """

    films = False

    def __init__(
        self, vocabulary: Vocabulary, tables: Tables, commands: "_Commands | None" = None
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
        # All of them, those of one place after those of the other.
        self._phrases_NF = tables.phrases_PKF.flatten(0, 1)
        self._known = {
            plain(phrase): Meaning(place, number, 1.0)
            for place, phrases in enumerate(vocabulary.phrases)
            for number, phrase in enumerate(phrases)
        }

    @property
    def places(self) -> GoalPoints:
        """The places that it commands."""
        return GoalPoints(self.point_PG)

    def with_unseen(self) -> "Reader":
        """The reader that commands places by phrases of which the policy has not learned."""
        places, forms, _ = self._tables.unseen_PKF.shape
        found_NF = self._phrases_NF[self._nearest(self._tables.unseen_PKF.flatten(0, 1))]
        phrases_PKF = found_NF.view(places, forms, self.size)
        commands = _Commands(self._tables.point_PG, self.vocabulary.unseen, phrases_PKF)
        return Reader(self.vocabulary, self._tables, commands)

    def saying(self, sentence: str) -> "Reader":
        """The reader that commands one place, the most similar one, by this very sentence.

        Raises SentenceError, EncoderError.
        """
        ((place, number, _),) = self.meanings([sentence])
        said_11F = self._tables.phrases_PKF[None, None, place, number]
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
        """Features [N, F] of sentences. Raises what `meanings` raises."""
        found = self.meanings(sentences)
        return torch.stack([self._tables.phrases_PKF[place, number] for place, number, _ in found])

    def meanings(self, sentences: Sequence[str]) -> list[Meaning]:
        """How each sentence is read; those that were learned from need no encoder.

        Raises SentenceError for an empty, very long or unrelated sentence, EncoderError if the
        encoder is missing or not the one of the training.
        """
        for text in sentences:
            _check_length(text)
        found = {text: self._known.get(plain(text)) for text in sentences}
        new = [text for text, known in found.items() if known is None]
        found |= zip(new, self._like_known(new), strict=True)
        return [found[text] for text in sentences]  # type: ignore[misc]

    def phrase(self, meaning: Meaning) -> str:
        """The known sentence that the networks see."""
        return self.vocabulary.phrases[meaning.place][meaning.number]

    def _like_known(self, sentences: list[str]) -> list[Meaning]:
        """The meanings of sentences that were not learned from."""
        if not sentences:
            return []
        vocabulary, tables = self.vocabulary, self._tables
        encoder = load_encoder(vocabulary.encoder, vocabulary.sha256)
        embedding_NE = encoder.encode_text([*map(plain, sentences)])
        similarity_NP = embedding_NE @ tables.centre_PE.T
        for text, similarity_P in zip(sentences, similarity_NP, strict=True):
            if not similarity_P.max() >= LEAST_SIMILARITY:
                raise SentenceError(self._unrelated(text, similarity_P))
        feature_NF = Projection(tables.mean_E, tables.basis_EF)(embedding_NE)
        rows = enumerate(self._nearest(feature_NF).tolist())
        places = ((row, *divmod(index, len(vocabulary.phrases[0]))) for row, index in rows)
        return [
            Meaning(place, number, float(similarity_NP[row, place]))
            for row, place, number in places
        ]

    def _nearest(self, feature_NF: Tensor) -> Tensor:
        """int64 [N]: the rows of the phrases that are nearest to these features."""
        return nearest(self._phrases_NF, feature_NF)

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

    def description(self) -> dict[str, Any]:
        """The vocabulary as JSON takes it."""
        return dataclasses.asdict(self.vocabulary)

    def tensors(self) -> dict[str, Tensor]:
        """The numbers of the vocabulary by name."""
        return {
            field.name: getattr(self._tables, field.name) for field in dataclasses.fields(Tables)
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
        return cls(vocabulary, Tables(**tensors))


def plain(text: str) -> str:
    """Lower case, single spaces, no full stop: sentences that differ in no more are the same."""
    return re.sub(r"\s+", " ", text).strip().rstrip(".!").lower()


def _check_length(text: str) -> None:
    if not plain(text):
        raise SentenceError("the sentence is empty; say where to go, as in 'go to the left side'")
    if len(text) > MOST_CHARACTERS:
        raise SentenceError(
            f"the sentence has {len(text):,} characters, and at most {MOST_CHARACTERS} are read"
        )


def _shortly(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
