"""Loads policies and tasks from run directories, for the commands that need them."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from torch_crl.cli.flags import RunPath
from torch_crl.cli.progress import Stages
from torch_crl.envs.task_name import parse_task_name
from torch_crl.envs.trust import allow_tasks
from torch_crl.errors import UsageError
from torch_crl.fields import CountOrZero, Seed
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.finding import run_directory_of
from torch_crl.system.terminal import print_line

if TYPE_CHECKING:
    from torch_crl.agent.policy import Policy
    from torch_crl.envs.task_vector_env import TaskVectorEnv
    from torch_crl.envs.vector_env import VectorEnv
    from torch_crl.goals.sentences import Reader
    from torch_crl.planning.goal_value import TrainedRun


@dataclass(frozen=True, kw_only=True)
class TrainedOptions:
    """Which policy to run, and on which task: what `eval`, `watch`, `plan`, `heatmap` share."""

    run: RunPath
    """Run directory, or one of the folders in its policies/, or zoo:NAME."""
    policy: Literal["newest", "best"] = "newest"
    """Which policy of the run: the newest, or the best by the evaluations during training."""
    depth: CountOrZero = 0
    """Depth at which to run a policy whose blocks share their weights; 0 is that of training."""
    task: str = ""
    """Task to run the policy on; the run's own evaluation task if not given."""
    episode_length: CountOrZero = 0
    """Control steps until an episode's time limit; 0 takes the time limit of the training."""
    trust: bool = False
    """Allow running the Python code of a task, or an objective, that only the run's files name."""
    seed: Seed = 1_000_000
    """Random seed of the episodes' starts and goals; training never uses the default value."""


class Trained(NamedTuple):
    """A policy, and the task and time limits to run it with."""

    policy: "Policy"
    task: str
    episode_length: int
    env_timeout: float


def load_trained(options: TrainedOptions) -> Trained:
    """Load a policy of a run; task and time limit are those of its evaluations if not given.

    Prints on standard error which policy it is. A task that only the run's recipe names is loaded
    if it is one of ours or with `--trust`. Raises UsageError, UnknownTaskError or CheckpointError.
    """
    directory = run_directory_of(options.run)
    recipe = directory.read_recipe()
    # Imported now, so that a wrong name is told before.
    from torch_crl.encoders import trust_encoder
    from torch_crl.encoders.camera import trust_task
    from torch_crl.envs.registry import task_spec

    policy = told_policy(options.run, options.policy, depth=options.depth)
    typed = [options.task] if options.task else []
    task = options.task or recipe.task.eval_name
    filmed = _filmed_by(policy)
    allow_tasks_of(directory, [task, *filmed], typed=typed, trust=options.trust)
    for name in filmed:
        trust_task(name)
    spec = task_spec(task)
    sizes = (policy.state_size, policy.goal_size, policy.action_size)
    state_size = policy.state_size if policy.camera is not None else spec.state_size
    if (state_size, spec.goal_size, spec.action_size) != sizes:
        raise UsageError(
            f"the policy was trained on {recipe.task.name}; {task} has states, goals or actions of "
            "other sizes"
        )
    policy.check_task(task)
    if options.trust and policy.reader is not None:
        trust_encoder(policy.reader.description()["encoder"])
    length = options.episode_length or recipe.task.episode_length
    return Trained(policy, task, length, recipe.system.env_timeout)


def _filmed_by(policy: "Policy") -> list[str]:
    """The tasks that a policy takes pictures of."""
    senses = [sense.description() for sense in (policy.reader, policy.camera) if sense]
    return [sense["task"] for sense in senses if "task" in sense]


def trained_run(options: TrainedOptions, trained: Trained) -> "TrainedRun":
    """Critic and replay of the run, for its task or another one in the same place.

    Raises UsageError if there are none, or if the tasks are too different to plan in; and for a
    task that is Python code, without `--trust`.
    """
    from torch_crl.envs.registry import task_spec
    from torch_crl.planning.goal_value import load_trained_run
    from torch_crl.planning.pictures import ground_of
    from torch_crl.planning.planner import VISITED

    directory = run_directory_of(options.run)
    recipe = directory.read_recipe()
    own, objective = recipe.task.name, recipe.algorithm.objective
    typed = [options.task] if options.task else []
    allow_tasks_of(directory, [own], objective=objective, typed=typed, trust=options.trust)
    task = trained.task
    same_goals = task_spec(own).goal_slice == task_spec(task).goal_slice
    if task != own and not (same_goals and ground_of(own) == ground_of(task)):
        raise UsageError(
            f"the run's critic and replay are of {own}; {task} has other walls or goals"
        )
    with Stages() as stages:
        stages.begin("reading the run's critic and replay")
        run = load_trained_run(directory, states=VISITED)
    for failure in run.passed_over:
        print_line(f"passed over, critic and replay are older: {failure}", stderr=True)
    return run


def critic_if_any(
    load: "Callable[[], TrainedRun]", *, without: str
) -> "tuple[TrainedRun | None, str]":
    """What `load` reads; where there is no critic to read None and why, told as `without`."""
    from torch_crl.system.checkpoint import CheckpointError

    try:
        return load(), ""
    except (UsageError, CheckpointError) as error:
        print_line(f"{without}: {error}", stderr=True)
        return None, f"{without}: {error}"


