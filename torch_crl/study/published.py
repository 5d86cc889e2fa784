"""Published learning curves and scores, to draw under one's own.

data/published_curves.csv has one curve of contrastive RL (arXiv 2503.14858) on each line. It holds
the authors' own plot data, "data for plots from paper", commit 86c1f08 of 2026-04-30 in the history
of their code (wang-kevin3290/scaling-crl). `fig1` varies depth (5 seeds, actor and critics alike),
`fig7` batch size and depth (3 seeds, humanoid), and `fig12` shows the limits, up to depth 1024 (3
seeds; its actor has depth 512). Width is 256, with 512 envs.

The data is trimmed: of 100, 150, 200 or 400 epochs the first 20 and the last five are kept, and
between them each 2nd, 3rd, 4th or 8th; values are rounded to 0.01 control steps. An evaluation is
128 episodes of 1000 control steps after an epoch; an epoch is 984,064 env steps, and 539,648 come
before the first one.

data/published_scores.csv has one objective at one depth on each line, with the score of every seed:
the mean of its last five evaluations after 100 M env steps, on the layout that it was trained on
(arXiv 2609.36238; `assets/data/bench.json` at commit 045e2d9 of nico-bohlinger/chronosrl, its
site). `AC-CRL` is contrastive RL with chunks of actions; it got a quarter more updates than CRL.

Legend: P evaluations of one curve.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources

import numpy as np

from torch_crl.study.statistics import Array

EPOCH_ENV_STEPS = 984_064
PREFILL_ENV_STEPS = 539_648
SCORED_ENV_STEPS = 100_000_000
EPISODE_LENGTH = 1000
_SEEDS = {"fig1": 5, "fig7": 3, "fig12": 3}
# Their name to the objective, and whether the actor decides several actions at once.
_METHODS = {
    "CRL": ("crl", False),
    "AC-CRL": ("crl", True),
    "SRL": ("survival", False),
    "ChronoSRL": ("chrono", True),
}


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PublishedScore:
    """What one objective reached after 100 M env steps."""

    task: str
    """Task that the policy was trained and evaluated on."""
    objective: str
    """A name of `torch_crl.agent.objectives`."""
    chunked: bool
    """Whether the actor decided several actions at once."""
    depth: int
    shares: tuple[float, ...]
    """Score of each seed, as a share of the episode."""

    @property
    def share(self) -> float:
        """Mean over the seeds."""
        return float(np.mean(self.shares))

    @property
    def standard_error(self) -> float:
        """Standard error of `share`."""
        return float(np.std(self.shares, ddof=1) / np.sqrt(len(self.shares)))


def published_curves(*, figure: str = "fig1", task: str = "") -> list[PublishedCurve]:
    """The curves of a figure, of one task if given, in the order of the file; none if unknown."""
    return [
        _curve(row)
        for row in _rows("published_curves.csv")
        if row["figure"] == figure and task in ("", row["train_task"])
    ]


def published_scores(*, task: str = "") -> list[PublishedScore]:
    """The scores of all objectives and depths, of one task if given; none if unknown."""
    return [_score(row) for row in _rows("published_scores.csv") if task in ("", row["task"])]


def _rows(name: str) -> Iterator[dict[str, str]]:
    text = resources.files("torch_crl.study").joinpath("data", name).read_text()
    return csv.DictReader(text.splitlines())


def _score(row: dict[str, str]) -> PublishedScore:
    objective, chunked = _METHODS[row["method"]]
    return PublishedScore(
        task=row["task"],
        objective=objective,
        chunked=chunked,
        depth=int(row["depth"]),
        shares=tuple(
            float(value) / EPISODE_LENGTH for value in row["time_at_goal_of_each_seed"].split()
        ),
    )


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
