"""Distillation: its loss by hand, resuming to the bit, a student that follows its teacher."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from tests.helpers.recipes import tiny
from torch_crl import load_policy, train
from torch_crl.agent.networks import ResidualTower, action_distribution
from torch_crl.agent.policy import Policy
from torch_crl.agent.sizes import TowerSizes
from torch_crl.cli.main import main
from torch_crl.deploy import students
from torch_crl.deploy.distil import Distillation, DistilSettings, distil
from torch_crl.deploy.distil_loss import distil_loss, gaussian_kl
from torch_crl.deploy.export import export
from torch_crl.deploy.students import Teacher, report, retention, save_front, student
from torch_crl.errors import UsageError
from torch_crl.runs.curves import CurveError, read_curve
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.lock import DirectoryInUseError
from torch_crl.system.checkpoint import CheckpointError

SMALL: dict[str, Any] = {"rows": 60, "updates": 12, "rounds": 4, "num_envs": 5, "batch_size": 8}


def make_teacher(*, depth: int = 4, width: int = 16, chunk: int = 1) -> Policy:
    sizes = TowerSizes(input_size=13, output_size=4 * chunk, width=width, depth=depth)
    actor = ResidualTower(sizes, generator=Generator().manual_seed(7))
    return Policy(actor, state_size=10, goal_size=3, chunk=chunk)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(0), dtype=torch.float64)


def test_divergence_is_that_of_numerical_integration() -> None:
    grid = torch.linspace(-12.0, 12.0, 40_001, dtype=torch.float64)

    def log_density(mean: float, log_std: float) -> Tensor:
        return torch.distributions.Normal(mean, torch.tensor(log_std).exp().double()).log_prob(grid)

    for mean, log_std, other, other_std in itertools.product(
        (-0.5, 1.0), (-1.0, 0.3), (0.0, 0.7), (-0.5, 0.5)
    ):
        ours, theirs = log_density(mean, log_std), log_density(other, other_std)
        expected = torch.trapezoid(ours.exp() * (ours - theirs), grid)
        tensors = [
            torch.full((1, 1), x, dtype=torch.float64) for x in (mean, log_std, other, other_std)
        ]
        torch.testing.assert_close(gaussian_kl(*tensors)[0], expected, rtol=1e-6, atol=1e-7)


def test_loss_by_hand() -> None:
    teacher, student = draw(5, 4), draw(6, 4)[1:]
    loss, metrics = distil_loss(teacher, student)
    (mean, log_std), (own, own_std) = map(action_distribution, (teacher, student))
    error = own.tanh() - mean.tanh()
    expected = error.square().sum(1).mean() + 0.1 * (own - mean).square().sum(1).mean()
    expected = expected + 0.1 * gaussian_kl(mean, log_std, own, own_std).mean()
    # No mean here is beyond 2.5, where tanh is called flat.
    assert mean.abs().max() < 2.5
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics["action_error"], error.abs().mean())
    same, _ = distil_loss(teacher, teacher)
    assert same.abs() < 1e-15


def test_where_tanh_is_flat_a_student_may_be_anywhere_beyond() -> None:
    teacher = torch.tensor([[9.0, 0.0]], dtype=torch.float64)
    for own, wanted in ((2.5, 0.0), (30.0, 0.0), (2.0, 0.25), (-5.5, 64.0)):
        student = torch.tensor([[own, 0.0]], dtype=torch.float64)
        loss, metrics = distil_loss(teacher, student)
        action = (torch.tensor(own).double().tanh() - torch.tensor(9.0).double().tanh()) ** 2
        assert float(loss - action - 0.1 * metrics["kl"]) == pytest.approx(0.1 * wanted, abs=1e-12)


def test_the_divergence_moves_the_log_std_only() -> None:
    teacher, student = draw(3, 4), draw(4, 4)[1:].requires_grad_()
    _, log_std = action_distribution(student)
    mean, own_std = action_distribution(teacher)
    own_mean = action_distribution(student)[0]
    # The gradient by the means is that of the loss without the divergence.
    loss, _ = distil_loss(teacher, student)
    (gradient,) = torch.autograd.grad(loss, student, retain_graph=True)
    plain = (own_mean.tanh() - mean.tanh()).square().sum(1).mean()
    plain = plain + 0.1 * (own_mean - mean).square().sum(1).mean()
    (without,) = torch.autograd.grad(plain, student)
    torch.testing.assert_close(gradient[:, :2], without[:, :2])
    assert (gradient[:, 2:] != 0).any() and log_std.shape == own_std.shape


@pytest.mark.parametrize("chunk", [1, 3])
def test_killed_and_resumed_equals_uninterrupted(chunk: int, tmp_path: Path) -> None:
    teacher, settings = make_teacher(chunk=chunk), DistilSettings(width=8, **SMALL)

    def run(name: str, *, stop_after: int = 0) -> Policy:
        directory = RunDirectory(tmp_path / name)
        if not directory.holds_run:
            directory.begin(tiny("reacher"), machine={})

        def on_round(number: int, _: dict[str, float]) -> None:
            if number == stop_after:
                raise KeyboardInterrupt

        return distil(teacher, "reacher", settings, directory, episode_length=9, on_round=on_round)

    whole = run("whole")
    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run("killed", stop_after=stop)
    resumed = run("killed")
    for name, value in whole.actor.state_dict().items():
        assert value.equal(resumed.actor.state_dict()[name]), name


def test_another_policy_or_other_settings_are_refused(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "one")
    directory.begin(tiny("reacher"), machine={})
    options: dict[str, Any] = {"episode_length": 9, "on_round": lambda *_: None}
    settings = DistilSettings(width=8, **SMALL)
    distil(make_teacher(), "reacher", settings, directory, **options)
    for teacher, changed in (
        (make_teacher(depth=8), settings),
        (make_teacher(), DistilSettings(width=8, **(SMALL | {"updates": 16}))),
    ):
        with pytest.raises(UsageError, match="of another policy, or with other settings"):
            distil(teacher, "reacher", changed, directory, **options)
    clipped = Policy(make_teacher().actor, state_size=10, goal_size=3, head="clip")
    with pytest.raises(UsageError, match="mean and a log-std"):
        Distillation(clipped, "reacher", settings, episode_length=9)


def test_rows_are_the_states_that_were_met_with_the_teachers_labels() -> None:
    teacher = make_teacher()
    made = Distillation(
        teacher,
        "reacher",
        DistilSettings(width=8, **(SMALL | {"other_goals": 0.5})),
        episode_length=9,
    )
    made.round()
    stop = made.moment.env_steps
    inputs, labels = made.inputs_MI[:stop], made.labels_M2A[:stop]
    with torch.no_grad():
        torch.testing.assert_close(labels, teacher.actor(inputs), rtol=1e-5, atol=1e-6)
    # Half of the goals are fingertips of the same round; commanded ones never are.
    achieved = {tuple(row.tolist()) for row in inputs[:, 4:7]}
    others = sum(tuple(row.tolist()) in achieved for row in inputs[:, 10:])
    assert 0 < others < stop
    assert made.labels_M2A[stop:].eq(0).all()


def test_a_student_learns_what_its_teacher_does() -> None:
    made = Distillation(
        make_teacher(),
        "reacher",
        DistilSettings(width=32, rows=6000, updates=600, rounds=6, num_envs=20, batch_size=64),
        episode_length=50,
    )
    first = Policy(copy.deepcopy(made.actor), state_size=10, goal_size=3)
    for _ in range(6):
        made.round()
    state, goal = made.inputs_MI.split([10, 3], dim=1)
    taught = made.teacher(state, goal)
    policies = first, made.student
    errors = [(policy(state, goal) - taught).abs().mean() for policy in policies]
    assert errors[1] < 0.2 * errors[0]


def test_the_front_has_what_no_smaller_student_matches() -> None:
    teacher = Teacher(policy=make_teacher(depth=8), recipe=tiny("reacher"))
    rows = [
        {
            "depth": depth,
            "width": width,
            "seed": seed,
            "parameters": 10 * width,
            "ms_p50": 0.25,
            "time_at_goal_share": share + 0.02 * seed,
        }
        for depth, width, share in ((4, 8, 0.2), (4, 16, 0.1), (4, 32, 0.4))
        for seed in (0, 1)
    ]
    text = report(teacher, {"time_at_goal_share": 0.5}, rows)
    lines = [line for line in text.splitlines() if line.startswith("| 4 |")]
    assert [line.split("|")[9].strip() for line in lines] == ["yes", "", "yes"]
    assert "| 4 | 8 | 2 | 80 |" in lines[0] and "| 0.420 | 0.400, 0.440 |" in lines[0]


def test_report_and_picture_have_one_time_of_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([1.5, 99.0])
    monkeypatch.setattr(
        students, "latency", lambda _: dict.fromkeys(("ms_p50", "ms_p99"), next(measured))
    )
    drawn: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: drawn.append(figure.axes[0]))
    teacher = Teacher(policy=make_teacher(depth=8), recipe=tiny("reacher"))
    row = {"depth": 4, "width": 8, "seed": 0, "parameters": 80, "ms_p50": 0.25}
    rows, whole = [row | {"time_at_goal_share": 0.4}], {"time_at_goal_share": 0.5}
    assert "takes 1.5 ms for an action" in report(teacher, whole, rows)
    save_front(teacher, whole, rows, tmp_path / "front.png")
    lines = {line.get_label(): line for line in drawn[0].lines}
    assert list(lines["teacher"].get_xdata()) == [1.5]
    # A front of one size is no line, so it has a marker.
    assert lines["none as fast is better"].get_marker() == "o"


def test_a_share_of_the_envs_is_acted_in_as_in_an_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = DistilSettings(
        width=8, rows=40, rounds=2, updates=2, num_envs=4, noiseless=0.5, other_goals=0.0
    )
    made = Distillation(make_teacher(), "reacher", settings, episode_length=30)
    made.round()
    acted, step = [], made.env.step

    def remember(action_NA: Tensor) -> Any:
        acted.append(action_NA.clone())
        return step(action_NA)

    monkeypatch.setattr(made.env, "step", remember)
    _, row_MI = made.collect()
    with torch.no_grad():
        expected = torch.tanh(made.actor(row_MI)[:, :2]).view(5, 4, 2)
    action = torch.stack(acted)
    torch.testing.assert_close(action[:, :2], expected[:, :2])
    assert (action[:, 2:] - expected[:, 2:]).abs().min() > 1e-4


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny("reacher"), tmp_path / "run", show=False)
    arguments = ["distil", str(tmp_path / "run"), "--width", "8", "12", "--seeds", "0", "1"]
    arguments += ["--rows", "200", "--updates", "20"]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    assert "| 4 | 12 | 2 |" in printed.out
    stages = printed.err.splitlines()
    first = stages.index("depth 4, width 8, seed 0")
    assert stages[first + 1] == "depth 4, width 8, seed 0: its episodes"
    students = tmp_path / "run" / "students"
    document = json.loads((students / "students.json").read_text())
    assert len(document["students"]) == 4 and document["episodes"] == 128
    assert {row["width"] for row in document["students"]} == {8, 12}
    # A student is a run like any other.
    one = students / "depth4_width8_seed1"
    assert main(["eval", str(one), "--num-envs", "2", "--episode-length", "5"]) == 0
    export(load_policy(one), "reacher", "numpy", tmp_path / "exported")
    before = (one / "result.json").read_text()
    assert main(arguments) == 0
    assert (one / "result.json").read_text() == before
    assert main([*arguments[:-1], "40"]) == 1
    assert "other settings" in capsys.readouterr().err
    assert main(["distil", str(tmp_path / "run"), "--depth", "6"]) == 1
    assert "multiples of 4, got [6]" in capsys.readouterr().err
    # The number is taken for the run.
    assert main(["distil", "--width", "8"]) == 1
    assert "--width takes at least one number; the run stands" in capsys.readouterr().err
    # It has neither a learning curve nor a learner.
    with pytest.raises(CurveError, match="no learning curve"):
        read_curve(one)
    with pytest.raises(CheckpointError, match="made of another one; the command that made it"):
        train(RunDirectory(one).read_recipe(), one, resume=True, show=False)


def test_a_student_in_the_making_is_left_to_its_process(tmp_path: Path) -> None:
    teacher = Teacher(policy=make_teacher(), recipe=tiny("reacher"))
    settings = DistilSettings(width=8, **SMALL)
    directory = RunDirectory(tmp_path / "depth4_width8_seed0")
    with directory.owned(), pytest.raises(DirectoryInUseError, match="in use by"):
        student(teacher, settings, tmp_path, on_round=lambda *_: None)
    directory.path.mkdir()
    (directory.path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds something that is no student"):
        student(teacher, settings, tmp_path, on_round=lambda *_: None)
    assert (directory.path / "notes.txt").read_text() == "mine"


def test_nothing_is_kept_of_a_teacher_that_is_never_at_the_goal(tmp_path: Path) -> None:
    teacher = Teacher(policy=make_teacher(depth=8), recipe=tiny("reacher"))
    row = {"depth": 4, "width": 8, "seed": 0, "parameters": 80, "ms_p50": 0.25}
    rows = [row | {"time_at_goal_share": 0.0}]
    never = {"time_at_goal_share": 0.0}
    assert math.isnan(retention(rows[0], never))
    text = report(teacher, never, rows)
    assert "the teacher is never there" in text and "| nan |" in text
    save_front(teacher, never, rows, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 1000
