"""Simulations that diverge: they are reported, counted, and tolerated while rare. N envs."""

import torch

from torch_crl.envs.simulators import SimulatorError
from torch_crl.envs.vector_env import VectorEnv

# One control step in ten thousand; the first few divergences are always tolerated.
MOST_UNSTABLE = 1e-4
_ALWAYS_TOLERATED = 10
_MOST_LINES = 3


class DivergenceMonitor:
    """Compares the envs' counts of diverged episodes with those at the previous report."""

    def __init__(self, env: VectorEnv) -> None:
        """Episodes that have diverged already are not reported."""
        self._env = env
        self._before_N = env.unstable_N.clone()

    def report(self, env_steps: int) -> list[str]:
        """A line for each env that diverged since the last report, at most three, and a count.

        Raises SimulatorError if physics diverged in more than one of ten thousand of the
        `env_steps` control steps, or if the simulator has lost contacts; NotFiniteError for NaN,
        infinity and numbers too large to learn from.
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
