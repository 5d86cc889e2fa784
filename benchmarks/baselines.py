"""Baselines here and by the library alone: `python -m torch_crl.benchmarks.baselines [NAME]`.

speed   PPO on `ant`, 64 envs, against the library's SubprocVecEnv of Ant-v5, equal settings
curves  SAC on one env of `reacher`, against a plain script on `gymnasium.make`, equal settings and
        equal random numbers: the curves must be equal, except for rounding in the evaluation

Ant-v5 has the same control step as `ant`, but by its definition it uses MuJoCo's RK4, contacts of
the whole body and a larger observation. Contenders of `speed` take turns within one run, and the
ratio is the median of the turns' ratios. `--out FILE` writes the JSON, which is also the last line
of standard output.
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import SubprocVecEnv
from torch import Tensor

from torch_crl import evaluate, preset, train, with_changes
from torch_crl.baselines.run import baseline_seed, build_baseline
from torch_crl.benchmarks.report import report
from torch_crl.benchmarks.timing import median_ratio, take_turns
from torch_crl.envs.gymnasium.registration import gymnasium_id
from torch_crl.recipe.record import Recipe
from torch_crl.runs.directory import RunDirectory
from torch_crl.system.threads import torch_threads
from torch_crl.training.run import stream_seed

ENVS, TURNS = 64, 5
TASK, STEPS, LOOKS = "reacher", 10_000, 10
Row = dict[str, Any]


def speed() -> list[Row]:
    """Env steps per second of a rollout alone, and of a rollout with its updates."""
    recipe = with_changes(
        preset("ant", algo="ppo"),
        task={"num_envs": ENVS},
        algorithm={"batch_size": ENVS},
        budget={"env_steps_per_update": ENVS / 10},
        system={"device": "cpu"},
    )
    ours: Any = build_baseline(recipe)
    steps = recipe.budget.unroll_length
    # Forked workers start fastest; by default the library starts each from a fresh interpreter.
    envs = make_vec_env(
        "Ant-v5",
        n_envs=ENVS,
        seed=0,
        vec_env_cls=SubprocVecEnv,
        vec_env_kwargs={"start_method": "fork"},
    )
    theirs: Any = PPO(
        "MlpPolicy", envs, n_steps=steps, batch_size=ENVS, n_epochs=10, device="cpu", seed=0
    )
    theirs.set_logger(Logger(None, []))
    _, callback = theirs._setup_learn(10**9, None)

    def collect_theirs() -> None:
        theirs.collect_rollouts(envs, callback, theirs.rollout_buffer, steps)

    def learn_ours() -> None:
        ours.collect()
        ours.update()

    def learn_theirs() -> None:
        collect_theirs()
        theirs.train()

    rows = []
    with torch_threads(1):
        for what, pair in {
            "rollout": (ours.collect, collect_theirs),
            "rollout and updates": (learn_ours, learn_theirs),
        }.items():
            seconds = take_turns(*pair, turns=TURNS)
            rates = [ENVS * steps / statistics.median(values) for values in seconds]
            rows.append(
                {
                    "scenario": "speed",
                    "what": what,
                    "envs": ENVS,
                    "ours_per_second": rates[0],
                    "subproc_vec_env_per_second": rates[1],
                    "ratio": median_ratio(seconds[1], seconds[0]),
                }
            )
    ours.close()
    envs.close()
    return rows


def curves() -> list[Row]:
    """Share of time at the goal, and mean distance, after about every 1,000 steps."""
    recipe = with_changes(
        preset(TASK, algo="sac"),
        task={"num_envs": 1},
        algorithm={"batch_size": 256},
        baseline={"reward": "dense"},
        budget={
            "env_steps": STEPS,
            "unroll_length": 50,
            "env_steps_per_update": 1.0,
            "prefill_rows": 500,
            "replay_rows": STEPS,
            "evaluations": LOOKS,
            "checkpoints": 1,
        },
        system={"device": "cpu"},
    )
    rows = []
    with torch_threads(1):
        for by, learn in {"torch_crl": _learn_here, "plain script": _learn_plainly}.items():
            rows.append({"scenario": "curves", "by": by, **learn(recipe)})
            print(rows[-1], flush=True)
    return rows


def _learn_here(recipe: Recipe) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, Path(folder) / "run", show=False)
        records = RunDirectory(Path(folder) / "run").read_metrics("evaluation")
    return _columns([int(record["env_steps"]) for record in records], records)


def _learn_plainly(recipe: Recipe) -> Row:
    prefill, rollout = recipe.budget.prefill_rows, recipe.budget.unroll_length
    model = plain_sac(recipe)

    def policy(state_NS: Tensor, goal_NG: Tensor) -> Tensor:
        observation = torch.cat([state_NS, goal_NG], dim=-1).numpy()
        return torch.from_numpy(model.predict(observation, deterministic=True)[0])

    steps, records = [], []
    for look in range(1, LOOKS + 1):
        wanted = prefill + (STEPS - prefill) * look // LOOKS
        model.learn(wanted - model.num_timesteps, reset_num_timesteps=False)
        steps.append(model.num_timesteps)
        records.append(
            evaluate(
                policy,
                TASK,
                num_envs=recipe.task.num_eval_envs,
                episode_length=recipe.task.episode_length,
                seed=stream_seed(recipe.system.seed, f"evaluation/{wanted // rollout}"),
            )
        )
    return _columns(steps, records)


def plain_sac(recipe: Recipe) -> SAC:
    """The script that a user of the library would write for one env, with our random numbers."""
    task, budget, seed = recipe.task, recipe.budget, recipe.system.seed
    goal_env = gymnasium.make(
        gymnasium_id(task.name),
        reward=recipe.baseline.reward,
        max_episode_steps=task.episode_length,
    )
    parts = ("observation", "desired_goal")
    assert isinstance(goal_env.observation_space, spaces.Dict)
    size = sum(spaces.flatdim(goal_env.observation_space[part]) for part in parts)
    env = TransformObservation(
        goal_env,
        lambda observation: np.concatenate([observation[part] for part in parts]),
        spaces.Box(-np.inf, np.inf, (size,)),
    )
    # `seed=` of the model is not used: it would seed the env's starts like the weights.
    env.reset(seed=stream_seed(seed, "starts"))
    env.action_space.seed(baseline_seed(seed))
    set_random_seed(baseline_seed(seed))
    model = SAC(
        "MlpPolicy",
        env,
        learning_starts=budget.prefill_rows,
        train_freq=budget.unroll_length,
        gradient_steps=recipe.updates_per_collection,
        batch_size=recipe.algorithm.batch_size,
        buffer_size=budget.replay_rows,
        device="cpu",
    )
    # The library's own logger would leave a folder in the temporary directory.
    model.set_logger(Logger(None, []))
    return model


def _columns(steps: list[int], records: list[dict[str, Any]]) -> Row:
    return {
        "env_steps": steps,
        "time_at_goal_share": [record["time_at_goal_share"] for record in records],
        "mean_distance": [record["mean_distance"] for record in records],
    }


def main() -> None:
    """Run the chosen scenarios, then print all rows as JSON."""
    scenarios = {"speed": speed, "curves": curves}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", choices=[[], *scenarios], default=[])
    parser.add_argument("--out", type=Path, help="write the JSON here too")
    options = parser.parse_args()
    rows = [row for name in options.scenarios or scenarios for row in scenarios[name]()]
    report(rows, options.out)


if __name__ == "__main__":
    main()
