"""Plans sub-goals to a far goal over states that a run has visited; nothing is trained for it.

A critic's distances are true where they are short. So the way to a far goal is searched over nodes
that are spread over the replay, along edges no longer than needed to connect them.

M nodes, N queries, K sub-goals, P visited states, S state, G goal.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from torch_crl.agent.policy import Policy
from torch_crl.envs.registry import make_task, task_spec
from torch_crl.envs.task_name import parse_task_name
from torch_crl.envs.trust import allow_tasks
from torch_crl.errors import UsageError
from torch_crl.planning.goal_value import GoalValue, TrainedRun, goal_value
from torch_crl.planning.graph import Graph, cut_off, kept, spread
from torch_crl.recipe.record import Recipe
from torch_crl.runs.policies import description_of, policy_in
from torch_crl.system import checkpoint
from torch_crl.system.files import exists, is_folder, remove

VISITED = 2_000_000
"""Most visited states among which nodes are chosen; a rare state may be the only one on a way."""
_NEIGHBOURS, _SOME = 64, 50_000
_REMEMBERED = 256
_REACH = 4.0
"""In radii of success: a policy need not stop at a place that it only passes."""
GOAL, START = -1, -2
"""Stand for the goal and for the state that a plan begins in where nodes are numbered."""
Edge = tuple[int, int]


class Plan(NamedTuple):
    """The way to a goal, as places to pass."""

    made_at: int
    """Control step of the state that the plan begins in."""
    subgoals_KG: Tensor
    """The last is the goal itself."""
    nodes: tuple[int, ...]
    """Number of each sub-goal's node, `GOAL` for the goal."""
    reach: float
    """Distance to a sub-goal at which the next one is due, in the goal's units."""
    arrived: float
    """Distance to the goal within which no other plan is needed."""
    steps: float
    """Length as the critic tells it; infinite if no way is known, and the plan is the goal."""