def told_policy(run: Path, which: Literal["newest", "best"], *, depth: int = 0) -> "Policy":
    """The policy of a run, at another depth if one is given; prints which one it is.

    Raises CheckpointError, and UsageError if the policy has a depth of its own.
    """
    from torch_crl.runs.policies import find_policy

    found = find_policy(run, which=which)
    policy = found.policy.at_depth(depth) if depth else found.policy
    for failure in found.passed_over:
        print_line(f"passed over: {failure}", stderr=True)
    print_line(f"policy: {found.folder}", stderr=True)
    return policy


def allow_tasks_of(
    directory: RunDirectory,
    names: Iterable[str],
    *,
    objective: str = "",
    typed: Iterable[str] | None,
    trust: bool,
) -> None:
    """Call `allow_tasks` for what a run's recipe names, and load what of it is Python code.

    Raises UsageError as `allow_tasks` does, and UnknownTaskError for a task, or UsageError for an
    objective, that cannot be loaded, with the file that its module had in training.
    """
    from torch_crl.envs.registry import UnknownTaskError, module_of, task_spec

    loads: dict[str, Callable[[str], object]] = dict.fromkeys(names, task_spec)
    if module_of(objective):
        from torch_crl.agent.objectives import find

        loads[objective] = find
    allow_tasks(loads, typed=typed, trust=trust, source=directory.recipe)
    for name, load in loads.items():
        try:
            if module_of(name):
                load(name)
        except (UnknownTaskError, UsageError) as error:
            file = directory.read_machine().task_files.get(name)
            if file is None:
                raise
            raise type(error)(
                f"{error}. The run was trained with {file}: go to that folder, or put it on "
                "PYTHONPATH"
            ) from error


def reader_of(trained: Trained) -> "Reader":
    """What reads the sentences of a policy. Raises UsageError if it takes goals as numbers."""
    from torch_crl.goals.sentences import Reader

    if not isinstance(trained.policy.reader, Reader):
        raise UsageError(
            "this policy takes goals as numbers and reads no sentences; "
            "`torch-crl train TASK --goals words` trains one that does"
        )
    return trained.policy.reader


def shown(trained: Trained, picture: Path) -> Trained:
    """The policy that follows the picture in a file; prints which known goal is most like it.

    Raises UsageError if it takes no pictures, EncoderError if it shows something else.
    """
    from torch_crl.goals.pictures import PictureReader

    reader = trained.policy.reader
    if not isinstance(reader, PictureReader):
        raise UsageError(
            "this policy takes no pictures; `torch-crl train TASK --goals pictures` trains one "
            "that does"
        )
    commanding = reader.showing(picture)
    assert commanding.places is not None
    goal = ", ".join(f"{number:.3g}" for number in commanding.places.point_PG[0].tolist())
    print_line(f"{picture}: judged by the known goal that is most like it, ({goal})", stderr=True)
    return trained._replace(policy=trained.policy.with_reader(commanding))


def told(trained: Trained, sentence: str) -> Trained:
    """The policy that follows a sentence; prints which place it is about.

    Raises SentenceError with the nearest places, if it is about none of them.
    """
    reader = reader_of(trained)
    policy = trained.policy.with_reader(reader.saying(sentence))
    (meaning,) = reader.meanings([sentence])
    name = reader.vocabulary.names[meaning.place]
    read_as = "" if meaning.similarity == 1.0 else f", read as {reader.phrase(meaning)!r}"
    print_line(
        f"{sentence!r}: the {name} (similarity {meaning.similarity:.2f}{read_as})", stderr=True
    )
    return trained._replace(policy=policy)


def allow_encoder(name: str, *, typed: str, trust: bool, source: object) -> None:
    """Raise UsageError for an encoder that is Python code and that only a file names."""
    if not name:
        return
    from torch_crl.encoders import module_of_encoder

    if (module := module_of_encoder(name)) and name != typed and not trust:
        raise UsageError(
            f"{source} names an encoder that is Python code, and would import {module}; give "
            "--trust if you trust who made it, or type --encoder yourself"
        )


def task_env(trained: Trained, *, num_envs: int, seed: int) -> "TaskVectorEnv":
    """Envs of one of our tasks. Raises UsageError for a Gymnasium env."""
    from torch_crl.envs.make import make_task_vector_env

    if parse_task_name(trained.task).kind == "gymnasium":
        raise UsageError(
            f"{trained.task} has no model that MuJoCo's viewer could show; `torch-crl eval RUN "
            "--video out.mp4` films it with its own render()"
        )
    return make_task_vector_env(
        trained.task,
        num_envs=num_envs,
        episode_length=trained.episode_length,
        seed=seed,
        places=trained.policy.places,
    )


def film_env(trained: Trained, *, num_envs: int, seed: int) -> "VectorEnv":
    """Envs that can be filmed. Raises UnsuitableEnvError if the env cannot draw pictures."""
    from torch_crl.envs.gymnasium.vector_env import GymnasiumVectorEnv
    from torch_crl.rendering.gl import draw_without_display

    if parse_task_name(trained.task).kind != "gymnasium":
        return task_env(trained, num_envs=num_envs, seed=seed)
    draw_without_display()
    return GymnasiumVectorEnv(
        trained.task,
        num_envs=num_envs,
        episode_length=trained.episode_length,
        seed=seed,
        render_mode="rgb_array",
    )
