"""The published curves: what was read from them before, and that an installed package has them."""

import numpy as np
import pytest

from torch_crl.envs.registry import TASKS
from torch_crl.study.published import published_curves, published_scores


# The paper's table 1: time at goal at depth 4 and 64, means of the last five evaluations.
@pytest.mark.parametrize(
    ("task", "shallow", "deep"),
    [
        ("humanoid", 12.6, 649),
        ("ant_big_maze", 60.7, 441),
        ("ant_u4_maze", 11.4, 286),
        ("ant_hardest_maze", 215, 387),
        ("arm_push_easy", 308, 762),
        ("arm_push_hard", 171, 410),
        ("arm_binpick_hard", 38.2, 219),
        ("humanoid_u_maze", 3.15, 159),
        ("humanoid_big_maze", 0.06, 58.6),
    ],
)
def test_scores_are_those_of_the_paper(task: str, shallow: float, deep: float) -> None:
    scores = {curve.depth: curve.score for curve in published_curves(task=task)}
    assert list(scores) == [4, 8, 16, 32, 64]
    assert [scores[4], scores[64]] == pytest.approx([shallow, deep], rel=5e-3, abs=0.06)


def test_every_curve_is_whole_and_of_a_task_of_ours() -> None:
    curves = [
        curve for figure in ("fig1", "fig7", "fig12") for curve in published_curves(figure=figure)
    ]
    assert len(curves) == 78
    for curve in curves:
        assert {curve.task, curve.eval_task} <= set(TASKS)
        assert (np.diff(curve.env_steps_P) > 0).all()
        assert (curve.share_P >= 0).all() and (curve.share_P <= 1).all()
        assert len(curve.env_steps_P) == len(curve.share_P) == len(curve.standard_error_P) >= 60
    # 100 epochs of 984,064 and the prefill: the end that their code reports.
    assert curves[0].env_steps_P[-1] == 98_946_048
    assert {(curve.figure, curve.seeds) for curve in curves} == {
        ("fig1", 5),
        ("fig7", 3),
        ("fig12", 3),
    }
    assert published_curves(task="reacher") == []


# arXiv 2609.36238, mean and standard error: of four seeds, but of three for SRL on humanoid.
@pytest.mark.parametrize(
    ("task", "objective", "chunked", "depth", "score", "error"),
    [
        ("ant_big_maze", "crl", False, 64, 637.1, 15.5),
        ("ant_u4_maze", "crl", True, 4, 497.0, 73.2),
        ("ant_hardest_maze", "survival", False, 64, 706, 24),
        ("humanoid_u_maze", "chrono", True, 64, 187, 39),
    ],
)
def test_scores_of_objectives_are_those_that_were_published(
    task: str, objective: str, chunked: bool, depth: int, score: float, error: float
) -> None:
    (found,) = [
        entry
        for entry in published_scores(task=task)
        if (entry.objective, entry.chunked, entry.depth) == (objective, chunked, depth)
    ]
    assert 1000 * found.share == pytest.approx(score, abs=0.5)
    assert 1000 * found.standard_error == pytest.approx(error, abs=0.5)


def test_every_published_score_is_of_a_task_of_ours() -> None:
    scores = published_scores()
    assert len(scores) == 196 and {entry.task for entry in scores} <= set(TASKS)
    assert {len(entry.shares) for entry in scores} == {3, 4}
    assert published_scores(task="reacher") == []
