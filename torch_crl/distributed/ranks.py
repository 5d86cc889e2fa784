"""The processes that train one run together: who this one is, and what it asks of the others.

torchrun starts them and numbers them from 0. Tensors of the update travel on the device's own
backend (NCCL, or gloo on CPUs); everything that is agreed on, once a collection, goes over gloo,
which notices a process that has died. W ranks, B rows of each.
"""

import atexit
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from torch_crl.errors import TorchCrlError, UsageError
from torch_crl.system.cuda_graph import between_graphs
from torch_crl.system.files import exists
from torch_crl.system.threads import THREADS, usable_cpus

TIMEOUT = "TORCH_CRL_RANK_TIMEOUT"
"""Environment variable: seconds after which a rank that is waited for counts as lost."""
BACKEND = "TORCH_CRL_RANK_BACKEND"
"""Environment variable: another backend of torch.distributed than NCCL on GPUs and gloo on CPUs."""
_TIMEOUT = 600.0
# How long ranks that have lost one wait for a sign of life of each other, to name it.
_ROLL_CALL = timedelta(seconds=2)

T = TypeVar("T")


class RankError(TorchCrlError, RuntimeError):
    """What ended the run on another rank; the message names it. The first rank tells the user."""

    told_by = 0


class LostRankError(RankError):
    """A rank is gone or does not answer; the message names it."""

    def __init__(self, message: str, *, told_by: int) -> None:
        """`told_by` is the rank that tells the user: the first one that is there."""
        super().__init__(message)
        self.told_by = told_by


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The place of this process among those that train a run; by default it is the only one."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    """Number of this process on its machine, which is that of its GPU."""
    device_group: dist.ProcessGroup | None = None
    """For tensors of the update, which are on the device."""
    control: dist.ProcessGroup | None = None
    """For what is on the CPU."""
    store: Store | None = None
    places: tuple[tuple[str, int], ...] = ()
    """Machine and process of each rank."""

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and talks to the user."""
        return self.rank == 0

    @property
    def is_alone(self) -> bool:
        """Whether there are no others, and no group of one that stands for them in a test."""
        return self.size == 1 and self.device_group is None

    def stream(self, name: str) -> str:
        """The stream of random numbers of this name, of which each rank has its own."""
        return f"{name}/rank{self.rank}" if self.rank else name

    # Tensors of the update. A CUDA graph cannot hold these calls, so each of them divides it.

    def gather(self, own_BX: Tensor) -> Tensor:
        """The rows [W B, X] of all ranks in their order; without gradient."""
        if self.is_alone:
            return own_BX.detach()
        own_BX = own_BX.detach().contiguous()
        all_NX = own_BX.new_empty(self.size * len(own_BX), *own_BX.shape[1:])
        parts = list(all_NX.chunk(self.size))
        self._exchange(lambda: dist.all_gather(parts, own_BX, group=self.device_group))
        return all_NX

    def sum_(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place. All of them get the same bits."""
        if not self.is_alone:
            self._exchange(lambda: dist.all_reduce(tensor, group=self.device_group))
        return tensor

    def _exchange(self, collective: Callable[[], object]) -> None:
        between_graphs(lambda: self._noticing_losses(collective))

    # Agreement, over gloo.

    def all_of(self, value: T) -> list[T]:
        """The values of all ranks, in their order; any of Python's own kinds, and tensors."""
        if self.is_alone:
            return [value]
        found: list[Any] = [None] * self.size
        self._noticing_losses(lambda: dist.all_gather_object(found, value, group=self.control))
        return found

    def of_first(self, make: Callable[[], T]) -> T:
        """What `make` returns on rank 0, or the error that it raises there."""
        if self.is_alone:
            return make()
        made: list[T] = []
        with self.together():
            made = [make()] if self.is_first else []
        return self.all_of(made)[0][0]

    def mean(self, named: dict[str, float]) -> dict[str, float]:
        """Means over all ranks; every rank must have the same names."""
        if self.is_alone or not named:
            return named
        every = self.all_of(list(named.values()))
        return {
            name: sum(values) / self.size
            for name, values in zip(named, zip(*every, strict=True), strict=True)
        }

    def largest(self, number: int) -> int:
        """The largest of the ranks' numbers."""
        if self.is_alone:
            return number
        shared = torch.tensor([number])
        most = dist.ReduceOp.MAX
        self._noticing_losses(lambda: dist.all_reduce(shared, most, group=self.control))
        return int(shared)

    def lines(self, lines: list[str]) -> list[str]:
        """The lines of all ranks for the user, those of others with their rank in front."""
        every = self.all_of(lines)
        return [
            f"rank {rank}: {line}" if rank else line
            for rank, some in enumerate(every)
            for line in some
        ]

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block that ends on all ranks, or on none: an error of one is raised on each of them.

        Nothing in the block may wait for the others. Rank 0 raises its own error, or a RankError
        that names the rank and quotes the message; others raise a RankError.
        """
        if self.is_alone:
            yield
            return
        error: BaseException | None = None
        try:
            yield
        # Whatever it is, the others must know.
        except BaseException as raised:
            error = raised
        told = self.all_of("" if error is None else str(error) or type(error).__name__)
        if error is not None and (self.is_first or not isinstance(error, TorchCrlError)):
            raise error
        for rank, message in enumerate(told):
            if message:
                raise RankError(f"rank {rank}: {message}" if rank else message) from error

    def wait(self) -> None:
        """Wait for all ranks."""
        self.all_of(None)

    def _noticing_losses(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            raise self._losses(str(error)) from error

    def _losses(self, message: str) -> RankError:
        """What to raise when a collective failed: it says which ranks answer no more."""
        assert self.store is not None
        signs = [f"alive/{rank}" for rank in range(self.size)]
        try:
            self.store.set(signs[self.rank], "")
            with suppress(RuntimeError):
                self.store.wait(signs, _ROLL_CALL)
            silent = [rank for rank, sign in enumerate(signs) if not self.store.check([sign])]
        # The store is a part of the first process where torchrun does not keep it.
        except RuntimeError:
            silent = [0]
        # One that waits for another than the lost rank has not noticed yet.
        silent = [rank for rank in silent if not self._is_running(rank)]
        if not silent:
            return RankError(f"a collective operation failed, and all ranks are there: {message}")
        names = ", ".join(map(str, silent))
        return LostRankError(
            f"rank {names} is gone or does not answer; its own output says why",
            told_by=min({*range(self.size)} - {*silent}),
        )

    def _is_running(self, rank: int) -> bool:
        """Whether a rank is a process of this machine that has not ended."""
        if rank == self.rank:
            return True
        # Empty while the ranks meet.
        machine, process = self.places[rank] if self.places else ("", 0)
        if machine != platform.node():
            return False
        with suppress(OSError):
            os.kill(process, 0)
            # Ended, and its parent has not asked for its status.
            status = Path(f"/proc/{process}/stat")
            return not exists(status) or ") Z" not in status.read_text()
        return False


ALONE = Ranks()
"""A run in one process."""

_joined: list[Ranks] = []


def join() -> Ranks:
    """The ranks of the torchrun that started this process; `ALONE` without one, or in one of one.

    The first call meets the others, chooses this process's GPU, and divides the machine's CPUs
    among its ranks. Raises UsageError for an environment that torchrun did not make.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ALONE
    if not _joined:
        _joined.append(_meet())
    return _joined[0]


def group_of_one(device: torch.device) -> Ranks:
    """The only rank of a group, whose updates are exchanged, and so divided, all the same.

    For measuring what that costs.
    """
    store: Store = dist.HashStore()  # type: ignore[attr-defined]
    backend = _backend(on_gpu=device.type == "cuda")
    dist.init_process_group(backend, store=store, rank=0, world_size=1)
    control = dist.new_group(backend="gloo")
    return Ranks(device_group=dist.group.WORLD, control=control, store=store)


def _backend(*, on_gpu: bool) -> str:
    return os.environ.get(BACKEND) or ("cpu:gloo,cuda:nccl" if on_gpu else "gloo")


def have_met() -> bool:
    """Whether `join` has met other ranks."""
    return bool(_joined)


def _meet() -> Ranks:
    wanted = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in wanted if name not in os.environ]
    if missing:
        raise UsageError(
            f"the environment variable WORLD_SIZE is set and {', '.join(missing)} is not; start "
            "several ranks by torchrun, or unset WORLD_SIZE"
        )
    local_rank, local_size = (int(os.environ[f"LOCAL_{name}"]) for name in ("RANK", "WORLD_SIZE"))
    os.environ.setdefault(THREADS, str(max(1, usable_cpus() // local_size)))
    gpus = torch.cuda.device_count()
    if 0 < gpus < local_size:
        raise UsageError(
            f"torchrun started {local_size} ranks on a machine with {gpus} GPUs; start as many as "
            "there are, or hide the GPUs by CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    on_gpu = gpus > 0
    if on_gpu:
        torch.cuda.set_device(local_rank)
    timeout = timedelta(seconds=float(os.environ.get(TIMEOUT, _TIMEOUT)))
    met, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
    # On one machine torchrun keeps what ranks that have died wrote there, such as their addresses.
    # On several the machines count starts differently, but each start has a store of its own.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") if local_size == size else ""
    store = PrefixStore(f"torch_crl/{attempt}", met)
    dist.init_process_group(
        _backend(on_gpu=on_gpu), store=store, rank=rank, world_size=size, timeout=timeout
    )
    atexit.register(dist.destroy_process_group)
    control = dist.new_group(backend="gloo", timeout=timeout) if on_gpu else dist.group.WORLD
    ranks = Ranks(
        rank=rank,
        size=size,
        local_rank=local_rank,
        device_group=dist.group.WORLD,
        control=control,
        store=store,
    )
    return replace(ranks, places=tuple(ranks.all_of((platform.node(), os.getpid()))))
