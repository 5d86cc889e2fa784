"""One frozen record of a run: all that decides its result. JSON both ways."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from tyro.conf import Positional

from torch_crl import fields
from torch_crl.agent.sizes import BlockName, NetworkSizes, network_sizes
from torch_crl.envs.registry import task_spec
from torch_crl.fields import (
    STRICT,
    BelowOne,
    Count,
    CountOrZero,
    Depth,
    FieldsError,
    Positive,
    PositiveOrZero,
    Problem,
    Seed,
    Steps,
    Threads,
    TwoOrMore,
)
from torch_crl.recipe.costs import UpdateCost, replay_bytes
from torch_crl.recipe.marks import (
    BY_ALL_WITH_REPLAY,
    BY_CRL,
    BY_LIBRARY,
    BY_OURS,
    LIBRARY_ALGOS,
    Mark,
)

FORMAT = 1
"""Of recipe.json. Raise it with every field that a file of before cannot have."""
_ADDED: dict[str, dict[str, Any]] = {"system": {"env_timeout": 300.0}}
"""Fields that files of an earlier format lack, with the values that behave as before them."""

Algo: TypeAlias = Literal["crl", "gcbc", "ppo", "sac", "td3", "sac_her", "td3_her"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRecipe:
    """Which task, and how many episodes of it run side by side."""

    __pydantic_config__ = STRICT

    name: Annotated[Positional[str], Mark.NOT_OF_METHOD] = "reacher"
    """Task to train on; `torch-crl envs` lists them."""
    eval_name: Annotated[str, Mark.SAME_IN_COMPARISONS] = "reacher"
    """Task to evaluate on, usually the same."""
    num_envs: Annotated[Count, Mark.SIZE] = 512
    """Environments that collect in parallel."""
    num_eval_envs: Annotated[Count, Mark.SAME_IN_COMPARISONS] = 128
    """Episodes of one evaluation, all in parallel."""
    episode_length: Annotated[Count, Mark.SAME_IN_COMPARISONS] = 1000
    """Control steps until an episode's time limit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworksRecipe:
    """Sizes of the three residual towers."""

    __pydantic_config__ = STRICT

    actor_depth: Annotated[Depth, Mark.IN_METHOD_NAME] = 4
    """Dense layers inside the actor's residual blocks; a multiple of 4. 0 is the library's own
    network, for the algorithms that come from one."""
    critic_depth: Annotated[Depth, Mark.IN_METHOD_NAME] = 4
    """The same for both encoders of the critic, or for a baseline's critics."""
    width: Annotated[Count, Mark.OF_TOWERS] = 256
    """Units of every layer."""
    representation_size: Annotated[Count, BY_CRL] = 64
    """Entries of an encoder's output."""
    activation: Annotated[Literal["swish", "relu"], Mark.OF_TOWERS] = "swish"
    """After every LayerNorm."""
    block: Annotated[BlockName, Mark.OF_TOWERS] = "published"
    """`no_skip` adds no residual; `no_norm` has no LayerNorm statistics, only their scale and
    shift; `hyperspherical` has features and weight rows of norm 1 and moves towards each block's
    output (SimBaV2); `pre_norm` has LayerNorm at the start of a linear-ended branch and before the
    head (SimBa). Same parameters each; all but `published` in plain torch."""
    branch: Annotated[Literal["auto", "published", "scaled"], Mark.OF_TOWERS] = "auto"
    """What a block adds to the sum is multiplied by: `published` 1; `scaled` min(1, 16 / depth), so
    that what an update does stops growing with depth; `auto` is scaled above depth 512."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlgorithmRecipe:
    """What is learned: contrastive RL's objective and optimiser, or which baseline instead."""

    __pydantic_config__ = STRICT

    algo: Annotated[Algo, Mark.IN_METHOD_NAME] = "crl"
    """Contrastive RL; goal-conditioned behaviour cloning; or a baseline by Stable-Baselines3, with
    `_her` on hindsight goals."""
    energy: Annotated[Literal["norm", "l2", "dot", "cosine"], BY_CRL] = "norm"
    """Similarity of the two encoders' outputs; `norm` is the negative Euclidean distance."""
    contrastive_loss: Annotated[
        Literal["forward_info_nce", "backward_info_nce", "symmetric_info_nce", "binary_nce"], BY_CRL
    ] = "forward_info_nce"
    """How the critic tells true futures from others; binary_nce cannot learn with `cosine`."""
    logsumexp_penalty: Annotated[PositiveOrZero, BY_CRL] = 0.1
    """Weight of the squared log-sum-exp of a row of logits."""
    discount: BelowOne = 0.99
    """Goals are drawn k steps ahead with probability proportional to discount**k."""
    target_entropy: Annotated[float, BY_CRL] = -0.5
    """Of the policy, in nats for each entry of the action."""
    actor_learning_rate: Annotated[Positive, BY_OURS] = 3e-4
    """Adam's, constant."""
    critic_learning_rate: Annotated[Positive, BY_CRL] = 3e-4
    """Adam's, for both encoders, constant."""
    temperature_learning_rate: Annotated[Positive, BY_CRL] = 3e-4
    """Adam's, for the logarithm of the entropy coefficient, constant."""
    batch_size: Annotated[TwoOrMore, Mark.SIZE] = 512
    """Steps in one gradient update; each sees the goals of all others as negatives."""
    parity: Literal["none", "reference"] = "none"
    """`reference`: each env repeats its first start and goal, goals end with their window, and the
    last state of an episode is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineRecipe:
    """What only the baselines read; all else of them is the default of Stable-Baselines3."""

    __pydantic_config__ = STRICT

    reward: Annotated[Literal["sparse", "dense"], BY_LIBRARY, Mark.IN_METHOD_NAME] = "sparse"
    """After each control step: 1 within the success radius, else 0; or minus the distance in
    metres."""
    learning_rate: Annotated[Positive, BY_LIBRARY] = 3e-4
    """Adam's, for all networks of the baseline, constant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRecipe:
    """How long, how much data, and how often to look."""

    __pydantic_config__ = STRICT

    env_steps: Annotated[Steps, Mark.SIZE, Mark.SAME_IN_COMPARISONS] = 100_000_000
    """Control steps of all training envs together, the prefill included; rounded up."""
    unroll_length: Annotated[Count, Mark.SIZE] = 62
    """Control steps of each env between two rounds of updates."""
    env_steps_per_update: Annotated[Positive, Mark.SIZE] = 39.68
    """Inverse of the update-to-data ratio; the published 39.68 is 800 updates for 512 x 62."""
    prefill_rows: Annotated[CountOrZero, Mark.SIZE] = 1000
    """Steps of each env before the first update; 0 for PPO, which keeps no replay."""
    replay_rows: Annotated[Count, BY_ALL_WITH_REPLAY, Mark.SIZE] = 10_000
    """Steps of each env that the replay keeps."""
    evaluations: Annotated[Count, Mark.SAME_IN_COMPARISONS] = 100
    """Evaluations after the first, evenly spaced; the last is at the end."""
    checkpoints: Annotated[Count, Mark.NOT_OF_METHOD] = 20
    """Checkpoints, evenly spaced; the last is at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemRecipe:
    """Machine and random numbers."""

    __pydantic_config__ = STRICT

    seed: Annotated[Seed, Mark.NOT_OF_METHOD] = 0
    """Decides every random draw of the run."""
    device: Annotated[str, Mark.NOT_OF_METHOD] = "auto"
    """`auto` takes a CUDA device if there is one; or `cpu`, `cuda`, `cuda:1`."""
    simulator: Annotated[Literal["cpu", "warp"], Mark.SAME_IN_COMPARISONS] = "cpu"
    """Where physics runs: on the CPU's cores, or by MuJoCo Warp on the device of the updates."""
    overlap: Literal["off", "on"] = "off"
    """Collect on the CPU while a CUDA device updates; the policy that collects is then that from
    before the last round of updates."""
    replay_dtype: Annotated[Literal["float32", "bfloat16"], BY_OURS] = "float32"
    """bfloat16 halves the replay and rounds a position of 20 m to 0.1 m."""
    simulator_threads: Annotated[Threads, Mark.NOT_OF_METHOD] = 0
    """Threads of physics; 0 takes every CPU."""
    env_timeout: Annotated[PositiveOrZero, Mark.NOT_OF_METHOD] = 300.0
    """Seconds that a Gymnasium env may take for a step or a reset before it counts as hung, found
    after at most twice as long; 0 waits for ever."""
    torch_threads: Annotated[Threads, Mark.NOT_OF_METHOD] = 0
    """Threads of the updates on the CPU; 0 takes every CPU, or one for small layers."""
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = "auto"
    """Of the operands of the inner layers' products, all else is fp32; `auto` is fp16 on CUDA,
    or tf32 for another --block than the published one, whose sums nothing bounds."""
    tower: Literal["auto", "reference", "norm_act", "persistent"] = "auto"
    """Plain torch; one kernel a layer; one kernel for all layers (width 128 or 256)."""
    recompute: CountOrZero = 0
    """Layers between two activations kept for the backward, to save memory; 0 keeps all."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """Capture the update once and replay it; `auto` does on CUDA."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that decides the result of a run."""

    __pydantic_config__ = STRICT

    task: TaskRecipe = field(default_factory=TaskRecipe)
    networks: NetworksRecipe = field(default_factory=NetworksRecipe)
    algorithm: AlgorithmRecipe = field(default_factory=AlgorithmRecipe)
    baseline: BaselineRecipe = field(default_factory=BaselineRecipe)
    budget: BudgetRecipe = field(default_factory=BudgetRecipe)
    system: SystemRecipe = field(default_factory=SystemRecipe)

    @property
    def by_library(self) -> bool:
        """Whether the algorithm is one of Stable-Baselines3."""
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
        """Collections before the first update; prefill_rows rounded up to whole collections."""
        return math.ceil(self.budget.prefill_rows / self.budget.unroll_length)

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
        """How often a collected step is trained on, on average."""
        return self.total_updates * self.algorithm.batch_size / self.total_env_steps

    @property
    def replay_transitions(self) -> int:
        """Steps that the replay can hold."""
        return self.budget.replay_rows * self.task.num_envs

    @property
    def replay_bytes(self) -> int:
        """Memory of the replay, all of it reserved at the start."""
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
        """1e15 such operations in all updates of the run; None for a baseline."""
        return None if self.update_flop is None else self.update_flop * self.total_updates / 1e15

    @property
    def update_cost(self) -> UpdateCost:
        """Parameters, operations and memory of one gradient update of contrastive RL."""
        return UpdateCost(networks=self.network_sizes, batch_size=self.algorithm.batch_size)

    @property
    def network_sizes(self) -> NetworkSizes:
        """The three networks of contrastive RL on this task."""
        spec, networks = task_spec(self.task.name), self.networks
        return network_sizes(
            state_size=spec.state_size,
            goal_size=spec.goal_size,
            action_size=spec.action_size,
            actor_depth=networks.actor_depth,
            critic_depth=networks.critic_depth,
            width=networks.width,
            representation_size=networks.representation_size,
            activation=networks.activation,
            branch=networks.branch,
            block=networks.block,
        )

    def to_json(self) -> str:
        """Indented JSON, a field a line, and the format that it has."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str | bytes) -> "Recipe":
        """The recipe that `to_json` wrote, in this version or an earlier one.

        Raises FieldsError with all that is wrong: fields that are missing or unknown, values out
        of range.
        """
        document = fields.read(dict[str, Any], text)
        written = document.pop("format", 0)
        if written not in range(FORMAT + 1):
            what = (
                f"must be at most {FORMAT}, got {written!r}: a newer version of torch_crl wrote it"
            )
            raise FieldsError([Problem(("format",), what)])
        for part, added in _ADDED.items():
            if isinstance(document.get(part), dict):
                document[part] = added | document[part]
        problems = [*_missing(document), *fields.check(Recipe, document)]
        if problems:
            raise FieldsError(problems)
        return Recipe(**{name: part(**document[name]) for name, part in _PARTS.items()})

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
    "algorithm": AlgorithmRecipe,
    "baseline": BaselineRecipe,
    "budget": BudgetRecipe,
    "system": SystemRecipe,
}


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
    """One line `part.field: ours -> theirs` for every leaf that differs."""
    other = theirs.leaves()
    return [
        f"{name}: {value!r} -> {other[name]!r}"
        for name, value in ours.leaves().items()
        if value != other[name]
    ]


def _missing(document: dict[str, Any]) -> list[Problem]:
    """Fields without which a file is no recipe: their defaults are one task's, not this run's."""
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
    """The flag of `train` that sets a field: `--batch-size` for `algorithm.batch_size`."""
    return "--" + leaf.rpartition(".")[2].replace("_", "-")
