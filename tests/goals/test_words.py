"""Goals as sentences: what hindsight says of achieved goals, and what policies understand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_resumes
from torch_crl import evaluate, load_policy, train
from torch_crl.agent.policy import Policy
from torch_crl.encoders import EncoderError, load_encoder
from torch_crl.encoders.projection import fit_projection
from torch_crl.envs.places import GoalPoints, Places, at_places, named_places
from torch_crl.envs.registry import make_task
from torch_crl.errors import UsageError
from torch_crl.goals import sentences, words
from torch_crl.goals.sentences import Reader, SentenceError
from torch_crl.goals.words import WordGoals
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.recipe.goal_checks import filled_from, with_encoder
from torch_crl.recipe.record import Recipe
from torch_crl.runs.policies import find_policy, save_policy
from torch_crl.system.checkpoint import CheckpointError

CPU = torch.device("cpu")


# What hindsight says of a goal depends on nothing else of the step.
DRAWN: Any = None


def places_of(task: str) -> Places:
    places = make_task(task).places
    assert places is not None
    return places


@pytest.fixture(scope="module")
def maze() -> WordGoals:
    return WordGoals(places_of("point_u_maze"), "minilm", 16, device=CPU, tells_places=True)


def recipe_of(**parts: dict[str, Any]) -> Recipe:
    words_and = {"goal_space": {"goals": "words"} | parts.pop("goal_space", {})}
    algorithm = {"chunk": 1} | parts.pop("algorithm", {})
    return tiny("point_u_maze", algorithm=algorithm, **words_and, **parts)


def phrases_in(space: WordGoals, features_NF: Tensor) -> list[tuple[int, int]]:
    """Place and number of the phrase of each row; from place P on it is one of near a place."""
    table_NF = space._features.on(CPU)
    # 14 phrases of each of seven places, and four of what is near them, each seven times.
    assert len(table_NF) == 14 * 28
    found = torch.cdist(features_NF.double(), table_NF.double()).min(1)
    assert found.values.max() < 1e-4
    placed = [divmod(index, 28) for index in found.indices.tolist()]
    return [(place, number % (14 if place < 7 else 4)) for place, number in placed]


def test_hindsight_tells_places_by_the_law_of_soft_borders(
    maze: WordGoals, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = Generator().manual_seed(0)
    point_BG = places_of("point_u_maze").point_PG[torch.zeros(4000, dtype=torch.int64)]
    noisy = maze.of_future(point_BG, DRAWN, generator)["goal"]
    monkeypatch.setattr(words, "NOISE", 0.0)
    apart = noisy - maze._features.on(CPU)[torch.cdist(noisy, maze._features.on(CPU)).argmin(1)]
    assert float(apart.square().mean().sqrt()) == pytest.approx(0.25, rel=0.1)
    point = places_of("point_u_maze").point_PG[4]
    for distance in (0.0, 0.5, 1.0, 1.6):
        goal_BG = (point + torch.tensor([distance, 0.0])).expand(4000, 2)
        batch = maze.of_future(goal_BG, DRAWN, generator)
        share = float((batch["place"] == 4).float().mean())
        expected = math.exp(-(distance**2))
        assert abs(share - expected) < 4 * math.sqrt(max(expected * (1 - expected), 1e-9) / 4000)
        assert set(batch["place"].tolist()) <= {4, 11}
        # What the networks see is a phrase of just that place, each about equally often.
        said = phrases_in(maze, batch["goal"])
        assert [place for place, _ in said] == batch["place"].tolist()
        counts = torch.tensor([number for place, number in said if place == 4]).bincount()
        assert counts.min() > 0.5 * counts.max() or distance > 1.0


def test_a_command_keeps_its_phrase_in_an_episode_and_all_are_used(maze: WordGoals) -> None:
    goal_NG = places_of("point_u_maze").point_PG[torch.arange(700) % 7]
    first, again, next_one = (
        phrases_in(maze, maze.commanded(goal_NG, torch.full((700,), episode)))
        for episode in (1, 1, 2)
    )
    assert first == again
    assert [place for place, _ in first] == [index % 7 for index in range(700)]
    assert sum(a != b for a, b in zip(first, next_one, strict=True)) > 550
    assert len({*first}) == 98


@pytest.mark.parametrize(("task", "right"), [("point_u_maze", 28), ("reacher", 64)])
def test_sentences_of_other_forms_are_read_as_known_ones_of_their_place(
    task: str, right: int
) -> None:
    reader = WordGoals(places_of(task), "minilm", 16, device=CPU).reader
    vocabulary, tables = reader.vocabulary, reader.tensors()
    unseen = [text for phrases in vocabulary.unseen for text in phrases]
    found = reader.meanings(unseen)
    assert sum(meaning.place == row // 4 for row, meaning in enumerate(found)) == right
    # The one whose features are nearest, by an independent computation in double precision.
    own_NE = load_encoder("minilm").encode_text(unseen).double()
    own_NF = (own_NE - tables["mean_E"]) @ tables["basis_EF"].double()
    known_NF = tables["phrases_PKF"].double().flatten(0, 1)
    nearest_N = ((own_NF[:, None] - known_NF) ** 2).sum(-1).argmin(1)
    assert [meaning.place * 14 + meaning.number for meaning in found] == nearest_N.tolist()
    assert torch.equal(reader(unseen).double(), known_NF[nearest_N])
    # Evaluation commands places by just these.
    first_N = torch.arange(len(vocabulary.names))
    said_NF = reader.with_unseen()(tables["point_PG"])
    expected = [found[int(place) * 4 + int(place) % 4] for place in first_N]
    assert torch.equal(
        said_NF, torch.stack([tables["phrases_PKF"][place, n] for place, n, _ in expected])
    )


def test_a_meaning_tells_the_known_sentence_and_how_similar_the_new_one_is(maze: WordGoals) -> None:
    reader = maze.reader
    new, known = reader.meanings(
        ["please, the corner in the upper left", " Go to the Upper left corner."]
    )
    assert "upper left corner" in reader.phrase(new)
    assert reader.phrase(known) == "go to the upper left corner"
    assert known.similarity == 1.0
    centre_E = maze.reader.tensors()["centre_PE"][new.place].double()
    (said_E,) = load_encoder("minilm").encode_text(["please, the corner in the upper left"])
    assert new.similarity == pytest.approx(float(said_E.double() @ centre_E), abs=1e-6)
    assert 0.5 < new.similarity < 1.0


def test_known_sentences_need_no_encoder(maze: WordGoals, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, _: str) -> None:
        raise EncoderError(f"{name} is not installed")

    expected = maze.reader("go to the upper left corner")
    monkeypatch.setattr(sentences, "load_encoder", missing)
    assert torch.equal(maze.reader("  Go to the UPPER  left corner. "), expected)
    with pytest.raises(EncoderError, match="is not installed"):
        maze.reader("please, the corner in the upper left")


@pytest.mark.parametrize(
    ("sentence", "message"),
    [
        ("", "is empty"),
        (" . ", "is empty"),
        ("left " * 2000, "10,000 characters, and at most 500"),
        ("bake a chocolate cake", "nearest places are '.*' .*It knows sentences such as 'go to"),
        ("die wirtschaft wächst langsamer", "not like any sentence"),
    ],
)
def test_what_is_not_understood_is_told(maze: WordGoals, sentence: str, message: str) -> None:
    with pytest.raises(SentenceError, match=message):
        maze.reader(sentence)
    with pytest.raises(SentenceError):
        maze.reader.saying(sentence)


def test_other_weights_of_the_encoder_are_refused(
    maze: WordGoals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sentences.load_encoder("minilm"), "sha256", "0" * 64)
    with pytest.raises(EncoderError, match="other weights here"):
        maze.reader("please, the corner in the upper left")
    recipe = recipe_of(goal_space={"encoder": "minilm", "encoder_sha256": "1" * 64})
    with pytest.raises(RecipeError, match="other weights here"):
        check(recipe)


def test_a_projection_takes_out_the_forms_and_keeps_the_largest_differences() -> None:
    generator = Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(20, 20, generator=generator))[0]
    # Places differ along axes 0 and 1, forms along axes 2 to 4 and more than places do.
    places = torch.randn(30, 1, 2, generator=generator) * torch.tensor([3.0, 1.0])
    forms = 9.0 * torch.randn(1, 4, 3, generator=generator)
    noise = 0.01 * torch.randn(30, 4, 15, generator=generator)
    parts = [places.expand(-1, 4, -1), forms.expand(30, -1, -1), noise]
    known = torch.cat(parts, dim=-1) @ axes.T + 5.0
    projection = fit_projection(known, 2)
    features = projection(known)
    assert features.square().mean() == pytest.approx(1.0, abs=1e-5)
    for k in range(2):
        of_places = places.expand(-1, 4, -1)[..., k].flatten()
        correlation = np.corrcoef(features[..., k].flatten(), of_places)[0, 1]
        assert abs(correlation) > 0.97
    # All forms of a place are one point.
    assert (features - features.mean(1, keepdim=True)).abs().max() < 0.02
    with pytest.raises(ValueError, match="1 to 17"):
        fit_projection(known, 18)
    with pytest.raises(ValueError, match="the same"):
        fit_projection(torch.ones(4, 3, 20), 2)


def test_a_run_by_words_resumes_to_the_bit(tmp_path: Path) -> None:
    assert_resumes(recipe_of(), tmp_path)
    policy = load_policy(tmp_path / "whole")
    state = np.zeros(4, np.float32)
    said = policy(state, "drive to the lower right corner")
    assert said.shape == (2,)
    both = policy(state, ["drive to the lower right corner", "go to the upper left corner"])
    np.testing.assert_allclose(both[0], said, atol=1e-6)
    assert np.abs(both[1] - said).max() > 1e-4
    # A goal of the task stands for its place; the first of a batch gets the first phrase.
    point = places_of("point_u_maze").point_PG[-1].numpy()
    name = places_of("point_u_maze").names[-1]
    by_point, by_name = policy(state, point), policy(state, f"go to the {name}")
    np.testing.assert_allclose(by_point, by_name, atol=1e-6)
    with pytest.raises(ValueError, match="a sentence, or a goal of 2 numbers"):
        policy(state, np.zeros(3))
    result = evaluate(policy, "point_u_maze_eval", num_envs=2, episode_length=3)
    assert 0.0 <= result["success_any"] <= 1.0
    with pytest.raises(UsageError, match="knows other places"):
        evaluate(policy, "point_big_maze", num_envs=2, episode_length=3)
    with pytest.raises(UsageError, match="this policy cannot act in ant_u_maze: action_size 8"):
        evaluate(policy, "ant_u_maze", num_envs=2, episode_length=3)


def test_a_saved_policy_understands_the_same(maze: WordGoals, tmp_path: Path) -> None:
    recipe = with_encoder(recipe_of())
    from torch_crl.agent.networks import build_networks

    actor = build_networks(recipe.network_sizes, generator=Generator().manual_seed(0)).actor
    policy = Policy(actor, state_size=4, goal_size=2, reader=maze.reader)
    save_policy(policy, tmp_path / "policy", {})
    loaded = load_policy(tmp_path / "policy")
    assert isinstance(loaded.reader, Reader)
    assert loaded.reader.vocabulary == maze.reader.vocabulary
    state = torch.randn(5, 4, generator=Generator().manual_seed(1))
    for goal in ("travel over to the lower left corner", places_of("point_u_maze").point_PG[:5]):
        assert torch.equal(loaded(state, goal), policy(state, goal))
    # The numbers of another vocabulary are told from its own.
    tensors = {f"goals/{name}": x for name, x in maze.reader.tensors().items()}
    tensors["goals/centre_PE"] = tensors["goals/centre_PE"][:3]
    from torch_crl.runs.policies import description_of, policy_in

    with pytest.raises(CheckpointError, match=r"there are tensors of shapes .* and needed are"):
        policy_in(tmp_path, actor.state_dict() | tensors, description_of(policy))


def test_numbers_are_no_sentences(tmp_path: Path) -> None:
    train(tiny("reacher"), tmp_path / "run", show=False)
    policy = find_policy(tmp_path / "run").policy
    with pytest.raises(UsageError, match="reads no sentences, got 'go left'"):
        policy(np.zeros(10), "go left")  # type: ignore[type-var]


def test_one_sentence_commands_all_episodes(maze: WordGoals) -> None:
    reader = maze.reader.saying("please, the corner in the lower left")
    assert torch.equal(reader.point_PG, torch.tensor([[12.0, 4.0]]))
    task = at_places(make_task("point_u_maze"), reader.places)
    goal_NG = task.sample_start(5, Generator().manual_seed(0)).goal_NG
    assert torch.equal(goal_NG, torch.tensor([[12.0, 4.0]]).expand(5, 2))
    assert reader.phrases_of(goal_NG) == ["please, the corner in the lower left"] * 5
    assert torch.equal(reader(goal_NG)[0], maze.reader("please, the corner in the lower left"))


def test_goals_of_words_are_points_of_places() -> None:
    places = places_of("reacher")
    task = at_places(make_task("reacher"), GoalPoints(places.point_PG))
    goal_NG = task.sample_start(200, Generator().manual_seed(0)).goal_NG
    distance = torch.cdist(goal_NG, places.point_PG).min(1).values
    assert distance.max() == 0.0
    assert len(goal_NG.unique(dim=0)) == 16


def test_a_resumed_run_keeps_the_features_that_it_was_trained_on(maze: WordGoals) -> None:
    other = WordGoals(places_of("point_u_maze"), "minilm", 16, device=CPU)
    # As another machine might find them.
    changed = {name: -x if name != "point_PG" else x for name, x in maze.state_dict().items()}
    other.load_state_dict(changed)
    point_NG = places_of("point_u_maze").point_PG
    episode_N = torch.ones(7, dtype=torch.int32)
    assert torch.equal(other.commanded(point_NG, episode_N), -maze.commanded(point_NG, episode_N))
    assert torch.equal(other.reader(point_NG), -maze.reader(point_NG))


def test_the_sign_of_a_component_is_fixed() -> None:
    known = torch.randn(9, 3, 30, generator=Generator().manual_seed(0))
    basis_EF = fit_projection(known, 6).basis_EF
    largest_1F = basis_EF.gather(0, basis_EF.abs().argmax(0)[None])
    assert (largest_1F > 0).all()


def test_what_is_filled_in_is_no_other_recipe() -> None:
    asked = recipe_of()
    saved = with_encoder(asked)
    assert filled_from(asked, saved) == saved
    # Python code has to be named, since the saved recipe may be a stranger's.
    evil = recipe_of(goal_space={"encoder": "evil:make", "encoder_sha256": "0" * 64})
    assert filled_from(asked, evil) == asked
    assert filled_from(tiny("point_u_maze"), saved) == tiny("point_u_maze")


@pytest.mark.parametrize("kind", ["phrases", "unseen", "names"])
def test_a_damaged_vocabulary_is_told(maze: WordGoals, kind: str) -> None:
    description = maze.reader.description()
    description[kind] = [] if kind == "names" else [[] for _ in description[kind]]
    with pytest.raises(ValueError, match="its places have"):
        Reader.rebuild(description, maze.reader.tensors())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"eval_name": "point_big_maze"}}, "point_big_maze has other places than"),
        ({"task": {"name": "ant", "eval_name": "ant"}}, "ant names no places"),
        ({"goal_space": {"encoder": "no"}}, "unknown encoder 'no'"),
        ({"goal_space": {"encoder": "transformers:/no/such"}}, "/no/such holds no model"),
        ({"goal_space": {"encoder": "no_module:f"}}, "could not be made: ModuleNotFoundError"),
        ({"goal_space": {"goal_features": 385}}, "--goal-features must be at most 371"),
        ({"algorithm": {"objective": "survival"}}, "--objective survival measures distances"),
        ({"algorithm": {"parity": "reference"}}, "--parity reference has goals of the state only"),
    ],
)
def test_recipes_that_words_do_not_allow(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(recipe_of(**changes))


def test_an_encoder_without_words_takes_no_effect() -> None:
    for name, value in (("encoder", "minilm"), ("goal_features", 8), ("same_place", "masked")):
        flag = name.replace("_", "-")
        with pytest.raises(RecipeError, match=f"--{flag} takes effect with --goals words"):
            check(tiny("point_u_maze", goal_space={name: value}))


def test_places_need_points_and_forms() -> None:
    with pytest.raises(UsageError, match="two points or more"):
        named_places({"left": (0.0, 0.0), "right": (1.0,)}, radius=1.0)
    with pytest.raises(UsageError, match=r"has \{\} once"):
        named_places({"a": (0.0,), "b": (1.0,)}, radius=1.0, forms=("go",))
