"""A trained actor as a plain function of state and goal, and as a controller of running episodes.

N envs, S state, G goal, H chunk, A action.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from torch_crl.agent.networks import ResidualTower, action_distribution
from torch_crl.agent.plans import Plans
from torch_crl.agent.senses import MemoryTraces, ReadsGoals, SeesPictures
from torch_crl.errors import NotFiniteError, UsageError, require_count
from torch_crl.system.torch_defaults import torch_defaults

if TYPE_CHECKING:
    from torch_crl.envs.places import GoalPoints

Array = TypeVar("Array", Tensor, np.ndarray)


def _squashed_gaussian(output: Tensor) -> Tensor:
    return torch.tanh(action_distribution(output)[0])


def _clip(output: Tensor) -> Tensor:
    return output.clamp(-1.0, 1.0)


HEADS: dict[str, Callable[[Tensor], Tensor]] = {
    "squashed_gaussian": _squashed_gaussian,
    "tanh": torch.tanh,
    "clip": _clip,
}
"""How the deterministic action is made from an actor's output. squashed_gaussian: the output is
concat(mean, raw log-std), and the action is tanh of the mean. tanh: the action is tanh of the whole
output. clip: the action is the whole output, clipped to [-1, 1]."""


class Policy:
    """The deterministic policy, which evaluation and robots run: a function without memory."""

    def __init__(
        self,
        actor: nn.Module,
        *,
        state_size: int,
        goal_size: int,
        head: str = "squashed_gaussian",
        chunk: int = 1,
        reader: ReadsGoals | None = None,
        camera: SeesPictures | None = None,
    ) -> None:
        """`actor`, a ResidualTower or an `mlp`, maps concat(state, goal) to the head's input.

        `chunk` is the number of consecutive actions that the actor decides at once. With a `reader`
        goals may be sentences or pictures, and the actor takes what the reader makes of them. With
        a `camera` the state is what `MemoryTraces` make of pictures, which `controller` takes.
        """
        self.actor = actor
        self.reader = reader
        self.camera = camera
        self.head = head
        self.chunk = chunk
        self.state_size, self.goal_size = state_size, goal_size

    @property
    def action_size(self) -> int:
        """Number of entries of one action."""
        *_, bias = self.actor.state_dict().values()
        outputs = len(bias) // 2 if self.head == "squashed_gaussian" else len(bias)
        return outputs // self.chunk

    def __call__(self, state: Array, goal: Array) -> Array:
        """Action in [-1, 1] for one state [S] and goal [G], or for batches [N, S] and [N, G].

        Otherwise like `plan`. Raises UsageError for a policy that decides several actions at once.
        """
        if self.camera is not None:
            raise UsageError(
                "this policy sees pictures, and remembers those before: call "
                "policy.controller(n) for n episodes, and then the controller as "
                "controller(pictures, goal) at every control step"
            )
        if self.chunk > 1:
            raise UsageError(
                f"this policy decides {self.chunk} actions at once, to be carried out one after "
                "the other: call policy.controller(n) for n episodes, and then the controller as "
                "controller(state, goal) at every control step; policy.plan(state, goal) gives "
                "all of them"
            )
        return self.plan(state, goal)[..., 0, :]

    def at_depth(self, depth: int) -> "Policy":
        """The policy with its block applied depth / 4 times, on the same weights.

        Raises UsageError unless its blocks share their weights and the depth is a multiple of 4.
        """
        if not isinstance(self.actor, ResidualTower):
            raise UsageError("the depth of a library's own network is fixed")
        try:
            actor = self.actor.at_depth(depth)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return self.with_actor(actor)

    def with_actor(self, actor: nn.Module) -> "Policy":
        """The policy with another network in place of its own, of equal inputs and outputs."""
        return Policy(
            actor,
            state_size=self.state_size,
            goal_size=self.goal_size,
            head=self.head,
            chunk=self.chunk,
            reader=self.reader,
            camera=self.camera,
        )

    def with_reader(self, reader: ReadsGoals) -> "Policy":
        """The policy with another way of reading goals, of equal size."""
        changed = self.with_actor(self.actor)
        changed.reader = reader
        return changed

    def require_numbers(self, what: str) -> None:
        """Raise UsageError if the policy reads sentences or pictures, which `what` cannot do."""
        if self.reader is not None or self.camera is not None:
            seen = "was trained with --goals words or pictures" if self.reader else "sees pictures"
            raise UsageError(
                f"{what} takes policies whose states and goals are numbers, and this one {seen}"
            )

    @property
    def places(self) -> "GoalPoints | None":
        """The points at which it can be commanded to be; None if these are all goals."""
        return None if self.reader is None else self.reader.places

    @property
    def films(self) -> bool:
        """Whether it takes pictures while it acts, which no CUDA graph can capture."""
        return self.camera is not None or (self.reader is not None and self.reader.films)

    def check_task(self, name: str) -> None:
        """Raise an error for a task that does not look like the one it has learned to see."""
        for sense in (self.reader, self.camera):
            if sense is not None:
                sense.check_task(name)

    def controller(self, num_envs: int = 1, env: "Simulated | None" = None) -> "Controller":
        """What carries out this policy in `num_envs` episodes, one action a control step.

        With a camera it films these envs, or is called with pictures in place of states.
        """
        return Controller(self, num_envs, env)

    @torch_defaults()
    @torch.no_grad()
    def plan(self, state: Array, goal: Array) -> Array:
        """The next H actions, [H, A] for one state [S] and goal [G] or [N, H, A] for batches.

        One goal may be given for many states, and one state for many goals. A torch tensor as
        state gives a tensor on its device; a NumPy array of any numeric type, or a list, gives an
        array; both are float32. Raises ValueError for other sizes, and for NaN or infinity in
        inputs on the CPU. Inputs on another device are not checked, since reading them would wait
        for that device; NaN gives a NaN action there.
        """
        inputs = self._inputs(state, goal)
        leading = inputs.shape[:-1]
        # The actor needs at least one row, so an empty batch is replaced by a row of zeros.
        output = self.actor(inputs if inputs.numel() else inputs.new_zeros(1, inputs.shape[-1]))
        actions = HEADS[self.head](output)
        if not inputs.numel():
            actions = actions[:0].reshape(*leading, actions.shape[-1])
        plan: Tensor = actions.unflatten(-1, (self.chunk, actions.shape[-1] // self.chunk))
        if isinstance(state, Tensor):
            return plan.to(state.device)
        return plan.cpu().numpy()

    @torch_defaults()
    @torch.no_grad()
    def experts(self, state: Array, goal: Array) -> Tensor:
        """int64 [blocks, N]: the expert that N states and goals pass in each of the actor's blocks.

        Raises UsageError unless the actor is a mixture of experts; otherwise like `plan`.
        """
        actor = self.actor
        if not isinstance(actor, ResidualTower) or not actor.is_mixture:
            raise UsageError("only a policy that was trained with --actor-block moe has experts")
        routes = actor.with_routes(self._inputs(state, goal))[1]
        assert routes is not None
        return routes.expert_NB

    def _inputs(self, state: Array, goal: Array) -> Tensor:
        """What the actor takes, on its device. Raises ValueError for what does not fit."""
        device = next(self.actor.parameters()).device
        state_tensor = as_tensor(state)
        goal_tensor = self._read(goal)
        leading = self._leading(state_tensor, goal_tensor)
        for name, part in (("state", state_tensor), ("goal", goal_tensor)):
            _require_finite(name, part)
        parts = [part.to(device).expand(*leading, -1) for part in (state_tensor, goal_tensor)]
        return torch.cat(parts, dim=-1)

    def _read(self, goal: Any) -> Tensor:
        """The goal as the actor takes it."""
        if self.reader is not None:
            return self.reader(goal)
        if isinstance(goal, str):
            raise UsageError(
                f"this policy takes goals as {self.goal_size} numbers and reads no sentences, got "
                f"{goal[:60]!r}; train with --goals words for one that does"
            )
        return as_tensor(goal)

    def _leading(self, state: Tensor, goal: Tensor) -> torch.Size:
        """The batch axes of the action. Raises ValueError for sizes that do not fit."""
        shapes = f"got shapes {list(state.shape)} and {list(goal.shape)}"
        goal_size = self.goal_size if self.reader is None else self.reader.size
        if (state.shape[-1:], goal.shape[-1:]) != ((self.state_size,), (goal_size,)):
            raise ValueError(
                f"this policy takes states of {self.state_size} and goals of {self.goal_size} "
                f"numbers, along the last axis; {shapes}"
            )
        try:
            # torch.broadcast_shapes imports sympy at its first use.
            together, _ = torch.broadcast_tensors(state[..., 0], goal[..., 0])
        except RuntimeError:
            raise ValueError(
                f"give as many states as goals, or one state or one goal; {shapes}"
            ) from None
        leading: torch.Size = together.shape
        return leading


class Simulated(Protocol):
    """Envs that can be filmed."""

    @property
    def simulator(self) -> Any:
        """Has the positions [N, Q] as `data["qpos"]`."""


class Controller:
    """Carries out a policy in N episodes: makes a plan of H actions, follows it, and so on."""

    def __init__(
        self,
        policy: "Policy | Callable[[Any, Any], Any]",
        num_envs: int,
        env: "Simulated | None" = None,
    ) -> None:
        """At the beginning of `num_envs` episodes. Any function of state and goal is a policy.

        A policy with a camera films `env`; without one it is given pictures. Raises UsageError for
        fewer than one.
        """
        require_count("num_envs", num_envs)
        self.policy = policy
        self.num_envs = num_envs
        self._env = env
        self._plans: Plans | None = None
        self._traces: MemoryTraces | None = None
        if isinstance(policy, Policy) and policy.camera is not None:
            self._traces = MemoryTraces(policy.camera, num_envs, policy.action_size)

    @torch.no_grad()
    def __call__(self, state: Array, goal: Array) -> Array:
        """The action [N, A] of this control step, for states [N, S] and goals [N, G].

        With one episode, state, goal and action may also be [S], [G] and [A]. Types, devices and
        errors are those of the policy. With a camera, states are pictures [N, side, side, 3] or
        [side, side, 3], which are not read if it films its envs.
        """
        policy = self.policy
        if self._traces is not None:
            return self._seeing(self._traces, state, goal)
        if not isinstance(policy, Policy):
            action: Array = policy(state, goal)
            return action
        return self._next(policy, state, goal)

    def _seeing(self, traces: MemoryTraces, state: Array, goal: Any) -> Array:
        """The action after one more picture of every episode."""
        assert isinstance(self.policy, Policy)
        if self._env is not None:
            pictures = traces.camera.film(self._env.simulator.data["qpos"])
        else:
            given = np.asarray(state)
            pictures = given[None] if given.ndim == 3 else given
        action_NA: Tensor = self._next(self.policy, traces.see(pictures), goal)
        traces.act(action_NA)
        if self._env is None and np.ndim(state) == 3:
            action_NA = action_NA[0]
        return action_NA.to(state.device) if isinstance(state, Tensor) else action_NA.numpy()

    def _next(self, policy: Policy, state: Array, goal: Any) -> Array:
        """The next action of each plan."""
        shape = np.shape(state)
        if math.prod(shape[:-1]) != self.num_envs:
            raise ValueError(
                f"this controller runs {self.num_envs} episodes; got states of shape {list(shape)}"
            )
        if policy.chunk == 1:
            action: Array = policy.plan(state, goal)[..., 0, :]
            return action
        given = as_tensor(state)
        if self._plans is None:
            self._plans = Plans(
                self.num_envs, policy.chunk, policy.action_size, device=given.device
            )
        chosen = self._plans.next_action(lambda: as_tensor(policy.plan(state, goal)))
        chosen = chosen.view(*given.shape[:-1], policy.action_size)
        return chosen if isinstance(state, Tensor) else chosen.numpy()

    def reset(self, ended_N: Tensor | None = None) -> None:
        """Call where episodes have ended: all of them, or those in this bool mask [N]."""
        every_N = torch.ones(self.num_envs, dtype=torch.bool)
        for memory in (self._plans, self._traces):
            if memory is not None:
                memory.drop(every_N if ended_N is None else ended_N)


class Controls(Protocol):
    """Anything that acts in N running episodes, one control step after the other."""

    def __call__(self, state: Array, goal: Array, /) -> Array:
        """The action [N, A] of this control step, for states [N, S] and goals [N, G]."""

    def reset(self, ended_N: Tensor | None = None) -> None:
        """Is called where episodes have ended: all of them, or those in this bool mask [N]."""


class MakesController(Protocol):
    """A way to act that remembers something during an episode, such as a plan."""

    def controller(self, num_envs: int = 1) -> Controls:
        """What acts in `num_envs` episodes."""


Acts = MakesController | Callable[[Tensor, Tensor], Tensor]
"""What can be evaluated: a policy, or any function of state [N, S] and goal [N, G]."""


def controller_of(policy: Acts, num_envs: int, env: Any = None) -> Controls:
    """What carries out a policy in `num_envs` episodes, those of `env` for one with a camera."""
    if isinstance(policy, Policy) and policy.camera is not None:
        return policy.controller(num_envs, env)
    make = getattr(policy, "controller", None)
    made: Controls = make(num_envs) if make else Controller(policy, num_envs)  # type: ignore[arg-type]
    return made


def places_of(policy: Acts) -> "GoalPoints | None":
    """The points at which a policy can be commanded to be; None if these are all goals."""
    return policy.places if isinstance(policy, Policy) else None


def as_tensor(part: Any) -> Tensor:
    """A state or goal, as float32; what is no tensor is copied."""
    if isinstance(part, Tensor):
        return part.float()
    # Copied, since torch accepts neither negative strides nor a foreign byte order.
    return torch.from_numpy(np.array(part, dtype=np.float32))


def _require_finite(name: str, part: Tensor) -> None:
    # A finite sum has only finite terms, and a sum costs less than a check of every entry.
    if not part.is_cpu or math.isfinite(part.sum()) or part.isfinite().all():
        return
    *row, entry = (~part.isfinite()).nonzero()[0].tolist()
    where = f" of row {', '.join(map(str, row))}" if row else ""
    value = float(part[*row, entry])
    raise NotFiniteError(f"the policy was given a {name} whose entry {entry}{where} is {value}")