@dataclass(kw_only=True)
class GraphPlanner:
    """Shortest ways over nodes of a run's replay."""

    recipe: Recipe
    value: GoalValue
    node_MS: Tensor
    """States of the nodes."""
    length_MM: Tensor
    """Distance from each node to each other, as the critic tells it."""
    at_node_M: Tensor
    """V of each node for its own goal."""
    longest: float
    """Longest edge that is kept."""
    reach: float

    def __post_init__(self) -> None:
        self.graph = Graph(kept(self.length_MM, self.longest))
        self._last: dict[bytes, tuple[Tensor, Tensor]] = {}

    @property
    def goal_slice(self) -> slice:
        """Where the achieved goal is in a state."""
        return slice(*task_spec(self.recipe.task.name).goal_slice)

    @property
    def places(self) -> Tensor:
        """What is achieved at each node, [M, G]."""
        return self.node_MS[:, self.goal_slice]

    def plan(
        self,
        state_NS: Tensor,
        goal_NG: Tensor,
        *,
        avoid: Sequence[frozenset[Edge]] | None = None,
    ) -> list[Plan]:
        """A way from each state to its goal.

        It begins at the node with the shortest way in all that is not within reach already.
        `avoid` has edges that each query shall not use: those that begin at `START`, its state, and
        those that end at `GOAL`.
        """
        nodes, queries = len(self.node_MS), len(state_NS)
        last_NM, at_goal_N = map(torch.stack, zip(*map(self._last_step, goal_NG), strict=True))
        open_NM = torch.cdist(state_NS[:, self.goal_slice], self.places) > self.reach
        straight_N = torch.ones(queries, dtype=torch.bool)
        for row, edges in enumerate(avoid or ()):
            for begin, end in edges:
                if (begin, end) == (START, GOAL):
                    straight_N[row] = False
                elif begin == START:
                    # Neither to places that count as the same.
                    open_NM[row] &= (self.places - self.places[end]).norm(dim=-1) > self.reach
                else:
                    last_NM[row, begin] = torch.inf
        rest_NM = self.graph.rest(last_NM)
        first_NM = self.value.steps(
            self.value(state_NS.repeat_interleave(nodes, 0), self.places.repeat(queries, 1)).view(
                queries, nodes
            ),
            self.at_node_M,
        )
        direct_N = self.value.steps(self.value(state_NS, goal_NG), at_goal_N)
        first_NM = torch.where(open_NM, first_NM, torch.inf)
        near_NM = kept(first_NM, self.longest)
        total_N, start_N = (near_NM + rest_NM).min(-1)
        # Where no near node leads on, the nearest that does; who knows whether it can be reached.
        nearest_N, nearest = torch.where(rest_NM.isfinite(), first_NM, torch.inf).min(-1)
        start_N = torch.where(total_N.isfinite(), start_N, nearest)
        direct_N = torch.where(straight_N, kept(direct_N, self.longest), torch.inf)
        straight_N = (direct_N <= total_N) & (direct_N.isfinite() | ~nearest_N.isfinite())
        steps_N = torch.minimum(direct_N, total_N)
        paths = self._paths(torch.where(straight_N, GOAL, start_N), last_NM, rest_NM)
        return [
            self._plan_of(path, goal, steps)
            for path, goal, steps in zip(paths, goal_NG, steps_N.tolist(), strict=True)
        ]

    def _plan_of(self, path: list[int], goal_G: Tensor, steps: float) -> Plan:
        # A goal that only its own node leads to is gone to directly.
        path = [] if steps == torch.inf and len(path) == 1 else path
        subgoals_KG = torch.cat([self.places[path], goal_G[None]])
        return Plan(0, subgoals_KG, (*path, GOAL), self.reach, self.arrived, steps)

    @property
    def arrived(self) -> float:
        """See `Plan.arrived`: the radius of success."""
        radius = task_spec(self.recipe.task.name).success_radius.get("success", 0.0)
        return radius or self.reach / _REACH

    def failed(self, begin: int, end: int) -> None:
        """Tell that a robot did not get from one node to the next; edges that fail are dropped."""
        self.graph.failed(begin, end)

    def _last_step(self, goal_G: Tensor) -> tuple[Tensor, Tensor]:
        """Distance [M] from each node to a goal, infinite if too far; V of a state at the goal."""
        key = goal_G.numpy().tobytes()
        if key not in self._last:
            nearest = int((self.places - goal_G).square().sum(-1).argmin())
            there_S = self.node_MS[nearest].clone()
            there_S[self.goal_slice] = goal_G
            states = torch.cat([self.node_MS, there_S[None]])
            *value_M, at_goal = self.value(states, goal_G.expand(len(states), -1))
            all_M = self.value.steps(torch.stack(value_M), at_goal)
            last_M = kept(all_M, self.longest)
            # Without this a goal somewhat off all nodes could not be reached at all.
            last_M[nearest] = all_M[nearest]
            if len(self._last) >= _REMEMBERED:
                self._last.pop(next(iter(self._last)))
            self._last[key] = last_M, at_goal
        return self._last[key]

    def _paths(self, node_N: Tensor, last_NM: Tensor, rest_NM: Tensor) -> list[list[int]]:
        """The nodes of each way, from its first one on."""
        columns: list[Tensor] = []
        while (node_N != GOAL).any() and len(columns) < len(self.node_MS):
            columns.append(node_N)
            onward_N = self.graph.onward(node_N.clamp_min(0), last_NM, rest_NM)
            node_N = torch.where(node_N == GOAL, GOAL, onward_N)
        rows = torch.stack(columns, 1).tolist() if columns else [[] for _ in node_N]
        return [[node for node in row if node != GOAL] for row in rows]

    def save(self, folder: Path) -> None:
        """Write everything that `load_planner` needs, in place of another planner.

        Raises CheckpointError, and UsageError if the folder holds anything else.
        """
        if exists(folder):
            if not _holds_planner(folder):
                raise UsageError(f"{folder} exists and holds no planner; name another folder")
            remove(folder)
        tensors = {
            "node": self.node_MS,
            "length": self.length_MM,
            "at_node": self.at_node_M,
            **{f"critic/{name}": tensor for name, tensor in self.value.tensors().items()},
        }
        policy = self.value.policy
        tensors |= {f"actor/{name}": each for name, each in policy.actor.state_dict().items()}
        meta = {"recipe": self.recipe.to_json(), "longest": self.longest, "reach": self.reach}
        checkpoint.save(folder, tensors, meta | description_of(policy))


def _holds_planner(folder: Path) -> bool:
    with suppress(checkpoint.CheckpointError):
        return "longest" in checkpoint.load_meta(folder)
    return False


