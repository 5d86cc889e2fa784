"""What the commands need to know of a run directory."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from torch_crl.errors import UsageError
from torch_crl.recipe import Recipe

if TYPE_CHECKING:
    from torch_crl.envs.vector_env import VectorEnv
    from torch_crl.policy import Policy


def read_recipe(run_dir: Path) -> Recipe:
    """The recipe of the run. Raises UsageError if there is none that can be read."""
    path = run_dir / "recipe.json"
    if not path.exists():
        raise UsageError(f"{run_dir} holds no run (there is no recipe.json in it)")
    try:
        return Recipe.from_json(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def run_directory_of(path: Path) -> Path:
    """The run directory itself, or the one that a policy folder belongs to."""
    path = path.resolve()
    for folder in (path, *path.parents):
        if (folder / "recipe.json").exists():
            return folder
    raise UsageError(f"{path} is no run directory (there is no recipe.json in it)")


class Trained(NamedTuple):
    """A policy and what to show it on."""

    policy: "Policy"
    task: str
    episode_length: int


def load_trained(run: Path, *, task: str = "", episode_length: int = 0) -> Trained:
    """The newest policy of a run; task and time limit are those of its evaluation if not given.

    Raises UsageError, UnknownTaskError or CheckpointError.
    """
    from torch_crl.envs.registry import task_spec
    from torch_crl.policy import load_policy

    if episode_length < 0:
        raise UsageError(f"--episode-length must be at least 1, got {episode_length}")
    recipe = read_recipe(run_directory_of(run))
    policy = load_policy(run)
    task = task or recipe.task.eval_name
    spec = task_spec(task)
    if (spec.state_size, spec.goal_size) != (policy.state_size, policy.goal_size):
        raise UsageError(
            f"the policy was trained on {recipe.task.name}; {task} has states and goals of "
            "other sizes"
        )
    return Trained(policy, task, episode_length or recipe.task.episode_length)


def task_env(trained: Trained, *, num_envs: int, seed: int) -> "VectorEnv":
    """Envs of the task that can be drawn. Raises UsageError for a Gymnasium env."""
    from torch_crl.envs.make import make_vector_env
    from torch_crl.envs.vector_env import VectorEnv

    env = make_vector_env(
        trained.task, num_envs=num_envs, episode_length=trained.episode_length, seed=seed
    )
    if not isinstance(env, VectorEnv):
        env.close()
        raise UsageError(
            f"{trained.task} draws itself, by its own render modes; torch_crl draws its own tasks"
        )
    return env
