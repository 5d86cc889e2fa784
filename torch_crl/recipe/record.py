"""The recipe: one frozen record of every setting that decides a run's result, to and from JSON."""

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch_crl import fields
from torch_crl.agent.sizes import (
    NetworkSizes,
    TowerSizes,
    encoder_depth,
    network_sizes,
    objective_towers,
)
from torch_crl.envs.registry import task_spec
from torch_crl.fields import STRICT, FieldsError, Problem
from torch_crl.recipe.costs import UpdateCost, replay_bytes
from torch_crl.recipe.marks import LIBRARY_ALGOS, unread
from torch_crl.recipe.settings import (
    AlgorithmRecipe,
    BaselineRecipe,
    BudgetRecipe,
    GoalsRecipe,
    NetworksRecipe,
    SystemRecipe,
    TaskRecipe,
)

FORMAT = 5
"""Format version of recipe.json; increase it with every new field, which earlier files lack."""
_ADDED: dict[str, dict[str, Any]] = {
    "goal_space": {
        "goals": "state",
        "encoder": "",
        "encoder_sha256": "",
        "same_place": "kept",
        "goal_features": 16,
        "picture_every": 10,
        "picture_size": 128,
    },
    "networks": {"actor_block": "same", "experts": 4},
    "system": {
        "env_timeout": 300.0,
        "collectors": 0,
        "collector_address": "",
        "collector_policy": "",
    },
    "algorithm": {
        "initial_temperature": 1.0,
        "average_weights": 0.0,
        "objective": "crl",
        "value_discount": 0.999,
        "censoring": "observed",
        "chunk": 1,
        "actor_goals": "own",
        "update_order": "together",
        "goal_redraw": 0.0,
        "negatives": "gathered",
        "load_balance": 0.01,
    },
}
"""Fields that files of an earlier format lack, with values that behave as the runs of then did."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Every setting that decides the result of a run."""

    __pydantic_config__ = STRICT

    task: TaskRecipe = field(default_factory=TaskRecipe)
    networks: NetworksRecipe = field(default_factory=NetworksRecipe)
    goal_space: GoalsRecipe = field(default_factory=GoalsRecipe)
    algorithm: AlgorithmRecipe = field(default_factory=AlgorithmRecipe)
    baseline: BaselineRecipe = field(default_factory=BaselineRecipe)
    budget: BudgetRecipe = field(default_factory=BudgetRecipe)
    system: SystemRecipe = field(default_factory=SystemRecipe)

    def __post_init__(self) -> None:
        """Give every number its field's type, since recipes are compared by what is written."""
        for name in _PARTS:
            object.__setattr__(self, name, fields.with_floats(getattr(self, name)))

    @property
    def own_code(self) -> tuple[str, str, str]:
        """The names that may be Python code: task, evaluation task and objective."""
        return self.task.name, self.task.eval_name, self.algorithm.objective

    @property
    def by_library(self) -> bool:
        """Whether Stable-Baselines3 provides the algorithm."""
        return self.algorithm.algo in LIBRARY_ALGOS

    @property
    def steps_per_collection(self) -> int:
        """Env steps between two rounds of updates."""
        return self.task.num_envs * self.budget.unroll_length

    @property
    def updates_per_collection(self) -> int:
        """Gradient updates after each collection, at least one."""
        return max(1, round(self.steps_per_collection / self.budget.env_steps_per_update))

    @property
    def prefill_collections(self) -> int:
        """Collections before the first update: prefill_rows, rounded up to whole collections."""
        return math.ceil(self.budget.prefill_rows / self.budget.unroll_length)

    @property
    def evaluations(self) -> int:
        """Evaluations that the run makes: at most one after each collection."""
        return min(self.budget.evaluations, self.collections)

    @property
    def checkpoints(self) -> int:
        """Checkpoints that the run writes: at most one after each collection."""
        return min(self.budget.checkpoints, self.collections)

    @property
    def collections(self) -> int:
        """Collections that are followed by updates, at least one."""
        after_prefill = self.budget.env_steps - self.prefill_collections * self.steps_per_collection
        return max(1, math.ceil(after_prefill / self.steps_per_collection))

    @property
    def total_env_steps(self) -> int:
        """Env steps of the whole run, the prefill included."""
        return (self.prefill_collections + self.collections) * self.steps_per_collection

    @property
    def total_updates(self) -> int:
        """Gradient updates of the whole run."""
        return self.collections * self.updates_per_collection

    @property
    def samples_per_step(self) -> float:
        """Mean number of times that a collected step is drawn into a batch."""
        return self.total_updates * self.algorithm.batch_size / self.total_env_steps

    @property
    def replay_transitions(self) -> int:
        """Steps that the replay can hold."""
        return self.budget.replay_rows * self.task.num_envs

    @property
    def replay_bytes(self) -> int:
        """Memory of the replay buffer in bytes, all of it reserved at the start."""
        spec = task_spec(self.task.name)
        return replay_bytes(
            rows=self.budget.replay_rows,
            num_envs=self.task.num_envs,
            state_size=spec.state_size,
            goal_size=spec.goal_size,
            action_size=spec.action_size,
            bytes_per_number=2 if self.system.replay_dtype == "bfloat16" else 4,
        )

    @property
    def update_flop(self) -> int | None:
        """Floating-point operations of the dense layers in one update; None for a baseline."""
        cost = self.update_cost
        if self.by_library:
            return None
        return cost.flop if self.algorithm.algo == "crl" else cost.cloning_flop

    @property
    def petaflop(self) -> float | None:
        """Operations of all updates of the run, in units of 1e15; None for a baseline."""
        return None if self.update_flop is None else self.update_flop * self.total_updates / 1e15

    @property
    def update_cost(self) -> UpdateCost:
        """Parameters, operations and memory of one gradient update of contrastive RL."""
        return UpdateCost(
            networks=self.network_sizes,
            batch_size=self.algorithm.batch_size,
            more_towers=tuple(self.more_towers.values()),
            averaged=self.algorithm.average_weights > 0,
        )

    @property
    def goal_size(self) -> int:
        """Number of entries of a goal as the networks see it."""
        state = self.goal_space.goals == "state" or self.by_library
        return task_spec(self.task.name).goal_size if state else self.goal_space.goal_features

    @property
    def network_sizes(self) -> NetworkSizes:
        """Sizes of the three networks of contrastive RL on this task."""
        spec, networks = task_spec(self.task.name), self.networks
        return network_sizes(
            state_size=spec.state_size,
            goal_size=self.goal_size,
            action_size=spec.action_size * self.algorithm.chunk,
            actor_depth=networks.actor_depth,
            critic_depth=encoder_depth(self.algorithm.objective, networks.critic_depth),
            width=networks.width,
            representation_size=networks.representation_size,
            activation=networks.activation,
            branch=networks.branch,
            block=networks.block,
            actor_block=networks.actor_block,
            experts=networks.experts,
        )

    @property
    def more_towers(self) -> dict[str, TowerSizes]:
        """Sizes of the towers that the objective has beside the three networks, by name."""
        return objective_towers(
            self.algorithm.objective,
            self.network_sizes,
            critic_depth=self.networks.critic_depth,
            branch=self.networks.branch,
            window=self.task.episode_length,
        )

    def to_json(self) -> str:
        """Indented JSON with one field per line and the format version."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> "Recipe":
        """The recipe that `to_json` of this version or an earlier one wrote.

        Raises FieldsError with every problem: a missing or unknown field, a value out of range.
        """
        document = fields.read(dict[str, Any], text)
        written = document.pop("format", 0)
        if written not in range(FORMAT + 1):
            what = (
                f"must be at most {FORMAT}, got {written!r}: a newer version of torch_crl wrote it"
            )
            raise FieldsError([Problem(("format",), what)])
        if written < 5:
            document.setdefault("goal_space", {})
        for part, added in _ADDED.items():
            if isinstance(document.get(part), dict):
                document[part] = added | document[part]
        problems = [*_missing(document), *fields.check(Recipe, document)]
        if problems:
            raise FieldsError(problems)
        recipe = Recipe(**{name: part(**document[name]) for name, part in _PARTS.items()})
        # Presets once gave values to what an algorithm does not read.
        return (
            with_defaults(recipe, unread(Recipe, recipe.algorithm.algo)) if written < 3 else recipe
        )

    def leaves(self) -> dict[str, Any]:
        """`part.field` to value, for comparing and listing."""
        return {
            f"{part}.{name}": value
            for part, values in dataclasses.asdict(self).items()
            for name, value in values.items()
        }


_PARTS: dict[str, type[Any]] = {
    "task": TaskRecipe,
    "networks": NetworksRecipe,
    "goal_space": GoalsRecipe,
    "algorithm": AlgorithmRecipe,
    "baseline": BaselineRecipe,
    "budget": BudgetRecipe,
    "system": SystemRecipe,
}


def with_defaults(recipe: Recipe, leaves: Iterable[str]) -> Recipe:
    """The recipe with the record's default values in these leaves, given as `part.field`."""
    defaults = Recipe()
    for leaf in leaves:
        part, name = leaf.split(".")
        default = getattr(getattr(defaults, part), name)
        changed = dataclasses.replace(getattr(recipe, part), **{name: default})
        recipe = dataclasses.replace(recipe, **{part: changed})
    return recipe


