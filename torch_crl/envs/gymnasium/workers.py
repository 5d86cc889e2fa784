"""Groups of Gymnasium envs in worker processes, over a table in shared memory. N envs."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from multiprocessing import connection, forkserver, resource_tracker, util
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector.utils import CloudpickleWrapper

from torch_crl.envs.gymnasium.errors import ForeignEnvError
from torch_crl.envs.gymnasium.foreign import Foreign
from torch_crl.envs.gymnasium.group import EnvGroup, columns

# Signals that may reach a whole process group. Workers ignore them: the training process alone
# decides when a process ends.
_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    # Not every system has all of them.
    if hasattr(signal, name)
]
_SECONDS_TO_LEAVE = 5.0
# Seconds for the imports of a process, and for making each env, if the timeout is shorter.
_SECONDS_TO_START = 60.0


class Workers:
    """Like one `EnvGroup` whose rows are divided among processes; each gets one message per step.

    A process that dies or hangs raises a ForeignEnvError, which names the env that it was stepping.
    """

    def __init__(
        self,
        foreign: Foreign,
        *,
        episode_length: int,
        num_envs: int,
        num_processes: int,
        timeout: float,
    ) -> None:
        """Start the processes; `timeout` is the seconds allowed for one env, 0 waits for ever.

        The envs are made at the first reset.
        """
        self._name = foreign.spec.name
        self._timeout = timeout
        self._are_made = False
        rows = -(-num_envs // min(num_envs, num_processes))
        self._groups = [
            range(first, min(first + rows, num_envs)) for first in range(0, num_envs, rows)
        ]
        context: Any = multiprocessing.get_context(_start_method())
        width = columns(foreign.spec)["action"].stop
        memory = context.RawArray("f", num_envs * width)
        at_work = context.RawArray("q", 2 * len(self._groups))
        self.table = np.frombuffer(memory, np.float32).reshape(num_envs, width)
        """Actions and results of all groups, shape [N, columns]."""
        # Of each group the env that it is at, and how many it has been at so far.
        self._at_work = np.frombuffer(at_work, np.int64).reshape(-1, 2)
        self._at_work[:, 0] = [group.start for group in self._groups]
        self._pipes: list[connection.Connection] = []
        self._processes: list[BaseProcess] = []
        # Also called when this object is garbage-collected, and before an exit joins the processes.
        self.close = util.Finalize(self, _end, args=(self._pipes, self._processes), exitpriority=10)
        make_group: Any = partial(EnvGroup, foreign, episode_length=episode_length)
        environment = dict(os.environ)
        with (
            _path_handed_over(),
            _signals_blocked(),
            _main_module_hidden(),
            _own_server(foreign.env_spec),
        ):
            for number, group in enumerate(self._groups):
                pipe, theirs = context.Pipe()
                process = context.Process(
                    target=_serve,
                    args=(
                        theirs,
                        CloudpickleWrapper(make_group),
                        group,
                        (memory, self.table.shape),
                        (at_work, number),
                        environment,
                    ),
                    name=f"{self._name} {group.start} to {group.stop - 1}",
                )
                process.start()
                theirs.close()
                self._pipes.append(pipe)
                self._processes.append(process)

    def reset(self, seed: int) -> None:
        """See `EnvGroup.reset`."""
        if not self._are_made:
            self._call("make", seconds=self._timeout and max(self._timeout, _SECONDS_TO_START))
            self._are_made = True
        self._call("reset", seed, seconds=self._timeout)

    def step(self) -> None:
        """See `EnvGroup.step`."""
        self._call("step", seconds=self._timeout)

    def _call(self, *command: Any, seconds: float) -> None:
        for pipe in self._pipes:
            # A process that has died is found below.
            with suppress(OSError):
                pipe.send(command)
        problems = [self._answer(group, seconds or None) for group in range(len(self._groups))]
        if any(problems):
            raise ForeignEnvError(next(filter(None, problems)))

    def _answer(self, group: int, seconds: float | None) -> str:
        """Wait for a group. Returns what went wrong in it, empty if nothing did."""
        pipe, before = self._pipes[group], None
        late = "has not come back for" if self._are_made else "was not made within"
        try:
            while not pipe.poll(seconds):
                # A slow group may just have many envs; one hangs if it is still the same call.
                env, now = map(int, self._at_work[group])
                if now == before:
                    self._processes[group].kill()
                    raise ForeignEnvError(
                        f"{self._name}: env {env} {late} {seconds:g} s (--env-timeout); the "
                        f"process of {self._envs(group)} was ended"
                    )
                before = now
            problem: str = pipe.recv()
        except (EOFError, OSError) as error:
            raise ForeignEnvError(
                f"{self._name}: the process of {self._envs(group)} died "
                f"({_end_of(self._processes[group])}) at env {self._at_work[group, 0]}"
            ) from error
        return problem

    def _envs(self, group: int) -> str:
        envs = self._groups[group]
        return f"envs {envs.start} to {envs.stop - 1}" if len(envs) > 1 else f"env {envs.start}"


def _serve(
    pipe: connection.Connection,
    make_group: Any,
    envs: range,
    table: tuple[Any, tuple[int, int]],
    at_work: tuple[Any, int],
    environment: dict[str, str],
) -> None:
    """What a worker runs: step a group of envs until the other end of the pipe is closed."""
    # The environment as it is now, since the server is older, and without the variables that only
    # the start of a process needed.
    os.environ.clear()
    os.environ.update(environment)
    # Not SIG_IGN, which programs started by an env would inherit.
    for one in _SIGNALS:
        signal.signal(one, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    memory, shape = table
    at_work_of_all, number = at_work
    group: EnvGroup = make_group.fn(
        first=envs.start,
        table=np.frombuffer(memory, np.float32).reshape(shape)[envs.start : envs.stop],
        at_work=np.frombuffer(at_work_of_all, np.int64).reshape(-1, 2)[number],
    )
    with suppress(EOFError, OSError):
        while True:
            command, *arguments = pipe.recv()
            problem = ""
            try:
                getattr(group, command)(*arguments)
            except ForeignEnvError as error:
                problem = str(error)
            pipe.send(problem)
    group.close()


def _leave_with_parent() -> None:
    """End this process, even if its env hangs, some seconds after its parent has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    time.sleep(_SECONDS_TO_LEAVE)
    os._exit(1)


