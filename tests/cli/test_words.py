"""Sentences on the command line."""

import io
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import SMALL_FLAGS
from torch_crl.cli.main import main
from torch_crl.cli.runs import TrainedOptions, load_trained
from torch_crl.cli.watch import sentences
from torch_crl.rendering.captions import with_captions, with_insets


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words") / "run"
    flags = ["--goals", "words", "--run-dir", str(folder)]
    assert main(["train", "reacher", *SMALL_FLAGS, *flags]) == 0
    return folder


SHORT = ["--num-envs", "2", "--episode-length", "5"]


def test_eval_says_what_it_understood(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = "please visit the far point in the north west"
    assert main(["eval", str(run), "--say", said, *SHORT]) == 0
    error = capsys.readouterr().err
    assert f"{said!r}: the far point in the north west (similarity 0." in error
    assert re.search(r"0\.\d\d, read as '.*the far point in the north west'\)", error)
    assert main(["eval", str(run), "--unseen", *SHORT]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--say", "sing a song"], "the nearest places are"),
        (["--say", "go", "--unseen"], "exclude each other"),
        (["--say", "x" * 10_000], "10,000 characters"),
    ],
)
def test_eval_tells_what_it_does_not_understand(
    run: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(run), *flags, *SHORT]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [["export", "--to", "numpy"], ["prune", "--blocks", "1"], ["plan"]]
)
def test_commands_that_take_numbers_only_say_so(
    run: Path, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command[0], str(run), *command[1:]]) == 1
    error = capsys.readouterr().err
    assert "reads sentences" in error or "--goals words" in error


def test_a_student_reads_the_sentences_of_its_teacher(run: Path, tmp_path: Path) -> None:
    small = ["--rows", "100", "--updates", "20", "--out", str(tmp_path / "students")]
    assert main(["distil", str(run), *small]) == 0
    (student,) = (tmp_path / "students").glob("depth4_*")
    assert main(["eval", str(student), "--say", "go to the far point in the north", *SHORT]) == 0


def test_lines_that_are_typed_become_policies(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = load_trained(TrainedOptions(run=run))
    lines = io.StringIO(
        "go to the near point in the east\nbake bread\nthe far point in the south\n"
    )
    newest = sentences(trained, lines)
    time.sleep(0.2)
    policy = newest()
    assert policy is not None and policy.places is not None
    np.testing.assert_allclose(policy.places.point_PG, [[0.0, -0.16, 0.01]], atol=1e-6)
    assert newest() is None
    wrong = sentences(trained, io.StringIO("bake bread\n"))
    time.sleep(0.2)
    assert wrong() is None
    assert "the nearest places are" in capsys.readouterr().err


def test_an_encoder_that_only_a_file_names_needs_trust(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = (run / "recipe.json").read_text().replace('"minilm"', '"evil_module:make"')
    (tmp_path / "recipe.json").write_text(recipe)
    file = ["--recipe", str(tmp_path / "recipe.json"), "--run-dir", str(tmp_path / "new")]
    assert main(["train", *file]) == 1
    assert "would import evil_module; give --trust" in capsys.readouterr().err


def test_eval_tells_which_experts_act_on_the_way_to_which_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(tmp_path / "run")
    mixture = ["--actor-block", "moe", "--experts", "3", "--actor-depth", "8"]
    flags = [*mixture, "--goals", "words", "--run-dir", run]
    assert main(["train", "reacher", *SMALL_FLAGS, *flags]) == 0
    capsys.readouterr()
    assert main(["eval", run, *SHORT]) == 0
    table = capsys.readouterr().out.partition("share of the plans that pass each expert")[2]
    (row, *_) = re.findall(r"  (?:near|far) point in the [a-z ]+ (.*)\n", table)
    # Two blocks of three experts; the shares of a block add up to 1.
    blocks = [sum(map(float, block.split())) for block in row.split("|")]
    assert blocks == pytest.approx([1.0, 1.0], abs=0.02)
    assert "residual blocks 1, 2" in table
    assert main(["eval", run, "--json", *SHORT]) == 0
    assert len(json.loads(capsys.readouterr().out)["experts"]) <= 2


def test_captions_are_within_their_tiles() -> None:
    picture = np.full((100, 410, 3), 200, np.uint8)
    corners = [(0, 0), (210, 0)]
    texts = ["go to the left", "a sentence that is longer than a line of its own tile can be " * 3]
    drawn = with_captions(picture, texts, corners, 200)
    changed = (drawn != picture).any(-1)
    assert changed[:, :200].any() and changed[:, 210:].any()
    assert not changed[:, 200:210].any()
    assert not (picture != 200).any()


@pytest.mark.parametrize("side", [20, 33, 34, 64, 320])
def test_insets_are_within_their_tiles_whatever_their_size(side: int) -> None:
    picture = np.full((210, 410, 3), 200, np.uint8)
    corners = [(0, 0), (210, 0), (0, 110), (210, 110)]
    drawn = with_insets(picture, np.zeros((4, side, side, 3), np.uint8), corners, 100)
    shown = min(side, 33)
    for left, top in corners:
        tile = drawn[top : top + 100, left : left + 200, 0]
        assert (tile == 0).sum() == shown**2 and (tile[4 : 4 + shown, 4 : 4 + shown] == 0).all()
        # The white frame around it is 4 pixels wide.
        assert (tile != 200).sum() == (shown + 8) ** 2
    assert (drawn[:, 200:210] == 200).all() and (drawn[100:110] == 200).all()