def extended(recipe: Recipe, env_steps: int) -> Recipe:
    """The recipe with more env steps; evaluations and checkpoints stay about as far apart."""
    budget = recipe.budget
    longer = dataclasses.replace(recipe, budget=dataclasses.replace(budget, env_steps=env_steps))
    factor = longer.collections / recipe.collections
    more = dataclasses.replace(
        longer.budget,
        evaluations=max(1, round(factor * budget.evaluations)),
        checkpoints=max(1, round(factor * budget.checkpoints)),
    )
    return dataclasses.replace(longer, budget=more)


def differences(ours: Recipe, theirs: Recipe) -> list[str]:
    """One line `--flag: ours -> theirs` for every leaf that differs."""
    other = theirs.leaves()
    return [
        f"{flag_of(name)}: {value!r} -> {other[name]!r}"
        for name, value in ours.leaves().items()
        if value != other[name]
    ]


def _missing(document: dict[str, Any]) -> list[Problem]:
    """Fields that a file lacks: an error, since a default need not be the value the run had."""
    found = []
    for name, part in _PARTS.items():
        given = document.get(name)
        if given is None:
            found.append(Problem((name,), "is missing"))
        elif isinstance(given, dict):
            names = [field.name for field in dataclasses.fields(part)]
            found += [Problem((name, field), "is missing") for field in names if field not in given]
    return found


def flag_of(leaf: str) -> str:
    """What sets a field in `train`: `--batch-size` for `algorithm.batch_size`."""
    if leaf == "task.name":
        return "the task"  # It is given without a flag.
    return "--" + leaf.rpartition(".")[2].replace("_", "-")