def _end(pipes: list[connection.Connection], processes: list[BaseProcess]) -> None:
    """Close the pipes, at which processes exit after their step, and kill those that do not."""
    for pipe in pipes:
        pipe.close()
    deadline = time.monotonic() + _SECONDS_TO_LEAVE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.exitcode is None:
            process.kill()
            process.join()


def _end_of(process: BaseProcess) -> str:
    process.join(1.0)
    code = process.exitcode
    if code is None or code >= 0:
        return f"exit code {code}"
    return f"by {signal.Signals(-code).name}"


def _start_method() -> str:
    """Start processes from a small server, which has imported what they need, if there is one.

    A fork of this process would inherit locks that its other threads hold.
    """
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    return "forkserver" if has_server else "spawn"


@cache
def _server() -> forkserver.ForkServer:
    return forkserver.ForkServer()


# After a fork the server is not a child of the new process, which thus needs its own.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_server.cache_clear)


@contextmanager
def _own_server(env_spec: EnvSpec) -> Iterator[None]:
    """Context in which processes come from our own server; that of multiprocessing is the user's.

    The user's server has other imports, and must not start with our signals blocked: they would
    stay blocked in every process that it starts, which could then not be terminated.
    """
    entry = env_spec.entry_point
    module = entry.partition(":")[0] if isinstance(entry, str) else entry.__module__
    _server().set_forkserver_preload([EnvGroup.__module__, module])
    theirs = forkserver.connect_to_new_process
    forkserver.connect_to_new_process = _server().connect_to_new_process
    try:
        yield
    finally:
        forkserver.connect_to_new_process = theirs


@contextmanager
def _path_handed_over() -> Iterator[None]:
    """Context in which new Python processes look for modules only where this process does.

    multiprocessing starts them by `python -c`, which would look in the working directory first: a
    file there, which a stranger may have sent, would run in place of a library.
    """
    given = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Context in which new processes start with the signals blocked.

    No signal can then end them, or the server, before they ignore it. This process receives
    signals that arrive meanwhile when the context ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        # This part of multiprocessing lifts the block when it is started.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Context in which new processes do not import the user's script.

    The import would cost seconds, or start the training again. What the script defines reaches the
    processes all the same, since it is sent by value.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
