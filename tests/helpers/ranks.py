"""Functions that run in several processes at once, as torchrun would start them."""

import importlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells the process of a rank, on one machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    named = {name: str(number) for name, number in numbers.items()}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    # One thread each, and quick to notice that a rank is gone.
    more = {"OMP_NUM_THREADS": "1", "TORCH_CRL_RANK_TIMEOUT": "60"}
    return {**os.environ, **named, **where, **more}


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port: int = some.getsockname()[1]
        return port


def start(size: int, *command: str, **variables: str) -> list[subprocess.Popen[str]]:
    """`python ARGUMENTS` once for each rank."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *command],
            env=environment(rank, size, port) | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for rank in range(size)
    ]


def ended(
    processes: list[subprocess.Popen[str]], *, seconds: float = 120
) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each rank."""
    try:
        said = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def on_ranks(size: int, function: str, **arguments: Any) -> list[Any]:
    """What `module:function(**arguments)` returns on each rank; all of it is JSON."""
    found = ended(start(size, "-m", __name__, function, json.dumps(arguments)))
    for rank, (status, _, errors) in enumerate(found):
        assert status == 0, f"rank {rank}: {errors}"
    return [json.loads(output.splitlines()[-1]) for _, output, _ in found]


if __name__ == "__main__":
    module, name = sys.argv[1].split(":")
    returned = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    print(json.dumps(returned))
