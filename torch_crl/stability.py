"""Simulations that blow up: told, counted, and tolerated while they are rare. N envs.

Beside them, numbers that nothing can be learned from, whoever gave them: they end the run.
"""

import torch

from torch_crl.envs.make import AnyVectorEnv
from torch_crl.envs.simulators import SimulatorError
from torch_crl.errors import TorchCrlError
from torch_crl.replay import Replay

# One control step in ten thousand; the first few are never too many.
MOST_UNSTABLE = 1e-4
_ALWAYS_TOLERATED = 10
_MOST_LINES = 3
# Beyond it MuJoCo calls its own numbers bad; the square of a much larger one is infinite in fp32.
LARGEST = 1e10


class StabilityWatch:
    """Compares an env's count of diverged episodes with that of the look before."""

    def __init__(self, env: AnyVectorEnv) -> None:
        """What the env has counted so far is not told again."""
        self._env = env
        self._before_N = env.unstable_N.clone()

    def look(self, env_steps: int) -> list[str]:
        """A line for each env that diverged since, at most three and how many more.

        Raises SimulatorError if more than one of `env_steps` control steps in ten thousand ended
        an episode so, or if the simulator has lost contacts.
        """
        env = self._env
        env.check()
        new = torch.nonzero(env.unstable_N > self._before_N).flatten().tolist()
        self._before_N.copy_(env.unstable_N)
        if not new:
            return []
        total = int(env.unstable_N.sum())
        lines = [
            f"physics of env {index} diverged at step {int(env.unstable_step_N[index])} of its "
            f"episode of {env.spec.name}; it was reset"
            for index in new[:_MOST_LINES]
        ]
        if total > max(_ALWAYS_TOLERATED, MOST_UNSTABLE * env_steps):
            raise SimulatorError(
                f"{lines[-1]}; that makes {total} in {env_steps:,} control steps, and more than "
                f"one in {1 / MOST_UNSTABLE:,.0f} is too many: the model needs a smaller timestep, "
                "more solver iterations or weaker actuators"
            )
        more = len(new) - len(lines)
        return [*lines, f"and {more} more; {total} in all"] if more else lines


class BadNumberError(TorchCrlError, RuntimeError):
    """An env or the policy gave NaN, infinity or a number beyond `LARGEST`; says which and when."""


# What a row of the replay holds, and how that lies to its control step.
_PARTS = {"state": "before", "action": "at", "achieved": "after"}


def check_numbers(replay: Replay, env: AnyVectorEnv, *, newest: int) -> None:
    """Raise BadNumberError for one in the `newest` rows of the replay, or in the goals of now.

    Waits for the device once.
    """
    rows = torch.arange(replay.next_row - newest, replay.next_row, device=replay.device)
    slots = rows % replay.rows
    # A comparison with NaN is false.
    good = torch.cat([replay.storage[name][slots].abs() < LARGEST for name in _PARTS], dim=-1)
    good_goal = env.goal_NG.abs() < LARGEST
    if bool(good.all() & good_goal.all().to(replay.device)):
        return
    task, rule = env.spec.name, f"numbers must be finite and below {LARGEST:g} in magnitude"
    for index, entry in (~good_goal).nonzero().tolist():
        found = f"goal[{entry}] of env {index} is {float(env.goal_NG[index, entry]):g}"
        raise BadNumberError(f"{task}: {found}; the env commanded it, and {rule}")
    # The earliest, and in its row the state before the action that follows from it.
    row, index, entry = (~good).nonzero()[0].tolist()
    name, entry = [
        (name, place) for name in _PARTS for place in range(replay.storage[name].shape[-1])
    ][entry]
    value = float(replay.storage[name][slots[row], index, entry])
    what = "achieved goal" if name == "achieved" else name
    found = f"{what}[{entry}] of env {index} is {value:g} {_PARTS[name]}"
    step = _step_of_episode(replay, int(rows[row]), index)
    giver = "the network, for a state without fault," if name == "action" else "the env"
    raise BadNumberError(f"{task}: {found} {step}; {giver} gave it, and {rule}")


def _step_of_episode(replay: Replay, row: int, index: int) -> str:
    """`step 3 of its episode`, or of the run where the replay has lost the episode's beginning."""
    trajectory = replay.storage["trajectory"][: replay.filled, index]
    slots = (trajectory == trajectory[row % replay.rows]).nonzero()[:, 0]
    newest = replay.next_row - 1
    first = int((newest - (newest - slots) % replay.rows).min())
    if first == 0 or first > replay.next_row - replay.filled:
        return f"step {row - first + 1} of its episode"
    return f"step {row + 1} of the run"
