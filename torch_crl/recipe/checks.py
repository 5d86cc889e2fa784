"""All checks of a recipe, made before anything is built."""

import dataclasses
import importlib.util
from collections.abc import Callable, Mapping
from typing import Any

from torch_crl import fields
from torch_crl.agent.blocks import BLOCKS
from torch_crl.agent.objectives import find
from torch_crl.agent.sizes import MOE
from torch_crl.envs.registry import UnknownTaskError, make_task, task_spec
from torch_crl.envs.spec import other_sizes
from torch_crl.envs.task import never_failed
from torch_crl.envs.task_name import parse_task_name
from torch_crl.errors import TorchCrlError, UsageError, listed
from torch_crl.kernels.tower import BLOCK
from torch_crl.recipe.baseline_checks import baseline_problems
from torch_crl.recipe.collector_checks import collector_problems
from torch_crl.recipe.compute_choice import compute_problems
from torch_crl.recipe.goal_checks import goal_problems
from torch_crl.recipe.marks import Mark, marked, unread
from torch_crl.recipe.presets import preset
from torch_crl.recipe.record import Recipe, flag_of, with_defaults
from torch_crl.system.devices import available_bytes, device_problems, resolve_device
from torch_crl.system.extras import install


class RecipeError(TorchCrlError, ValueError):
    """The recipe or the run directory cannot be used; the message lists every reason."""

    def __init__(self, problems: list[str]) -> None:
        """`problems` has one line for each problem."""
        self.problems = problems
        super().__init__(listed(problems))


def check(
    recipe: Recipe,
    *,
    run_problems: list[str] | None = None,
    of_device: Callable[[Recipe], Recipe] = lambda recipe: recipe,
) -> None:
    """Raise RecipeError if there is any problem; it lists `run_problems` after the recipe's own.

    `of_device` is the part of a recipe that has to fit into the memory of one device.
    """
    wrong = fields.check(Recipe, dataclasses.asdict(recipe))
    ranges = {
        ".".join(each.where): " ".join([*map(flag_of, each.where[-1:]), each.what])
        for each in wrong
    }
    if not set(ranges) <= set(Recipe().leaves()):
        raise RecipeError([*ranges.values(), *(run_problems or [])])
    # The checks below compute with the values, so values out of range are replaced by defaults.
    # Each mistake is reported once: combinations of values are checked only if each is possible.
    given, recipe = recipe.leaves(), with_defaults(recipe, ranges)
    ranges |= _least_problems(recipe, given)
    possible = set(marked(Recipe, Mark.SIZE)).isdisjoint(ranges)
    unread = _unread_problems(recipe, given)
    problems = [
        *_task_problems(recipe),
        *(told for leaf, told in ranges.items() if leaf not in unread),
        *_depth_problems(recipe),
        *_block_problems(recipe),
        *(_budget_problems(recipe) if possible else ()),
        *unread.values(),
        *(baseline_problems(recipe) if recipe.by_library and possible else ()),
        *(
            device_problems(recipe.system.device)
            or [*compute_problems(recipe), *_memory_problems(of_device(recipe))]
        ),
        *_simulator_problems(recipe),
        *_objective_problems(recipe),
        *collector_problems(recipe),
        *goal_problems(recipe),
    ]
    problems += run_problems or []
    if problems:
        raise RecipeError(problems)


def _task_problems(recipe: Recipe) -> list[str]:
    problems = []
    specs = {}
    names = {recipe.task.eval_name: "--eval-name", recipe.task.name: "task"}
    for name, flag in reversed(names.items()):
        try:
            specs[flag] = task_spec(name)
        except UnknownTaskError as error:
            problems.append(f"{flag}: {error}")
        else:
            found = _foreign_problems(recipe) if _is_foreign(name) else []
            problems += [f"{flag} {name}: {problem}" for problem in found]
    if len(specs) == 2 and not problems:
        train, evaluated = specs.values()
        if differing := other_sizes(evaluated, train):
            problems.append(
                f"a policy for {train.name} cannot be evaluated on {evaluated.name} (--eval-name): "
                f"{differing}"
            )
    return problems


def _is_foreign(name: str) -> bool:
    return parse_task_name(name).kind == "gymnasium"


def _foreign_problems(recipe: Recipe) -> list[str]:
    """Settings that a Gymnasium env, with physics and starts of its own, cannot follow."""
    problems = []
    if str(recipe.system.simulator) != "cpu":
        problems.append("brings its own physics and needs --simulator cpu")
    if recipe.algorithm.parity != "none":
        problems.append("draws its own starts, so --parity reference cannot repeat them")
    return problems


_WITH_WINDOWS = ("task.episode_length", "budget.prefill_rows", "budget.replay_rows")


