"""`torch-crl watch RUN`: shows a trained policy in MuJoCo's own viewer, in real time."""

from contextlib import closing
from dataclasses import dataclass

from torch_crl.cli.flags import read_flags
from torch_crl.cli.runs import TrainedOptions, load_trained, task_env
from torch_crl.fields import STRICT


@dataclass(frozen=True, kw_only=True)
class Options(TrainedOptions):
    """Watch a trained policy, one episode after the other, until the window is closed."""

    __pydantic_config__ = STRICT


def main(arguments: list[str]) -> int:
    """Open the viewer. Returns the exit status."""
    options = read_flags(Options, arguments, command="watch")
    from torch_crl.rendering.viewer import watch

    trained = load_trained(options)
    with closing(task_env(trained, num_envs=1, seed=options.seed)) as env:
        watch(trained.policy, env)
    return 0