def load_planner(folder: str | Path, *, trust: bool = False) -> GraphPlanner:
    """The planner in a folder that `torch-crl plan` or `GraphPlanner.save` wrote.

    Raises CheckpointError, and UsageError if the folder names Python code, of a task or an
    objective, unless you `trust` who made it: loading it runs that code.
    """
    folder = Path(folder)
    if is_folder(folder / "planner"):
        folder = folder / "planner"
    if not exists(folder):
        raise checkpoint.CheckpointError(
            f"{folder} does not exist; give a folder that `torch-crl plan` has written, or `graph` "
            "to `torch-crl eval RUN --planner`, which makes a plan of the run itself"
        )
    tensors, meta = checkpoint.load(folder)
    try:
        recipe = Recipe.from_json(meta["recipe"])
        names = [recipe.task.name, recipe.algorithm.objective]
        allow_tasks(names, trust=trust, source=folder)
        policy = policy_in(folder, checkpoint.part_of(tensors, "actor"), meta)
        value = goal_value(recipe, policy, checkpoint.part_of(tensors, "critic"))
        return GraphPlanner(
            recipe=recipe,
            value=value,
            node_MS=tensors["node"],
            length_MM=tensors["length"],
            at_node_M=tensors["at_node"],
            longest=float(meta["longest"]),
            reach=float(meta["reach"]),
        )
    except UsageError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        raise checkpoint.CheckpointError(f"{folder} holds no planner: {error}") from error


def build_planner(
    run: TrainedRun, *, nodes: int = 150, reach: float = 0.0, policy: Policy | None = None
) -> GraphPlanner:
    """Choose nodes among the visited states and measure the distances between them.

    Args:
        nodes: their number M; M^2 distances are computed.
        reach: see `Plan.reach`; 0 is four times the radius of success.
        policy: whose actions the critic judges, in place of the run's own: a distilled one makes
            planning with deep networks faster.

    Raises UsageError for tasks whose goal moves, and for tasks without a radius of success if no
    reach is given.
    """
    spec = task_spec(run.recipe.task.name)
    if parse_task_name(spec.name).kind != "gymnasium" and make_task(spec.name).moved_goal:
        raise UsageError(
            f"the goal of {spec.name} moves with the robot's state, so no place on the way to it "
            "is a goal; there are no plans for this task"
        )
    reach = reach or _REACH * spec.success_radius.get("success", 0.0)
    if not reach:
        raise UsageError(
            f"{spec.name} has no radius of success to derive the reach of sub-goals from; make "
            "the planner with `torch-crl plan --reach`, a distance in the units of its goals"
        )
    value = run.value if policy is None else replace(run.value, policy=policy)
    node_MS, at_node_M = _at_rest(run, value, nodes)
    node_MG = node_MS[:, slice(*spec.goal_slice)]
    count = len(node_MS)
    to_all = value(node_MS.repeat_interleave(count, 0), node_MG.repeat(count, 1))
    length_MM = value.steps(to_all.view(count, count), at_node_M).fill_diagonal_(torch.inf)
    return GraphPlanner(
        recipe=run.recipe,
        value=value,
        node_MS=node_MS,
        length_MM=length_MM,
        at_node_M=at_node_M,
        longest=cut_off(length_MM),
        reach=reach,
    )


def _at_rest(run: TrainedRun, value: GoalValue, count: int) -> tuple[Tensor, Tensor]:
    """States [M, S] spread over what the visited ones achieve, and V of each for its own goal.

    Of the visited states near a place the one with the highest V for its own place is taken, which
    is at rest there: edges that begin at full speed would be too long or too short.
    """
    slice_ = slice(*task_spec(run.recipe.task.name).goal_slice)
    centre_M, radius = spread(run.visited_PS[:, slice_], count)
    centre_MS = run.visited_PS[centre_M]
    # Some of the visited states are enough for this.
    other_PS = run.visited_PS[:_SOME]
    away_MP = torch.cdist(centre_MS[:, slice_], other_PS[:, slice_])
    near = away_MP.topk(min(_NEIGHBOURS, len(other_PS)), largest=False)
    state_MPS = torch.cat([centre_MS[:, None], other_PS[near.indices]], dim=1)
    flat = state_MPS.flatten(0, 1)
    own_MP = value(flat, flat[:, slice_]).view(state_MPS.shape[:2])
    # A lonely state has no neighbours, and the nearest may be behind a wall.
    own_MP[:, 1:].masked_fill_(near.values > radius, -torch.inf)
    at_node_M, best_M = own_MP.max(-1)
    return state_MPS[torch.arange(len(centre_M)), best_M], at_node_M
