"""Tries out an objective of the user's own before it is trained, and reports all problems at once.

B batch, S state, G goal, A action.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Generator, Tensor, nn

from torch_crl.agent.losses import policy_losses
from torch_crl.agent.networks import Networks
from torch_crl.agent.objectives.objective import Objective, PolicyRows
from torch_crl.errors import UsageError, in_one_line, listed, shortly

_BATCH = 8
_LOGGED = ("kind", "env_steps", "updates", "seconds", "updates_per_second", "critic_loss", "value")


def try_out(name: str, objective: Any, networks: Networks) -> None:
    """Move an objective to its networks' device and compute one random batch with it.

    `networks` are those that it was built with, on the device where they will be trained. Raises
    UsageError with all problems.
    """
    if problems := _problems(objective, networks):
        raise UsageError(f"objective {name}: {listed(problems)}")


def _problems(objective: Any, networks: Networks) -> list[str]:
    if not isinstance(objective, Objective):
        return [f"what builds it must return an Objective, and returned {shortly(objective)}"]
    if problems := _module_problems(objective, networks):
        return problems
    objective.to(networks.actor.weight.device)
    if objective.failures or objective.labels is not None:
        # Such batches only a replay can draw.
        return []
    with torch.random.fork_rng(devices=[]):
        return _Trial(objective, networks).problems


def _module_problems(objective: Objective, networks: Networks) -> list[str]:
    modules = getattr(objective, "modules", None)
    if not isinstance(modules, Mapping) or not modules:
        return [f"modules must be a dict of its networks by name, got {shortly(modules)}"]
    problems = [
        f"modules[{name!r}] must be a torch.nn.Module, got {shortly(module)}"
        for name, module in modules.items()
        if not isinstance(module, nn.Module)
    ]
    problems += [
        f"modules has the name {name!r}, which is taken or no plain word"
        for name in modules
        if not str(name).isidentifier() or name in ("actor", "log_alpha")
    ]
    if problems:
        return problems
    trained = {id(parameter) for parameter in objective.parameters()}
    known = trained | {id(parameter) for parameter in networks.actor.parameters()}
    for name, part in vars(objective).items():
        held = part.parameters() if isinstance(part, nn.Module) else [part]
        if any(isinstance(p, Tensor) and p.requires_grad and id(p) not in known for p in held):
            problems.append(f"{name} has parameters in none of its modules, never to be trained")
    return problems


class _Trial:
    """Calls `loss`, `score` and `judge` on a random batch."""

    def __init__(self, objective: Objective, networks: Networks) -> None:
        self.problems: list[str] = []
        self._objective = objective
        device = networks.actor.weight.device
        dtype = networks.actor.weight.dtype
        generator = Generator().manual_seed(0)
        goal_size = networks.goal_encoder.sizes.input_size
        state_size = networks.actor.sizes.input_size - goal_size
        action_size = networks.state_action_encoder.sizes.input_size - state_size

        def normal(size: int) -> Tensor:
            return torch.randn(_BATCH, size, generator=generator).to(device, dtype)

        self._batch = {
            "state": normal(state_size),
            "action": normal(action_size).tanh(),
            "goal": normal(goal_size),
            "whole": torch.ones(_BATCH, dtype=torch.bool, device=device),
        }
        action_BA = normal(action_size).tanh().requires_grad_()
        policy = PolicyRows(action_BA, lambda goal_BX: goal_BX)
        self._loss(self._call("loss", objective.loss, self._batch))
        self._score(self._call("score", objective.score, self._batch, policy), action_BA)
        if not self.problems:
            judged = self._call("judge", objective.judge, self._batch, policy)
            if judged is not None:
                loss, score_B, metrics = judged
                self._numbers("judge's loss", loss, ())
                self._numbers("judge's score", score_B, (_BATCH,))
                self._metrics("judge's metrics", metrics)

    def _loss(self, returned: Any) -> None:
        if returned is None:
            return
        if not isinstance(returned, tuple) or len(returned) != 2:
            what = "the loss and a dict of metrics"
            self.problems.append(f"loss must return {what}, and returned {shortly(returned)}")
            return
        loss, metrics = returned
        self._metrics("loss's metrics", metrics)
        if self._numbers("loss", loss, ()) and not self._gradients(loss, self._parameters()):
            self.problems.append("loss depends on no parameter of its modules")

    def _score(self, score_B: Any, action_BA: Tensor) -> None:
        if score_B is None or not self._numbers("score", score_B, (_BATCH,)):
            return
        total = score_B.sum()
        if not self._gradients(total, [action_BA]):
            self.problems.append("score does not depend on the policy's actions")
        if self._gradients(total, self._parameters()):
            self.problems.append(
                "score's gradient reaches parameters of its modules, which the actor's loss would "
                "then train; call its towers with frozen=True"
            )

    def _parameters(self) -> list[Tensor]:
        return [each for each in self._objective.parameters() if each.requires_grad]

    def _gradients(self, total: Tensor, of: list[Tensor]) -> bool:
        """Whether any of these tensors has a gradient."""
        if not total.requires_grad:
            return False
        found = torch.autograd.grad(total, of, retain_graph=True, allow_unused=True)
        return any(each is not None and bool(each.any()) for each in found)

    def _metrics(self, what: str, metrics: Any) -> None:
        if not isinstance(metrics, Mapping):
            self.problems.append(f"{what} must be a dict, got {shortly(metrics)}")
            return
        zero_1 = torch.zeros(1)
        ours = policy_losses(zero_1, zero_1, zero_1[0], target_entropy=0.0)[1]
        for name, value in metrics.items():
            self._numbers(f"{what} {name!r}", value, ())
            if name in _LOGGED or name in ours or str(name).startswith("collected_"):
                self.problems.append(f"{what} have the name {name!r}, which is logged already")

    def _numbers(self, what: str, value: object, shape: tuple[int, ...]) -> bool:
        """Whether it is a finite tensor of this shape; if not, a problem."""
        if not isinstance(value, Tensor):
            wrong = f"must be a tensor of shape {list(shape)}, got {shortly(value)}"
        elif value.shape != shape:
            wrong = f"must have shape {list(shape)}, got {list(value.shape)}"
            wrong += f" for a batch of {_BATCH} rows"
        elif not bool(value.isfinite().all()):
            wrong = "is not finite on random numbers"
        else:
            return True
        self.problems.append(f"{what} {wrong}")
        return False

    def _call(self, name: str, function: Callable[..., Any], *arguments: object) -> Any:
        """What the function returns; None, and a problem, if it raised or returned None."""
        try:
            value = function(*arguments)
        except Exception as error:
            self.problems.append(f"{name} raised {in_one_line(error)}")
            return None
        if value is None:
            self.problems.append(f"{name} returned None; does it lack a `return`?")
        return value
