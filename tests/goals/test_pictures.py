"""Goals as pictures: which ones hindsight shows, and what policies make of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mujoco
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Generator

from tests.helpers.drawing import draws
from tests.helpers.recipes import tiny
from tests.helpers.same_run import assert_resumes
from torch_crl import evaluate, load_policy
from torch_crl.cli.main import main
from torch_crl.encoders import EncoderError, camera, load_encoder
from torch_crl.encoders.camera import Camera, CameraSettings
from torch_crl.encoders.projection import Projection, fit_components
from torch_crl.envs.registry import make_task
from torch_crl.experience.replay import Replay, Transition
from torch_crl.goals import pictures
from torch_crl.goals.pictures import PictureGoals, PictureReader
from torch_crl.recipe.checks import RecipeError, check
from torch_crl.recipe.presets import with_changes
from torch_crl.recipe.record import Recipe
from torch_crl.runs.policies import load_policy as load_saved
from torch_crl.training.reshard import is_of_rank

CPU = torch.device("cpu")


def recipe_of(**parts: dict[str, Any]) -> Recipe:
    """Of a run that takes pictures of every fifth row."""
    space = {"goals": "pictures", "picture_every": 5, "goal_features": 4, "picture_size": 64}
    return tiny("reacher", goal_space=space | parts.pop("goal_space", {}), **parts)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "KNOWN", 12)


def space_of(task: str, **changed: Any) -> PictureGoals:
    settings = {"side": 64, "every": 5, "rows": 20, "num_envs": 3, "discount": 0.9}
    return PictureGoals(task, "efficientnet_lite0", 4, **settings | changed, device=CPU)


class Numbered(PictureGoals):
    """A goal space whose features are the row and the env of a picture."""

    def __init__(self, every: int, rows: int, num_envs: int) -> None:
        self.every, self._discount, self.size = every, 0.9, 2
        self._pictures = torch.full((rows // every, num_envs, 2), -1.0, dtype=torch.float16)

    def take(self, row: int) -> None:
        if row % self.every == 0:
            slot = row // self.every % len(self._pictures)
            self._pictures[slot, :, 0] = row
            self._pictures[slot, :, 1] = torch.arange(self._pictures.shape[1])


@pytest.mark.parametrize("written", [7, 24, 61])
def test_hindsight_shows_later_pictures_of_the_same_trajectory(written: int) -> None:
    space = Numbered(every=4, rows=24, num_envs=5)
    replay = Replay(
        rows=24, num_envs=5, state_size=3, action_size=1, goal_slice=(0, 1), goals=space
    )
    ends = torch.rand(written, 5, generator=Generator().manual_seed(written)) < 0.08
    number = torch.zeros(5, dtype=torch.int64)
    trajectories = []
    for row in range(written):
        space.take(row)
        trajectories.append(number.clone())
        row_5 = torch.full((5,), float(row))
        state = torch.stack([row_5, torch.arange(5.0), number.float()], 1)
        replay.add(
            Transition(state, torch.zeros(5, 1), state[:, :1], number.clone(), ends[row] & False)
        )
        number += ends[row]
    batch = replay.sample(3000, discount=0.9, generator=Generator().manual_seed(0))
    row_B, env_B, number_B = batch["state"].long().unbind(1)
    shown_B, shown_env_B = batch["goal"].long().unbind(1)
    assert torch.equal(env_B, shown_env_B)
    assert (shown_B % 4 == 0).all() and (shown_B >= 0).all()
    of_row = torch.stack(trajectories)
    whole_B = batch["whole"] > 0
    assert 0.3 < whole_B.float().mean() < 1.0
    assert (shown_B > row_B)[whole_B].all()
    assert torch.equal(of_row[shown_B, env_B][whole_B], number_B[whole_B])
    # The others have no later picture in their trajectory.
    for row, env, number_of in zip(
        row_B[~whole_B], env_B[~whole_B], number_B[~whole_B], strict=True
    ):
        later = range(int(row) // 4 * 4 + 4, written, 4)
        assert not any(of_row[each, env] == number_of for each in later)


def test_with_chunks_a_step_needs_a_picture_and_all_of_its_actions() -> None:
    space = Numbered(every=4, rows=24, num_envs=2)
    replay = Replay(
        rows=24, num_envs=2, state_size=1, action_size=1, goal_slice=(0, 1), goals=space
    )
    for row in range(10):
        space.take(row)
        state = torch.full((2, 1), float(row))
        none = torch.zeros(2, dtype=torch.int64)
        replay.add(Transition(state, torch.zeros(2, 1), state, none, none > 0))
    batch = replay.sample(500, discount=0.9, generator=Generator().manual_seed(0), chunk=4)
    # The last picture is that of row 8, the last whole chunk that of row 6.
    assert torch.equal(batch["whole"] > 0, batch["state"][:, 0] <= 6)


def test_components_have_mean_square_one() -> None:
    known = torch.randn(30, 50, generator=Generator().manual_seed(0)) * torch.arange(1.0, 51.0)
    found = fit_components(known, 5)(known)
    torch.testing.assert_close(found.square().mean(0), torch.ones(5), atol=1e-4, rtol=0)
    torch.testing.assert_close((found.T @ found) / 30, torch.eye(5), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match="features must be 1 to 29, got 30"):
        fit_components(known, 30)


@draws
def test_pictures_are_taken_of_every_kth_row(few: None) -> None:
    space = space_of("point_u_maze")
    start = make_task("point_u_maze").sample_start(3, Generator().manual_seed(0))
    qpos_NQ = start.qpos_NQ
    for row in (20, 26):
        space.film(qpos_NQ + row / 20, row)
    assert not space.state_dict()["pictures"][1:].any()
    camera = space.reader.camera
    expected = camera.of_pictures(camera.film(qpos_NQ + 1.0))
    assert torch.equal(space.state_dict()["pictures"][0], expected.half())


@draws
def test_what_is_known_comes_back(few: None) -> None:
    space = space_of("reacher")
    reader = space.reader
    goal_PG = space.places.point_PG
    torch.testing.assert_close(
        reader(goal_PG), space.commanded(goal_PG, torch.zeros(12)), atol=2e-2, rtol=0
    )
    for goal_G in goal_PG[:3]:
        (picture,) = reader.film(goal_G[None])
        assert torch.equal(reader.nearest_goal(picture), goal_G)
        assert reader.showing(picture).places.point_PG.tolist() == [goal_G.tolist()]  # type: ignore[union-attr]
    # Other goals are commanded by the picture of the nearest.
    near = space.commanded(goal_PG[:1] + 1e-3, torch.zeros(1))
    assert torch.equal(near, space.commanded(goal_PG[:1], torch.zeros(1)))


@draws
def test_a_picture_is_read_from_a_file_and_others_are_refused(few: None, tmp_path: Path) -> None:
    reader = space_of("reacher").reader
    goal_NG = make_task("reacher").sample_start(1, Generator().manual_seed(5)).goal_NG
    (picture,) = reader.film(goal_NG)
    Pillow.fromarray(picture).save(tmp_path / "goal.png")
    assert torch.equal(reader(tmp_path / "goal.png"), reader(picture))
    assert torch.equal(reader(str(tmp_path / "goal.png")), reader(picture[None])[0])
    torch.testing.assert_close(reader(goal_NG[0].numpy()), reader(picture), atol=1e-5, rtol=0)
    with pytest.raises(
        EncoderError, match=r"64 x 64 pixels .* got uint8 of shape \[1, 64, 32, 3\]"
    ):
        reader(picture[:, :32])
    with pytest.raises(EncoderError, match=r"nothing\.png is no picture that can be read"):
        reader(tmp_path / "nothing.png")
    noise = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)
    with pytest.raises(EncoderError, match="is not like those of reacher"):
        reader.showing(noise)
    with pytest.raises(ValueError, match="a picture, or a goal of 3 numbers"):
        reader(np.zeros(2))


@draws
def test_a_run_by_pictures_resumes_to_the_bit(
    few: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_resumes(recipe_of(), tmp_path)
    policy = load_policy(tmp_path / "whole")
    assert isinstance(policy.reader, PictureReader)
    goal = np.array([0.1, 0.05, 0.01])
    (picture,) = policy.reader.film(torch.tensor(goal)[None])
    state = np.zeros(10)
    np.testing.assert_allclose(policy(state, picture), policy(state, goal), atol=1e-5)
    result = evaluate(policy, "reacher", num_envs=2, episode_length=3)
    assert 0.0 <= result["success_any"] <= 1.0
    # Its own goal is commanded, not the nearest of those in training.
    assert policy.places is None
    Pillow.fromarray(picture).save(tmp_path / "goal.png")
    short = ["--num-envs", "2", "--episode-length", "3"]
    video = ["--video", str(tmp_path / "film.gif"), "--video-seconds", "0.1"]
    commanded = ["--picture", str(tmp_path / "goal.png")]
    assert main(["eval", str(tmp_path / "whole"), *short, *video, *commanded]) == 0
    assert "judged by the known goal that is most like it" in capsys.readouterr().err
    again = load_saved(tmp_path / "whole")
    assert torch.equal(
        again(torch.zeros(10), torch.tensor(goal)), policy(torch.zeros(10), torch.tensor(goal))
    )


def test_the_task_of_a_strangers_policy_is_not_run(tmp_path: Path) -> None:
    camera = Camera(
        CameraSettings(
            encoder="efficientnet_lite0",
            sha256="0",
            task="strange_module:make",
            side=64,
            size=2,
            embedding_size=3,
            left_over=1.0,
        ),
        Projection(torch.zeros(3), torch.zeros(3, 2)),
    )
    reader = PictureReader(camera, torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(EncoderError, match=r"would import strange_module; give --trust"):
        reader(np.zeros(3))
    with pytest.raises(EncoderError, match=r"would import strange_module"):
        camera.film(torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('<body pos="0 0 1">', '<body pos="0 0 1" euler="0 0 90">'),
        ('axis="0 0 1"', 'axis="0 1 0"'),
        ('type="hinge"', 'type="slide"'),
        ('<joint pos="0 0 0"', '<joint pos="0 0.3 0"'),
        ("0 1 0  0 0 1", "0 1 0  0 0 2"),
    ],
)
def test_what_turns_or_shapes_a_body_makes_a_task_look_otherwise(
    before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """<mujoco><asset><mesh name="m" vertex="0 0 0  1 0 0  0 1 0  0 0 1"/></asset><worldbody>
        <body pos="0 0 1"><joint pos="0 0 0" type="hinge" axis="0 0 1"/>
        <geom type="mesh" mesh="m" mass="1"/></body></worldbody></mujoco>"""
    assert before in text
    models = {
        "one": mujoco.MjModel.from_xml_string(text),
        "same": mujoco.MjModel.from_xml_string(text),
        "other": mujoco.MjModel.from_xml_string(text.replace(before, after)),
    }
    monkeypatch.setattr(camera, "make_task", lambda name: SimpleNamespace(model=models[name]))
    assert camera.look_alike("one", "same")
    assert not camera.look_alike("one", "other")


@draws
def test_a_task_that_looks_otherwise_is_refused(few: None) -> None:
    reader = space_of("point_u_maze").reader
    reader.check_task("point_u_maze_eval")
    with pytest.raises(EncoderError, match="point_big_maze looks otherwise"):
        reader.check_task("point_big_maze")
    assert reader(torch.zeros(0, 2)).shape == (0, 4)
    with pytest.raises(RecipeError, match="--eval-name point_big_maze looks otherwise"):
        changed = with_changes(recipe_of(), task={"name": "point_u_maze"})
        check(with_changes(changed, task={"eval_name": "point_big_maze"}))


@draws
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": {"replay_rows": 22}}, "--replay-rows must be a multiple of --picture-every 5"),
        ({"algorithm": {"algo": "gcbc"}}, "--goals pictures is for --algo crl, got gcbc"),
        ({"goal_space": {"same_place": "masked"}}, "--same-place takes effect with --goals words"),
        ({"goal_space": {"goal_features": 500}}, "--goal-features must be at most 128, got 500"),
        ({"goal_space": {"encoder": "minilm"}}, "minilm reads no pictures"),
        ({"goal_space": {"goals": "words"}}, "--picture-every takes effect with --goals pictures"),
        ({"algorithm": {"objective": "survival"}}, "measures distances to goals"),
    ],
)
def test_what_does_not_fit_is_told(changes: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check(recipe_of(**changes))


def test_each_of_several_ranks_has_its_own_pictures() -> None:
    assert is_of_rank("goals/pictures")
    assert not is_of_rank("goals/basis_EF")


def test_efficientnet_gives_the_features_of_its_eleventh_block() -> None:
    encoder: Any = load_encoder("efficientnet_lite0")
    assert encoder.sha256.startswith("57934424")
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), np.uint8)
    seen = []
    network = encoder._network
    hook = network._blocks[10].register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        network((torch.from_numpy(images).permute(0, 3, 1, 2).float() - 127) / 128)
    hook.remove()
    expected = torch.nn.functional.normalize(seen[0].flatten(1), dim=-1)
    found = encoder.encode_image(images)
    assert found.shape == (3, encoder.size)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_image(images[1:2]), found[1:2], atol=1e-5, rtol=0)
    # Pictures of other sizes are scaled.
    assert encoder.encode_image(images[:, ::2, ::2].repeat(1, 1)).shape == (3, encoder.size)
    assert encoder.encode_image(images[:0]).shape == (0, encoder.size)
