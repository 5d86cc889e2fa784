"""Processes that are started once and answer until the tests end, in lines of JSON.

Importing torch takes longer than most of what they are asked.
"""

import atexit
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tests.helpers.paths import ROOT


def ask(module: str, question: Any) -> Any:
    """What the program `module`, which calls `answer_all`, answers."""
    process = _process(module)
    assert process.stdin and process.stdout
    process.stdin.write(json.dumps(question) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"{module} has ended"
    return json.loads(answer)


@functools.cache
def _process(module: str) -> subprocess.Popen[str]:
    # Decided when Triton is first imported, and that is here for compiled kernels.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment,
    )

    def close() -> None:
        process.communicate()

    atexit.register(close)
    return process


def answer_all(answer: Callable[[Any], Any]) -> None:
    """Answer what is asked on standard input until it ends."""
    # What libraries print, such as Triton what ptxas says against a kernel, is no answer.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)
