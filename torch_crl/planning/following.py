"""Follows plans without ever waiting for one: a fast controller beside a slow planner.

The controller runs at every control step and aims at the next sub-goal of the plan that it has,
or at the goal itself while it has none. A new plan is asked for where there is none or where it
leads nowhere, and is taken when it comes. N episodes, S state, G goal.
"""

import dataclasses
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from torch_crl.agent.policy import Array, Controller, Policy, as_tensor
from torch_crl.errors import UsageError
from torch_crl.planning.planner import GOAL, START, Edge, GraphPlanner, Plan

PATIENCE = 20
"""Control steps without getting nearer to a sub-goal, after which a new plan is asked for."""
MAX_AGE = 1000
"""Control steps after which a plan is no longer followed."""
_NEARER = 0.1
"""Share of the reach by which a robot has to get nearer to its sub-goal to be making progress."""


class Request(NamedTuple):
    """What a planner is asked: the way of one episode."""

    episode: int
    state_S: Tensor
    goal_G: Tensor
    avoid: frozenset[Edge]
    """Edges from its states or to its goal that it could not follow."""
    stuck_at: Edge | None
    """The edge between two nodes that it could not follow just now, if there is one."""
    made_at: int
    """Control step of the state."""


class Planning(Protocol):
    """Where plans come from."""

    def ask(self, requests: list[Request]) -> None:
        """Ask for plans; of several requests for one episode the newest counts."""

    def arrived(self, now: int) -> list[tuple[int, Plan]]:
        """Plans, each with its episode, that have come since the last call."""


def make_plans(planner: GraphPlanner, requests: list[Request]) -> list[tuple[int, Plan]]:
    """The plans that were asked for, each with its episode."""
    for request in requests:
        if request.stuck_at is not None:
            planner.failed(*request.stuck_at)
    plans = planner.plan(
        torch.stack([request.state_S for request in requests]),
        torch.stack([request.goal_G for request in requests]),
        avoid=[request.avoid for request in requests],
    )
    return [
        (request.episode, plan._replace(made_at=request.made_at))
        for request, plan in zip(requests, plans, strict=True)
    ]


class Late:
    """Plans that come a fixed number of control steps after they were asked for."""

    def __init__(self, planner: GraphPlanner, steps: int = 0) -> None:
        """0 is at once."""
        self.planner, self.steps = planner, steps
        self.asked = 0
        """Number of plans asked for so far."""
        self._coming: list[tuple[int, int, Plan]] = []

    def ask(self, requests: list[Request]) -> None:
        """See `Planning`."""
        self.asked += len(requests)
        for episode, plan in make_plans(self.planner, requests):
            self._coming.append((plan.made_at + self.steps, episode, plan))

    def arrived(self, now: int) -> list[tuple[int, Plan]]:
        """See `Planning`."""
        here = [(episode, plan) for due, episode, plan in self._coming if due <= now]
        self._coming = [each for each in self._coming if each[0] > now]
        return here


class InBackground:
    """Plans that a thread makes, one request after the other, while the robot moves on.

    Of the requests that come in while the thread is busy only the newest of each episode is kept.
    """

    def __init__(self, planner: GraphPlanner) -> None:
        """Call `close` at the end."""
        self.planner = planner
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="planner")
        self._busy: Future[list[tuple[int, Plan]]] | None = None
        self._waiting: dict[int, Request] = {}

    def ask(self, requests: list[Request]) -> None:
        """See `Planning`."""
        self._waiting |= {request.episode: request for request in requests}
        self._begin()

    def arrived(self, now: int) -> list[tuple[int, Plan]]:
        """See `Planning`. Raises what the planner raised."""
        del now
        plans = []
        if self._busy is not None and self._busy.done():
            plans, self._busy = self._busy.result(), None
        self._begin()
        return plans

    def _begin(self) -> None:
        if self._busy is None and self._waiting:
            requests, self._waiting = [*self._waiting.values()], {}
            self._busy = self._thread.submit(make_plans, self.planner, requests)

    def close(self) -> None:
        """End the thread, after what it is working on."""
        self._thread.shutdown()


