"""`torch-crl watch RUN`: shows a trained policy in MuJoCo's own viewer, in real time."""

import queue
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from torch_crl.cli.flags import read_flags
from torch_crl.cli.runs import Trained, TrainedOptions, load_trained, task_env, told
from torch_crl.errors import TorchCrlError
from torch_crl.fields import STRICT
from torch_crl.system.terminal import print_line

if TYPE_CHECKING:
    from torch_crl.agent.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Options(TrainedOptions):
    """Watch a trained policy, one episode after the other, until the window is closed."""

    __pydantic_config__ = STRICT

    say: str = ""
    """With a policy of --goals words: the sentence that it follows; while it runs, every line that
    is typed is its next one."""


def main(arguments: list[str]) -> int:
    """Open the viewer. Returns the exit status."""
    options = read_flags(Options, arguments, command="watch")
    trained = load_trained(options)
    from torch_crl.rendering.viewer import watch

    first = told(trained, options.say) if options.say else trained
    with closing(task_env(trained, num_envs=1, seed=options.seed)) as env:
        if options.say:
            print_line("type another sentence and Enter, at any time", stderr=True)
            watch(first.policy, env, told=sentences(trained, sys.stdin))
        else:
            watch(first.policy, env)
    return 0


def sentences(trained: Trained, lines: TextIO) -> Callable[[], "Policy | None"]:
    """A function that returns the policy for the newest line that has come in, else None.

    Lines are read by a thread, so that nothing waits for them. One that is not understood is
    answered on standard error.
    """
    typed = queue.SimpleQueue[str]()

    def read() -> None:
        for line in lines:
            typed.put(line)

    threading.Thread(target=read, daemon=True, name="sentences").start()

    def newest() -> "Policy | None":
        sentence = ""
        while not typed.empty():
            sentence = typed.get().strip()
        if not sentence:
            return None
        try:
            return told(trained, sentence).policy
        except TorchCrlError as error:
            print_line(str(error), stderr=True)
            return None

    return newest
