"""Carries out policies in running episodes, one action a control step.

N envs, S state, G goal, A action.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from torch_crl.agent.frames import Frames
from torch_crl.agent.plans import Plans
from torch_crl.agent.policy import Array, Policy, as_tensor

if TYPE_CHECKING:
    from torch_crl.envs.places import GoalPoints


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

        A policy with a camera films `env`; without one it is given pictures.
        """
        self.policy = policy
        self.num_envs = num_envs
        self._env = env
        self._plans: Plans | None = None
        camera = policy.camera if isinstance(policy, Policy) else None
        self._frames = Frames(camera, num_envs) if camera is not None else None

    @torch.no_grad()
    def __call__(self, state: Array, goal: Array) -> Array:
        """The action [N, A] of this control step, for states [N, S] and goals [N, G].

        With one episode, state, goal and action may also be [S], [G] and [A]. Types, devices and
        errors are those of the policy. With a camera, states are pictures [N, side, side, 3] or
        [side, side, 3], which are not read if it films its envs.
        """
        policy = self.policy
        if self._frames is not None:
            return self._seeing(self._frames, state, goal)
        if not isinstance(policy, Policy) or policy.chunk == 1:
            action: Array = policy(state, goal)
            return action
        return self._next(policy, state, goal)

    def _seeing(self, frames: Frames, state: Array, goal: Any) -> Array:
        """The action after one more picture of every episode."""
        assert isinstance(self.policy, Policy)
        if self._env is not None:
            pictures = frames.camera.film(self._env.simulator.data["qpos"])
        else:
            given = np.asarray(state)
            pictures = given[None] if given.ndim == 3 else given
        seen_NS = frames.see(pictures)
        action_NA: Tensor = self._next(self.policy, seen_NS, goal)
        if self._env is None and np.ndim(state) == 3:
            action_NA = action_NA[0]
        return action_NA.to(state.device) if isinstance(state, Tensor) else action_NA.numpy()

    def _next(self, policy: Policy, state: Array, goal: Any) -> Array:
        """The next action of each plan."""
        if policy.chunk == 1:
            action: Array = policy.plan(state, goal)[..., 0, :]
            return action
        given = as_tensor(state)
        if given.shape[:-1].numel() != self.num_envs:
            raise ValueError(
                f"this controller runs {self.num_envs} episodes; got states of shape "
                f"{list(given.shape)}"
            )
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
        for memory in (self._plans, self._frames):
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
