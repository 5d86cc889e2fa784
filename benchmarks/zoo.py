"""Adds a policy to the zoo: `python -m torch_crl.benchmarks.zoo RUN NAME --origin TEXT`.

Keeps the recipe, the evaluations and the newest policy of a finished run, without critic and
replay, evaluates it over 512 episodes, and draws a film of it for the docs.
"""

import argparse
import json
import shutil
import tempfile
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

from torch_crl.benchmarks.kept_runs import keep
from torch_crl.envs.make import make_task_vector_env
from torch_crl.rendering.video import record
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.finding import zoo_folder
from torch_crl.runs.policies import find_policy, load_policy
from torch_crl.runs.zoo import ABOUT, About
from torch_crl.system.files import remove, write_text
from torch_crl.training.evaluation import evaluate

EPISODES = 512
SEED = 1_000_000
LEAST = 0.5
"""No policy below this success is kept."""
_FILMS = Path(__file__).resolve().parents[1] / "docs" / "images"


def add(run_dir: Path, name: str, *, origin: str) -> Path:
    """Write the entry, return its folder. Raises ValueError for unfinished runs, low success."""
    if not RunDirectory(run_dir).is_finished:
        raise ValueError(f"{run_dir} is not finished")
    found = find_policy(run_dir)
    recipe = RunDirectory(run_dir).read_recipe()
    evaluation = evaluate(
        found.policy,
        recipe.task.eval_name,
        num_envs=EPISODES,
        episode_length=recipe.task.episode_length,
        seed=SEED,
    )
    if evaluation["success_any"] < LEAST:
        raise ValueError(f"success {evaluation['success_any']:.3f} is below {LEAST}")
    with tempfile.TemporaryDirectory() as aside:
        kept = RunDirectory(keep(run_dir, Path(aside)))
        shutil.copyfile(RunDirectory(run_dir).machine, kept.machine)
        # Without the mode, so that everybody can read an installed copy.
        policy = kept.policies / found.folder.name
        shutil.copytree(found.folder, policy, copy_function=shutil.copyfile)
        about = About(evaluation=evaluation, episodes=EPISODES, origin=origin)
        write_text(kept.path / ABOUT, json.dumps(asdict(about), indent=2) + "\n")
        remove(zoo_folder() / name)
        return Path(shutil.copytree(kept.path, zoo_folder() / name))


def film(name: str, path: Path, *, seconds: float) -> None:
    """Film the policy of an entry in four episodes."""
    task = RunDirectory(zoo_folder() / name).read_recipe().task
    policy = load_policy(zoo_folder() / name)
    made = make_task_vector_env(
        task.eval_name,
        num_envs=4,
        episode_length=task.episode_length,
        seed=SEED,
        places=policy.places,
    )
    with closing(made) as env:
        steps = round(seconds / env.seconds_per_step)
        record(policy, env, path, steps=steps)


def main() -> None:
    """Add an entry and its film."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("name", help="name of the policy in the zoo")
    parser.add_argument("--origin", required=True, help="of which runs this is one, and why")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of the film")
    options = parser.parse_args()
    print(add(options.run, options.name, origin=options.origin))
    film(options.name, _FILMS / f"zoo_{options.name}.gif", seconds=options.seconds)


if __name__ == "__main__":
    main()
