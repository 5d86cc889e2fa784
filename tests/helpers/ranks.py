"""Functions that run on several ranks at once, as processes that torchrun would start.

The processes are forks of one that has imported everything and computed nothing, since importing
takes longer than all that the tests do.
"""

import importlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from tests.helpers.paths import ROOT
from torch_crl.distributed.ranks import Ranks
from torch_crl.system.cuda_graph import between_graphs

T = TypeVar("T")
_ANSWERS = "answers.json"


class Loopback(Ranks):
    """A rank without others that exchanges all the same, as a group of one does."""

    @property
    def is_alone(self) -> bool:
        return False

    def gather(self, own_BX: Tensor) -> Tensor:
        all_NX = torch.empty_like(own_BX)
        between_graphs(lambda: all_NX.copy_(own_BX.detach()))
        return all_NX

    def sum_(self, tensor: Tensor) -> Tensor:
        between_graphs(lambda: None)
        return tensor

    def all_of(self, value: T) -> list[T]:
        return [value]


class Stage(NamedTuple):
    """`module:function` on so many ranks, with arguments that JSON can hold."""

    size: int
    function: str
    arguments: dict[str, Any] = {}


class Ended(NamedTuple):
    """How a rank ended: its exit status, or minus the signal, and what the function returned."""

    status: int
    returned: Any


def environment(rank: int, size: int, port: int) -> dict[str, str]:
    """What torchrun tells the process of a rank, on one machine."""
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    named = {name: str(number) for name, number in numbers.items()}
    store = {"TORCHELASTIC_USE_AGENT_STORE": str(size > 1)}
    return named | store | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port: int = some.getsockname()[1]
        return port


def stages_on_ranks(*stages: Stage, seconds: float = 200) -> list[list[Ended]]:
    """Each stage after the one before; how all of its ranks ended."""
    # One thread each, and quick to notice that a rank does not answer.
    quick = {"OMP_NUM_THREADS": "1", "TORCH_CRL_RANK_TIMEOUT": "60"}
    with tempfile.TemporaryDirectory() as folder:
        result = subprocess.run(
            [sys.executable, "-m", __name__, json.dumps(stages), folder],
            env=os.environ | quick,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            cwd=ROOT,
        )
        assert result.returncode == 0, result.stdout + result.stderr[-6000:]
        found = json.loads(Path(folder, _ANSWERS).read_text())
    return [[Ended(*rank) for rank in stage] for stage in found]


def on_ranks(size: int, function: str, **arguments: Any) -> list[Any]:
    """What a function returns on each rank; all of them must end well."""
    (ranks,) = stages_on_ranks(Stage(size, function, arguments))
    assert all(rank.status == 0 for rank in ranks)
    return [rank.returned for rank in ranks]


def start_ranks(stage: Stage, answers: list[Path]) -> tuple[list[int], TCPStore]:
    """The processes of all ranks, and the store in which they meet.

    This process keeps the store, as torchrun does: ranks can read it when the first one has ended.
    """
    port = free_port()
    children = [_fork_rank(stage, rank, port, answer) for rank, answer in enumerate(answers)]
    return children, TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)


def _fork_rank(stage: Stage, rank: int, port: int, answer: Path) -> int:
    """The process of one rank; its answer is in the file, if it ends well."""
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.environ.update(environment(rank, stage.size, port))
        returned = _function(stage.function)(**stage.arguments)
        answer.write_text(json.dumps(returned))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        # Not sys.exit: what the parent has open is the parent's to close.
        os._exit(status)


def _function(name: str) -> Any:
    module, function = name.split(":")
    return getattr(importlib.import_module(module), function)


def _run(stage: Stage, folder: Path) -> list[Ended]:
    answers = [folder / f"answer_{rank}" for rank in range(stage.size)]
    for answer in answers:
        answer.unlink(missing_ok=True)
    children, store = start_ranks(stage, answers)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    del store
    return [
        Ended(status, json.loads(answer.read_text()) if answer.exists() else None)
        for status, answer in zip(statuses, answers, strict=True)
    ]


if __name__ == "__main__":
    asked = [Stage(*stage) for stage in json.loads(sys.argv[1])]
    for each in asked:
        _function(each.function)
    place = Path(sys.argv[2])
    place.joinpath(_ANSWERS).write_text(json.dumps([_run(stage, place) for stage in asked]))
