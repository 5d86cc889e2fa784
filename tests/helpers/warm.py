"""Programs in processes of their own that find torch and the library imported already.

They are forks of a process that has imported these and computed nothing, since importing takes
longer than all that most of them do. They have its state: what draws without a seed draws the same
in all of them. A program whose imports depend on its environment, as those of OpenGL and Triton do,
has to be started by itself.
"""

import atexit
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tests.helpers.answering import answer_all, ask


def run(
    *arguments: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` returns for `python ARGUMENTS`, which are those of -m or of a file."""
    environment = dict(os.environ if env is None else env)
    # Triton was imported with the server, compiled and not interpreted.
    environment.pop("TRITON_INTERPRET", None)
    with tempfile.TemporaryDirectory() as name:
        outputs = [Path(name, stream) for stream in ("stdout", "stderr")]
        asked = {
            "arguments": arguments,
            "cwd": str(cwd or Path.cwd()),
            "env": environment,
            "outputs": [str(path) for path in outputs],
        }
        status = ask(__name__, asked)
        return subprocess.CompletedProcess(arguments, status, *(x.read_text() for x in outputs))


def _become(asked: dict[str, Any]) -> None:
    """Turn this process into the program that was asked for."""
    for number, path in enumerate(asked["outputs"], start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    first, *rest = asked["arguments"]
    if first == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(first).resolve().parent)
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


def _leave(program: Callable[[], None]) -> NoReturn:
    """Run a program and end as Python does after it, but for freeing every object one by one.

    With everything that was imported, that would take seconds.
    """
    status: Any = 0
    try:
        program()
    except SystemExit as end:
        status = end.code
        if not isinstance(status, int | None):
            print(status, file=sys.stderr)
            status = 1
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def _status_of(asked: dict[str, Any]) -> int:
    """How the program that is asked for ended, in a fork of this process."""
    child = os.fork()
    if not child:
        _leave(partial(_become, asked))
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    import gymnasium  # noqa: F401
    import torch  # noqa: F401

    import torch_crl.training.trainer  # noqa: F401

    answer_all(_status_of)
