"""Simulations that blow up: told, counted, and tolerated while they are rare. N envs."""

import torch

from torch_crl.envs.simulators import SimulatorError
from torch_crl.envs.vector_env import VectorEnv

# One control step in ten thousand; the first few are never too many.
MOST_UNSTABLE = 1e-4
_ALWAYS_TOLERATED = 10
_MOST_LINES = 3


class DivergenceMonitor:
    """Compares an env's count of diverged episodes with that of the look before."""

    def __init__(self, env: VectorEnv) -> None:
        """What the env has counted so far is not told again."""
        self._env = env
        self._before_N = env.unstable_N.clone()

    def report(self, env_steps: int) -> list[str]:
        """A line for each env that diverged since, at most three and how many more.

        Raises SimulatorError if more than one of `env_steps` control steps in ten thousand ended
        an episode so, or if the simulator has lost contacts; NotFiniteError for numbers that
        nothing can be learned from.
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