class _Followed:
    """The plans of N episodes, and how far each has been followed."""

    def __init__(self, num_envs: int, goal_size: int) -> None:
        """No episode has a plan yet."""
        self.plans: list[Plan | None] = [None] * num_envs
        self.at = [0] * num_envs
        self.avoid: list[frozenset[Edge]] = [frozenset()] * num_envs
        self.aim_NG = torch.zeros(num_envs, goal_size)
        self.reach_N, self.arrived_N = torch.zeros(2, num_envs)
        self.begun_N, self.made_at_N = torch.zeros(2, num_envs, dtype=torch.int64)
        self.follows_N, self.asked_N = torch.zeros(2, num_envs, dtype=torch.bool)
        self.nearest_N = torch.full((num_envs,), torch.inf)
        self.since_N = torch.zeros(num_envs, dtype=torch.int64)

    def take(self, number: int, plan: Plan, achieved_G: Tensor) -> None:
        """Follow this plan, from the last of its sub-goals within reach on."""
        near_K = (plan.subgoals_KG[:-1] - achieved_G).norm(dim=-1) <= plan.reach
        self.plans[number] = plan
        self.follows_N[number] = True
        self.made_at_N[number] = plan.made_at
        self.reach_N[number], self.arrived_N[number] = plan.reach, plan.arrived
        self._go_to(number, int(near_K.nonzero()[-1]) + 1 if near_K.any() else 0)

    def _go_to(self, number: int, place: int) -> None:
        plan = self.plans[number]
        assert plan is not None
        self.at[number], self.aim_NG[number] = place, plan.subgoals_KG[place]
        self.nearest_N[number], self.since_N[number] = torch.inf, 0

    def forget(self, ended_N: Tensor, now: int) -> None:
        """Forget the plans of these episodes: others begin, or those have another goal from now on.

        What was asked before is no longer waited for.
        """
        self.follows_N &= ~ended_N
        self.asked_N &= ~ended_N
        self.begun_N.masked_fill_(ended_N, now)
        for number in ended_N.nonzero()[:, 0].tolist():
            self.avoid[number] = frozenset()

    def advance(self, achieved_NG: Tensor, goal_NG: Tensor, now: int) -> Tensor:
        """Where to go in this control step, [N, G]."""
        self.follows_N &= now - self.made_at_N <= MAX_AGE
        distance_N = (achieved_NG - self.aim_NG).norm(dim=-1)
        for number in (self.follows_N & (distance_N <= self.reach_N)).nonzero()[:, 0].tolist():
            plan = self.plans[number]
            if plan is not None and self.at[number] < len(plan.nodes) - 1:
                self._go_to(number, self.at[number] + 1)
                # From here on other states lie before the robot.
                self.avoid[number] = frozenset(e for e in self.avoid[number] if e[0] != START)
        distance_N = (achieved_NG - self.aim_NG).norm(dim=-1)
        nearer_N = distance_N < self.nearest_N - _NEARER * self.reach_N
        # Who is here has arrived at the goal; nobody stays at another sub-goal.
        nearer_N |= distance_N <= self.arrived_N
        self.nearest_N = torch.where(nearer_N, distance_N, self.nearest_N)
        self.since_N = torch.where(nearer_N, 0, self.since_N + 1)
        return torch.where(self.follows_N[:, None], self.aim_NG, goal_NG)

    def wanted(self, state_NS: Tensor, goal_NG: Tensor, now: int) -> list[Request]:
        """Requests for the episodes that have no plan, or one that leads nowhere."""
        due_N = ~self.asked_N & (~self.follows_N | (self.since_N >= PATIENCE))
        requests = []
        for number in due_N.nonzero()[:, 0].tolist():
            stuck_at, plan = None, self.plans[number]
            if self.follows_N[number] and plan is not None:
                begin, end = (START, *plan.nodes)[self.at[number] : self.at[number] + 2]
                if begin == START or end == GOAL:
                    self.avoid[number] |= {(begin, end)}
                else:
                    stuck_at = begin, end
            request = Request(
                number,
                state_NS[number].clone(),
                goal_NG[number].clone(),
                self.avoid[number],
                stuck_at,
                now,
            )
            requests.append(request)
        self.asked_N |= due_N
        self.since_N.masked_fill_(due_N, 0)
        return requests


