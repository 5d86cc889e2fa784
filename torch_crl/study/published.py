"""The published learning curves of contrastive RL (arXiv 2503.14858), to draw under one's own.

data/published_curves.csv has one curve on each line. It holds the authors' own plot data, "data for
plots from paper", commit 86c1f08 of 2026-04-30 in the history of their code
(wang-kevin3290/scaling-crl). `fig1` varies depth (5 seeds, actor and critics alike), `fig7` batch
size and depth (3 seeds, humanoid), and `fig12` shows the limits, up to depth 1024 (3 seeds; its
actor has depth 512). Width is 256, with 512 envs.

The data is trimmed: of 100, 150, 200 or 400 epochs the first 20 and the last five are kept, and
between them each 2nd, 3rd, 4th or 8th; values are rounded to 0.01 control steps. An evaluation is
128 episodes of 1000 control steps after an epoch; an epoch is 984,064 env steps, and 539,648 come
before the first one. Legend: P evaluations of one curve.
"""

import csv
from dataclasses import dataclass
from importlib import resources

import numpy as np

from torch_crl.study.statistics import Array

EPOCH_ENV_STEPS = 984_064
PREFILL_ENV_STEPS = 539_648
EPISODE_LENGTH = 1000
_SEEDS = {"fig1": 5, "fig7": 3, "fig12": 3}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PublishedCurve:
    """Mean over the seeds of one setting."""

    figure: str
    task: str
    """Task that the policy was trained on."""
    eval_task: str
    depth: int
    """Dense layers of the actor, and of each critic."""
    batch_size: int
    seeds: int
    env_steps_P: Array
    time_at_goal_P: Array
    """Control steps within the success radius, of 1000."""
    share_P: Array
    """The same as a share of the episode, like `time_at_goal_share`."""
    standard_error_P: Array
    """Standard error of `time_at_goal_P`."""

    @property
    def score(self) -> float:
        """Mean time at goal of the last five evaluations, the paper's single number."""
        return float(self.time_at_goal_P[-5:].mean())


def published_curves(*, figure: str = "fig1", task: str = "") -> list[PublishedCurve]:
    """The curves of a figure, of one task if given, in the order of the file; none if unknown."""
    path = resources.files("torch_crl.study").joinpath("data", "published_curves.csv")
    return [
        _curve(row)
        for row in csv.DictReader(path.read_text().splitlines())
        if row["figure"] == figure and task in ("", row["train_task"])
    ]


def _curve(row: dict[str, str]) -> PublishedCurve:
    def numbers(name: str) -> Array:
        return np.array(row[name].split(), dtype=np.float64)

    return PublishedCurve(
        figure=row["figure"],
        task=row["train_task"],
        eval_task=row["eval_task"],
        depth=int(row["depth"]),
        batch_size=int(row["batch_size"]),
        seeds=_SEEDS[row["figure"]],
        env_steps_P=PREFILL_ENV_STEPS + EPOCH_ENV_STEPS * numbers("epochs"),
        time_at_goal_P=numbers("time_at_goal"),
        share_P=numbers("time_at_goal") / EPISODE_LENGTH,
        standard_error_P=numbers("standard_error"),
    )