def _least_problems(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, str]:
    """Leaf to problem: values in range that this algorithm, or --parity, does not allow."""
    prefill, on_policy = given["budget.prefill_rows"], recipe.algorithm.algo == "ppo"
    wanted = {}
    if on_policy and prefill:
        wanted["budget.prefill_rows"] = "0 for PPO, which keeps no replay"
    elif not on_policy and isinstance(prefill, int) and prefill < 1:
        wanted["budget.prefill_rows"] = "at least 1"
    if recipe.algorithm.actor_goals == "mixed" and given["algorithm.batch_size"] == 2:
        wanted["algorithm.batch_size"] = (
            "at least 3 with --actor-goals mixed, so that a step can take the goal of another one"
        )
    if recipe.algorithm.parity == "reference":
        windowed = (
            "at least 2 with --parity reference, whose windows hold a step and a later state as "
            "its goal"
        )
        wanted |= {name: windowed for name in _WITH_WINDOWS if given[name] == 1}
        if given["algorithm.goal_redraw"]:
            wanted["algorithm.goal_redraw"] = (
                "0 with --parity reference, which repeats each env's first goal"
            )
    return {
        name: f"{flag_of(name)} must be {what}, got {given[name]}" for name, what in wanted.items()
    }


def _depth_problems(recipe: Recipe) -> list[str]:
    problems = []
    for name in ("actor_depth", "critic_depth"):
        depth = getattr(recipe.networks, name)
        if depth == 0 and recipe.by_library:
            continue
        if depth < BLOCK or depth % BLOCK:
            below = max(depth // BLOCK * BLOCK, BLOCK)
            problems.append(
                f"{flag_of(f'networks.{name}')} must be a positive multiple of {BLOCK} (a residual "
                f"block has {BLOCK} layers), got {depth}; the nearest are {below} and "
                f"{below + BLOCK}"
            )
    return problems


def _block_problems(recipe: Recipe) -> list[str]:
    networks, problems = recipe.networks, []
    block = BLOCKS[networks.block]
    # Whose blocks have a sum and an activation, whatever those of the critic are.
    mixture = networks.actor_block == MOE
    if networks.branch == "scaled" and not (block.has_sum or mixture):
        problems.append(
            f"--branch scaled multiplies what a block adds to a sum, and --block {networks.block} "
            "has no such sum; use --branch auto"
        )
    other_activation = networks.activation != Recipe().networks.activation
    if other_activation and not (block.has_activation or mixture):
        problems.append(
            f"--activation {networks.activation} is not read by --block {networks.block}, whose "
            "functions are fixed; leave it out"
        )
    return problems + _mixture_problems(recipe)


def _mixture_problems(recipe: Recipe) -> list[str]:
    """Settings of a mixture of experts without one."""
    if recipe.networks.actor_block == MOE or recipe.by_library:
        return []
    given, usual = recipe.leaves(), Recipe().leaves()
    return [
        f"{flag_of(leaf)} is read with --actor-block {MOE} only; leave it out, got {given[leaf]}"
        for leaf in ("networks.experts", "algorithm.load_balance")
        if given[leaf] != usual[leaf]
    ]


def _budget_problems(recipe: Recipe) -> list[str]:
    budget, task = recipe.budget, recipe.task
    problems: list[str] = []
    if recipe.algorithm.algo == "ppo":
        return problems
    if budget.replay_rows < budget.prefill_rows:
        return [
            f"--replay-rows ({budget.replay_rows}) must be at least --prefill-rows "
            f"({budget.prefill_rows})"
        ]
    prefill_steps = recipe.prefill_collections * recipe.steps_per_collection
    if budget.env_steps <= prefill_steps:
        problems.append(
            f"--env-steps {budget.env_steps} ends within the prefill of {prefill_steps} steps "
            f"({recipe.prefill_collections} collections of {recipe.steps_per_collection}); raise "
            "it, or lower --prefill-rows or --num-envs"
        )
    rows = min(recipe.prefill_collections * budget.unroll_length, budget.replay_rows)
    longest = min(task.episode_length, rows)
    if recipe.algorithm.chunk > longest:
        why = "episodes" if longest == task.episode_length else "trajectories at the first update"
        problems.append(
            f"--chunk {recipe.algorithm.chunk} is longer than the {why}, which have {longest} "
            "control steps; lower it, or raise --episode-length and --prefill-rows"
        )
    # With --parity reference the newest row is never drawn: there is no later state as its goal.
    served = (rows - (recipe.algorithm.parity == "reference")) * task.num_envs
    if recipe.algorithm.batch_size > served:
        problems.append(
            f"--batch-size {recipe.algorithm.batch_size} is more than the replay can serve at the "
            f"first update: {rows} rows of {task.num_envs} envs hold {served} steps with a "
            "goal; raise --prefill-rows or --num-envs"
        )
    return problems


def _memory_problems(recipe: Recipe) -> list[str]:
    """Problems where the memory reserved at the start is more than the device has free."""
    device = resolve_device(recipe.system.device)
    available = available_bytes(device)
    try:
        spec = task_spec(recipe.task.name)
    except UnknownTaskError:
        return []  # Reported by the checks of the task.
    if available is None:
        return []
    # Lower bounds: each env holds its state twice; `training_bytes` has gradients and Adam moments.
    envs = max(recipe.task.num_envs, recipe.task.num_eval_envs)
    least = {
        "--width and the depths": recipe.update_cost.training_bytes,
        f"--num-envs or --num-eval-envs {envs}": envs * 2 * 4 * spec.state_size,
    }
    problems = [
        f"{what} takes at least {wanted / 1e9:,.1f} GB on {device}, where {available / 1e9:,.1f} "
        "GB are free"
        for what, wanted in least.items()
        if wanted > available
    ]
    wanted = 0 if recipe.by_library else recipe.replay_bytes
    if wanted <= available:
        return problems
    rows = recipe.budget.replay_rows
    return [
        *problems,
        f"--replay-rows {rows} takes {wanted / 1e9:,.1f} GB on {device}, where "
        f"{available / 1e9:,.1f} GB are free: at most {rows * available // wanted:,} rows of "
        f"{recipe.task.num_envs} envs fit; lower it or --num-envs, or take --replay-dtype bfloat16",
    ]


def _unread_problems(recipe: Recipe, given: Mapping[str, Any]) -> dict[str, str]:
    """Leaf to problem: values, as `given`, of settings that the algorithm does not read."""
    algo, networks = recipe.algorithm.algo, recipe.networks
    objective = recipe.algorithm.objective
    without = dict.fromkeys(unread(Recipe, algo, objective), f"--objective {objective}")
    without |= dict.fromkeys(unread(Recipe, algo), f"--algo {algo}")
    if recipe.by_library and not (networks.actor_depth or networks.critic_depth):
        of_towers = marked(Recipe, Mark.OF_TOWERS)
        without |= dict.fromkeys(of_towers, f"--algo {algo} without --depth")
    try:
        usual = preset(recipe.task.name, algo=algo).leaves()
    except UnknownTaskError:
        return {}  # Reported by the checks of the task.
    record = Recipe().leaves()
    return {
        name: f"{flag_of(name)} is not read by {what}; leave it out, got {given[name]!r} (the "
        f"preset of {recipe.task.name} has {usual[name]!r})"
        for name, what in without.items()
        if given[name] not in (usual[name], record[name])
    }


def _objective_problems(recipe: Recipe) -> list[str]:
    """Objectives that a task or another setting does not allow."""
    algorithm, name = recipe.algorithm, recipe.task.name
    objective = f"--objective {algorithm.objective}"
    try:
        find(algorithm.objective)
    except UsageError as error:
        return [f"--objective: {error}"]
    if algorithm.objective not in ("safe", "survival", "chrono"):
        return []
    problems = []
    if algorithm.parity == "reference":
        problems.append(
            f"{objective} counts steps to the end of a trajectory, and --parity reference draws "
            "from windows that may end before it; leave one of them out"
        )
    try:
        task = None if _is_foreign(name) else make_task(name)
    except UnknownTaskError:
        return problems  # Reported by the checks of the task.
    if algorithm.objective == "safe":
        if task is not None and task.failed is never_failed:
            problems.append(
                f"{objective} learns from episodes that fail, and those of {name} never do: it "
                "would equal --objective crl; use that"
            )
    elif task is None or "success" not in task.spec.success_radius:
        problems.append(
            f"{objective} learns when a goal is reached, by a task's success radius, and {name} "
            "has none; use --objective crl"
        )
    return problems


def _simulator_problems(recipe: Recipe) -> list[str]:
    system, names = recipe.system, (recipe.task.name, recipe.task.eval_name)
    problems = []
    # For the library's algorithms `baseline_problems` reports it.
    if system.overlap == "on" and not recipe.by_library:
        if system.simulator != "cpu":
            problems.append(f"--overlap on is for --simulator cpu, got {system.simulator}")
        if not device_problems(system.device) and resolve_device(system.device).type == "cpu":
            problems.append(
                "--overlap on hides physics on the CPU behind updates on a CUDA device, and these "
                "updates are on the CPU too"
            )
    if system.simulator == "warp":
        problems += [f"--simulator warp: {problem}" for problem in _warp_problems(names)]
    return problems


def _warp_problems(tasks: tuple[str, ...]) -> list[str]:
    if importlib.util.find_spec("mujoco_warp") is None:
        return [f"MuJoCo Warp is not installed: {install('warp')}"]
    from torch_crl.envs.simulators.warp import model_problem

    problems = []
    for name in dict.fromkeys(tasks):
        try:
            problem = model_problem(make_task(name).model)
        except UnknownTaskError:
            continue  # Reported by the checks of the task.
        problems += [f"{name}: {problem}"] if problem else []
    return problems
