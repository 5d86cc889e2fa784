"""Damage the files of a run in every way one can think of, and let every reader read them.

    python -m tests.campaigns.damaged_files [--count N] [--seed K]

Each reader must give an answer or raise a TorchCrlError within seconds: no other exception, no
hang, no death of the process. Half of the damage to checkpoints is signed with fitting checksums,
as a stranger could do it.
"""

import argparse
import json
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from tests.campaigns.runs import bring_to_an_end, in_child, short_recipe
from torch_crl.cli.runs import TrainedOptions, load_trained
from torch_crl.errors import TorchCrlError
from torch_crl.runs.curves import read_curves
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.policies import load_policy
from torch_crl.sweep.worker import other_run_in
from torch_crl.system import checkpoint
from torch_crl.training.starting import find_problems
from torch_crl.training.trainer import train

_SECONDS = 20
_ODD: list[Any] = [None, "", "x" * 5000, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, 1e-320]
_ODD += [float("nan"), float("inf"), [], {}, [[]], {"a": {}}, True, "\x1b[2J", "../../x", "é"]
_ODD += ["http.server:test", "builtins:breakpoint", "gymnasium:odd:Env-v0", 2**20, 4, 256]


def readers(run_dir: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything that reads a run directory, by name."""
    directory = RunDirectory(run_dir)
    yield "recipe", directory.read_recipe
    yield "metrics", lambda: directory.read_metrics("evaluation")
    yield "result", directory.read_result
    yield "machine", directory.read_machine
    yield "compare", lambda: read_curves(run_dir.parent)
    yield "sweep", lambda: other_run_in(run_dir, short_recipe())
    yield "progress", lambda: directory.logged_env_steps
    yield "policy", lambda: _act(run_dir)
    yield "eval", lambda: load_trained(TrainedOptions(run=run_dir, policy="best"))
    yield "resume", lambda: _resume(directory)


def _act(run_dir: Path) -> None:
    policy = load_policy(run_dir)
    action = policy(torch.zeros(2, policy.state_size), torch.zeros(2, policy.goal_size))
    assert action.isfinite().all()


def _resume(directory: RunDirectory) -> None:
    recipe = directory.read_recipe()
    find_problems(recipe, directory, resume=True, overwrite=False)
    # Not of a recipe that was damaged into one of hours.
    if recipe.total_env_steps <= short_recipe().total_env_steps:
        train(recipe, directory, resume=True, show=False)


def damage(run_dir: Path, draws: random.Random) -> str:
    """Damage one file, or a few places of it; returns what was done."""
    files = sorted(path for path in run_dir.rglob("*") if path.is_file())
    files = [path for path in files if "tensorboard" not in path.parts and path.suffix != ".png"]
    path = draws.choice(files)
    ways = [_flip, _cut, _replace, _repeat]
    if path.suffix in (".json", ".jsonl"):
        ways += [_change_value] * 6
    if path.suffix == ".safetensors":
        ways += [_change_tensors] * 6
    way = draws.choice(ways)
    told = way(path, draws)
    signed = (
        way not in (_replace,) and path.parent.parent != run_dir.parent and draws.random() < 0.5
    )
    if signed:
        _sign(path.parent)
    return f"{path.relative_to(run_dir)}: {told}{', signed' if signed else ''}"


def _flip(path: Path, draws: random.Random) -> str:
    data = bytearray(path.read_bytes())
    for _ in range(draws.choice([1, 1, 3])):
        if data:
            data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)
    path.write_bytes(data)
    return "flipped bits"


def _cut(path: Path, draws: random.Random) -> str:
    data = path.read_bytes()
    path.write_bytes(data[: draws.choice([0, 1, 8, 9, draws.randrange(len(data) + 1)])])
    return "cut short"


def _repeat(path: Path, draws: random.Random) -> str:
    data = path.read_bytes()
    path.write_bytes(data + draws.choice([data, b"\0" * 100, b"\xff\xfe{}", b"[" * 100_000]))
    return "made longer"


def _replace(path: Path, draws: random.Random) -> str:
    kind = draws.choice(["nothing", "folder", "pipe", "loop", "zeros", "huge", "unreadable"])
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
        case "zeros":
            path.symlink_to("/dev/zero")
        case "huge":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        case "unreadable":
            path.write_bytes(b"")
            path.chmod(0)
    return f"replaced by {kind}"


def _change_value(path: Path, draws: random.Random) -> str:
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    number = draws.randrange(len(lines))
    try:
        document = json.loads(lines[number])
    except ValueError:
        return "was no JSON"
    place: Any = document
    name: Any = draws.choice(sorted(place))
    while isinstance(place[name], dict) and place[name] and draws.random() < 0.9:
        place = place[name]
        name = draws.choice(sorted(place))
    value = draws.choice([*_ODD, "remove", "rename"])
    if value == "remove":
        del place[name]
    elif value == "rename":
        place[f"{name}2"] = place.pop(name)
    else:
        place[name] = value
    lines[number] = json.dumps(document)
    path.write_text("\n".join(lines) + "\n")
    return f"{name} is now {str(value)[:40]!r}"


def _change_tensors(path: Path, draws: random.Random) -> str:
    data = path.read_bytes()
    try:
        (size,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + size])
    except (struct.error, ValueError):
        return "was no safetensors file"
    name = draws.choice(sorted(header))
    entry = header[name]
    body = data[8 + size :]
    match draws.choice(["empty", "shape", "type", "offsets", "drop", "values", "rename", "size"]):
        case "empty" if "shape" in entry:
            tensors = _loaded(path)
            tensors[name] = torch.zeros(0)
            checkpoint.save_file(tensors, path)
            return f"{name} is empty"
        case "values" if "shape" in entry:
            tensors = _loaded(path)
            wrong = draws.choice([-1.0, 1e9, float("nan"), 2.0**31 - 1, 255.0])
            tensors[name] = torch.full_like(tensors[name].float(), wrong).to(tensors[name].dtype)
            checkpoint.save_file(tensors, path)
            return f"{name} is {wrong} everywhere"
        case "shape" if "shape" in entry:
            entry["shape"] = draws.choice([[], [0], [2**40], [1, *entry["shape"]], [-1], "x", None])
        case "type" if "dtype" in entry:
            entry["dtype"] = draws.choice(["F64", "BF16", "I64", "U8", "F8_E4M3", "Q", 3])
        case "offsets":
            entry["data_offsets"] = draws.choice([[0, 0], [0, 2**60], [8, 4], [-4, 4], "x"])
        case "drop":
            del header[name]
        case "rename":
            header[f"{name}2"] = header.pop(name)
        case _:
            path.write_bytes(struct.pack("<Q", draws.choice([0, 2**63, size + 1])) + data[8:])
            return "another size of header"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return f"header of {name}"


def _loaded(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in checkpoint.load_file(path).items()}


def _sign(folder: Path) -> None:
    """Give a checkpoint folder the checksums of what it holds now."""
    try:
        document = json.loads((folder / checkpoint.META).read_text())
        sums = {
            "tensors": checkpoint._file_sum(folder / checkpoint.TENSORS),
            "meta": checkpoint._json_sum(document["meta"]),
        }
        text = json.dumps({"meta": document["meta"], "sha256": sums})
        (folder / checkpoint.META).write_text(text)
    except (OSError, ValueError, KeyError, TypeError):
        return


def try_one(intact: Path, folder: Path, seed: int) -> list[str]:
    """What went wrong with one damaged copy, by reader."""
    draws = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(intact, folder / "run")
    told = damage(folder / "run", draws)
    wrong = []
    for name, read in readers(folder / "run"):
        try:
            signal.alarm(_SECONDS)
            with redirect_stderr(StringIO()):
                read()
        except TorchCrlError as error:
            if not str(error):
                wrong.append(f"{seed}: {told}: {name} says nothing")
        except BaseException:
            place = traceback.format_exc().splitlines()
            wrong.append(f"{seed}: {told}: {name}: {place[-1]} {place[-3].strip()}")
        finally:
            signal.alarm(0)
    return wrong


def campaign(count: int, folder: Path, *, seed: int = 0) -> list[str]:
    """Damage `count` copies of a run; returns all that was not told cleanly."""
    intact, notes = folder / "intact", folder / "notes"
    assert in_child(lambda: bring_to_an_end(intact)) == 0
    # One checkpoint, or its damage would be passed over; the older one, so that the run goes on.
    shutil.rmtree(RunDirectory(intact).saved_checkpoints[0])
    found: list[str] = []
    first = seed
    while first < seed + count:
        notes.write_text("")

        def work(begin: int = first) -> None:
            with notes.open("a") as file:
                for number in range(begin, seed + count):
                    lines = try_one(intact, folder / "damaged", number)
                    file.write("".join(f"{line}\n" for line in lines) + f"done {number}\n")
                    file.flush()

        signal.signal(signal.SIGALRM, _hung)
        status = in_child(work)
        lines = notes.read_text().splitlines()
        found += [line for line in lines if not line.startswith("done ")]
        done = [int(line.split()[1]) for line in lines if line.startswith("done ")]
        first = max(done, default=first - 1) + 1
        if first < seed + count:
            found.append(f"{first}: the process died with status {status}")
            first += 1
    return found


def _hung(*_: object) -> None:
    raise TimeoutError(f"no answer within {_SECONDS} s")


def main() -> None:
    """Print a line for each that was not told cleanly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        found = campaign(options.count, Path(name), seed=options.seed)
    print("\n".join(found))
    seconds = time.monotonic() - begin
    print(f"{options.count} damaged runs in {seconds:.0f} s: {len(found)} not told cleanly")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
