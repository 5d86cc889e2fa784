"""The devices that torch can compute on: their names, and how much of their memory is free."""

import difflib
from pathlib import Path

import torch

from torch_crl.system.files import exists

_MEMORY = Path("/proc/meminfo")


def resolve_device(name: str) -> torch.device:
    """The device of this name; `auto` is the CUDA device if there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def device_problems(device: str) -> list[str]:
    """The reasons why a run cannot use `--device device` here."""
    if device == "auto":
        return []
    try:
        wanted = torch.device(device)
    except RuntimeError:
        near = difflib.get_close_matches(device, ["auto", "cpu", "cuda"], n=1, cutoff=0.0)
        return [f"--device {device!r} is no device name; try {near[0]!r}"]
    if wanted.type == "cpu":
        return []
    if wanted.type != "cuda":
        return [f"--device {device} is not supported; use cpu, cuda or auto"]
    count = torch.cuda.device_count()
    if count == 0:
        return [f"--device {device}: torch sees no CUDA device here; use --device cpu or auto"]
    if (wanted.index or 0) >= count:
        return [f"--device {device}: there are {count} CUDA devices, numbered from 0"]
    return []


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device in bytes; None where the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if not exists(_MEMORY):
        return None
    # Unlike the free pages of `os.sysconf`, this includes the file cache, which can be released.
    lines = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
    return 1024 * int(lines["MemAvailable"].split()[0])