class PlanningController:
    """Carries out a policy in N episodes by way of sub-goals; see `torch_crl.agent.policy`."""

    def __init__(
        self, policy: Policy, planning: Planning, *, num_envs: int, goal_slice: slice
    ) -> None:
        """At the beginning of `num_envs` episodes."""
        self.policy = policy
        self.planning = planning
        self.goal_slice = goal_slice
        self.now = 0
        self.plans_taken = 0
        """Number of plans that were followed so far."""
        self._controller = Controller(policy, num_envs)
        self._followed = _Followed(num_envs, policy.goal_size)
        self._goal_NG = torch.zeros(num_envs, policy.goal_size)

    @torch.no_grad()
    def __call__(self, state: Array, goal: Array) -> Array:
        """The action [N, A] of this control step, for states [N, S] and goals [N, G].

        With one episode also [A] for [S] and [G]; NumPy arrays give an array.
        """
        given, episodes = as_tensor(state), len(self._goal_NG)
        state_NS, goal_NG = given.reshape(episodes, -1), as_tensor(goal).reshape(episodes, -1)
        aim_NG = self._aims(state_NS, goal_NG)
        action = self._controller(state_NS, aim_NG).view(*given.shape[:-1], -1)
        return action if isinstance(state, Tensor) else action.numpy()

    def _aims(self, state_NS: Tensor, goal_NG: Tensor) -> Tensor:
        """Where each episode goes in this control step, [N, G]."""
        followed, achieved_NG = self._followed, state_NS[:, self.goal_slice]
        followed.forget((goal_NG != self._goal_NG).any(-1), self.now)
        self._goal_NG = goal_NG.clone()
        self._take(achieved_NG)
        aim_NG = followed.advance(achieved_NG, goal_NG, self.now)
        if wanted := followed.wanted(state_NS, goal_NG, self.now):
            self.planning.ask(wanted)
            if self._take(achieved_NG):
                aim_NG = torch.where(followed.follows_N[:, None], followed.aim_NG, goal_NG)
        self.now += 1
        return aim_NG

    def _take(self, achieved_NG: Tensor) -> bool:
        """Take the plans that have come, apart from those to an earlier goal; whether any has."""
        followed, taken = self._followed, self.plans_taken
        for number, plan in self.planning.arrived(self.now):
            if plan.made_at >= followed.begun_N[number]:
                followed.asked_N[number] = False
                followed.take(number, plan, achieved_NG[number])
                self.plans_taken += 1
        return self.plans_taken > taken

    def reset(self, ended_N: Tensor | None = None) -> None:
        """Call where episodes have ended: all of them, or those in this bool mask [N]."""
        self._controller.reset(ended_N)
        every_N = torch.ones(len(self._goal_NG), dtype=torch.bool)
        self._followed.forget(every_N if ended_N is None else ended_N, self.now)


class PlanningPolicy:
    """A policy that gets to far goals by way of sub-goals: for robots, and `torch_crl.evaluate`."""

    def __init__(
        self,
        planner: GraphPlanner,
        *,
        policy: Policy | None = None,
        plans: Callable[[GraphPlanner], Planning] = Late,
    ) -> None:
        """Combine planner and policy.

        Args:
            policy: what acts; the planner's own by default. A distilled one makes control faster.
            plans: when plans come. `InBackground`: when a thread has made them, which is for
                robots; `Late`: at once; `partial(Late, steps=10)`: ten control steps later.
        """
        self.planner = planner
        self.policy = policy or planner.value.policy
        if isinstance(self.policy, Policy):
            self.policy.require_numbers("a planner")
            both = self.policy, planner.value.policy
            acts, plans_for = ((p.state_size, p.goal_size, p.action_size) for p in both)
            if acts != plans_for:
                raise UsageError(
                    "the policy is of another task than the planner: its states, goals and "
                    f"actions have {acts} numbers, those of the planner {plans_for}"
                )
        self.plans = plans

    def controller(self, num_envs: int = 1) -> PlanningController:
        """What carries it out in `num_envs` episodes; which edges have failed is forgotten."""
        return PlanningController(
            self.policy,
            self.plans(dataclasses.replace(self.planner)),
            num_envs=num_envs,
            goal_slice=self.planner.goal_slice,
        )
