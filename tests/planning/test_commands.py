"""`torch-crl plan`, `heatmap`, and `eval` with plans and a report, on a run of a second."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.helpers.recipes import tiny
from torch_crl import train
from torch_crl.cli.main import main
from torch_crl.planning.episodes import record_episodes
from torch_crl.planning.goal_value import load_trained_run
from torch_crl.planning.pictures import field, ground_of, viewpoints
from torch_crl.planning.planner import load_planner
from torch_crl.runs.directory import RunDirectory

FEW = ("--num-envs", "3", "--episode-length", "12")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("commands") / "run"
    train(tiny("point_u_maze"), path, show=False)
    return path


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_plan(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(run), "--nodes", "8", "--late", "0", "2", *FEW]) == 0
    out = capsys.readouterr().out
    assert "| at once |" in out and "| 2 control steps late |" in out
    told = json.loads((run / "plan" / "plan.json").read_text())
    assert told["nodes"] == 8 and [row["late"] for row in told["planned"]] == [0, 2]
    assert told["episodes"] == 3 and told["plan_ms"] > 0
    assert is_png(run / "plan" / "graph.png") and is_png(run / "plan" / "lateness.png")
    assert len(load_planner(run / "plan" / "planner").node_MS) == 8
    # Again, with another planner in its place.
    assert main(["plan", str(run), "--nodes", "5", "--late", "0", *FEW]) == 0
    assert len(load_planner(run / "plan" / "planner").node_MS) == 5


def test_eval_with_plans_and_a_report(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", str(run), *FEW, "--json"]
    assert main([*arguments, "--planner", "graph", "--report", str(tmp_path / "report")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["task"] == "point_u_maze" and "success_any" in told
    page = (tmp_path / "report" / "report.html").read_text()
    assert "Seen from above" in page and "data:image/png" in page and "time_at_goal" in page
    assert is_png(tmp_path / "report" / "heatmap.png")
    assert f"eval {run}" in page and "--planner graph" in page
    assert main(["plan", str(run), "--nodes", "4", "--late", "0", *FEW]) == 0
    capsys.readouterr()
    assert main([*arguments, "--planner", str(run / "plan")]) == 0
    assert json.loads(capsys.readouterr().out)["planner"] == str(run / "plan")
    assert main([*arguments, "--planner", str(tmp_path / "nothing")]) == 1
    assert "nothing does not exist" in capsys.readouterr().err
    assert main([*arguments, "--controller", str(run)]) == 1
    assert "with --planner only" in capsys.readouterr().err


def test_a_controller_of_another_task_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tiny("reacher"), tmp_path / "other", show=False)
    arguments = ["plan", str(run), "--nodes", "4", "--controller", str(tmp_path / "other"), *FEW]
    assert main(arguments) == 1
    assert "was trained on another task" in capsys.readouterr().err
    assert main(["plan", str(run), "--late", *FEW]) == 1
    for nodes in ("1", "100000"):
        assert main(["plan", str(run), "--nodes", nodes, *FEW]) != 0


@pytest.mark.parametrize("task", ["point_u_maze", "reacher"])
def test_heatmap(task: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if task != "point_u_maze":
        run = tmp_path / "run"
        train(tiny(task), run, show=False)
    picture = tmp_path / "seen.png"
    assert main(["heatmap", str(run), "--out", str(picture), *FEW]) == 0
    assert is_png(picture)
    assert main(["heatmap", str(run), "--out", str(tmp_path / "seen.jpg")]) == 1
    assert "takes the name of a .png" in capsys.readouterr().err


def test_a_field_covers_the_maze_and_no_wall(run: Path) -> None:
    trained = load_trained_run(RunDirectory(run), states=50)
    ground, goal = ground_of("point_u_maze"), torch.tensor([12.0, 4.0])
    # 5 x 5 cells of 4 m, 6 + 1 of them free.
    assert len(ground.walls) == 25 - 7 and ground.extent == (-2.0, 18.0, -2.0, 18.0)
    seen_from = viewpoints("point_u_maze", ground, trained.visited_PS)
    found = field(trained.value, "point_u_maze", ground, goal, seen_from.state_PS)
    free = found.steps_P.isfinite()
    cells = {tuple(row) for row in (found.position_P2[free] / 4).round().int().tolist()}
    assert cells == {(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)}
    assert (found.steps_P[free] >= 1).all()


def test_tasks_in_another_place_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("plan", "heatmap", "eval"):
        arguments = [command, str(run), "--task", "point_big_maze", *FEW]
        assert main([*arguments, *(("--planner", "graph") if command == "eval" else ())]) == 1
        assert "has other walls or goals" in capsys.readouterr().err
    arguments = ["heatmap", str(run), "--task", "point_u_maze_eval", *FEW]
    assert main(arguments) == 0


def test_code_of_a_runs_task_is_not_run_without_trust(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = tmp_path / "sent"
    shutil.copytree(run, sent)
    recipe = (sent / "recipe.json").read_text()
    (sent / "recipe.json").write_text(recipe.replace("point_u_maze", "evil_task:make", 1))
    assert '"eval_name": "point_u_maze"' in (sent / "recipe.json").read_text()
    (tmp_path / "evil_task.py").write_text("raise SystemExit('this code ran')\n")
    monkeypatch.chdir(tmp_path)
    for name, *flags in (
        ("plan", *FEW),
        ("heatmap", *FEW),
        ("eval", "--planner", "graph", *FEW),
        ("prune",),
        ("distil",),
    ):
        assert main([name, str(sent), *flags]) == 1
        assert "would import evil_task" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_told_at_once(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    for command in ("plan", "prune", "distil"):
        assert main([command, str(run), "--out", str(file)]) == 1
        assert f"--out {file} cannot be written" in capsys.readouterr().err
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for command, flag, ending in (
        (("eval", str(run)), "--video", "gif"),
        (("heatmap", str(run)), "--out", "png"),
        (("envs", "reacher"), "--png", "png"),
    ):
        name = file / f"x.{ending}"
        assert main([*command, flag, str(name)]) == 1
        told = f"{flag} {name} cannot be written (Not a directory: {file}); name another file"
        assert told in capsys.readouterr().err
    for command in (("heatmap", str(run), "--out"), ("envs", "reacher", "--png")):
        assert main([*command, str(folder)]) == 1
        assert f"{folder} is a folder; name a file in it" in capsys.readouterr().err
    (tmp_path / "mine" / "planner").mkdir(parents=True)
    (tmp_path / "mine" / "planner" / "work.py").write_text("x = 1")
    arguments = ["plan", str(run), "--out", str(tmp_path / "mine"), "--late", "0", "--nodes", "3"]
    assert main([*arguments, *FEW]) == 1
    assert (tmp_path / "mine" / "planner" / "work.py").exists()


def test_edges_through_walls_are_counted() -> None:
    ground = ground_of("point_u_maze")
    assert ground.labels == ("x, m", "y, m") == ground_of("reacher").labels
    # What the goals of one's own task are is not known, unless it names its state.
    assert ground_of("own_task:make").labels == ("goal 1", "goal 2")
    # Corner to corner along the corridor, and straight through the middle wall.
    places = torch.tensor([[4.0, 4.0], [4.0, 12.0], [12.0, 4.0]])
    edges = torch.full((3, 3), torch.inf)
    edges[0, 1] = edges[0, 2] = edges[2, 0] = 1.0
    assert ground.crossed(places, edges) == 2


def test_recorded_episodes_are_those_of_the_env(run: Path) -> None:
    policy = load_trained_run(RunDirectory(run), states=50).value.policy
    episodes = record_episodes(policy, "point_u_maze", num_envs=4, episode_length=9, seed=3)
    assert episodes.achieved_TNG.shape == (9, 4, 2) and episodes.achieved_TNG.isfinite().all()
    # They begin in the start cell and have moved a little.
    assert (episodes.achieved_TNG[0] - 4.0).abs().max() < 0.01
    assert not episodes.achieved_TNG[1].equal(episodes.achieved_TNG[0])
    assert not episodes.reached_N.any()


def test_what_a_run_without_a_critic_can_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "zoo:reacher", *FEW, "--report", str(tmp_path / "page")]) == 0
    assert "without critic and replay" in (tmp_path / "page" / "report.html").read_text()
    assert "come without critic and replay" in capsys.readouterr().err
    assert is_png(tmp_path / "page" / "heatmap.png")
    train(tiny("half_cheetah"), tmp_path / "run", show=False)
    # Its goal is one number.
    assert main(["heatmap", str(tmp_path / "run"), *FEW]) == 0
    assert is_png(tmp_path / "run" / "heatmap.png")
    students = ["distil", str(tmp_path / "run"), "--width", "8", "--rows", "64", "--updates", "8"]
    assert main(students) == 0
    told = json.loads((tmp_path / "run" / "students" / "students.json").read_text())
    assert isinstance(told["students"][0]["regret"], float)
    assert is_png(tmp_path / "run" / "students" / "front.png")
    capsys.readouterr()
    student = tmp_path / "run" / "students" / "depth4_width8_seed0"
    assert main(["plan", str(student), *FEW]) == 1
    assert "was made of another one" in capsys.readouterr().err


def test_after_the_end_of_an_episode_nothing_is_recorded() -> None:
    # An ant that is thrown about falls, or not; where it has, there are NaN from then on.
    def thrown(state: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
        del goal
        return torch.sign(torch.sin(37.0 * state[:, :8]))

    episodes = record_episodes(thrown, "ant", num_envs=24, episode_length=150, seed=1)
    seen = episodes.achieved_TNG[..., 0].isfinite()
    assert seen[0].all() and not seen[-1].all()
    assert (seen[1:] <= seen[:-1]).all()
