"""Runs the self-tests of exported policies, each in the runtime that a robot would use."""

import importlib.util
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np

from torch_crl.errors import UsageError


class Check(NamedTuple):
    """How a runtime is found in a folder, and its self-test."""

    file: str
    run: Callable[[Path], float]


def _module(path: Path) -> ModuleType:
    """A runtime's module, as it lies in the folder."""
    spec = importlib.util.spec_from_file_location(f"exported_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UsageError(
            f"{path.name} needs {error.name}: pip install 'torch-crl[export]'"
        ) from None
    except (OSError, SyntaxError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    return module


def _python(file: str, module: str) -> Callable[[Path], float]:
    def run(folder: Path) -> float:
        made = _module(folder / module)
        try:
            policy = made.Policy(folder / file)
            _require_same(folder, policy.meta)
            difference: float = policy.self_test()
        except ValueError as error:
            raise UsageError(str(error)) from None
        return difference

    return run


def _c(folder: Path) -> float:
    if (cc := compiler()) is None:
        raise UsageError("the check of the C runtime needs a C compiler, such as gcc")
    pairs = _pairs_in(folder / "policy.bin", folder)
    with tempfile.TemporaryDirectory() as made:
        program = Path(made) / "policy"
        build = [cc, "-O2", "-DPOLICY_MAIN", str(folder / "policy.c"), "-lm", "-o", str(program)]
        compiled = subprocess.run(build, capture_output=True, text=True, check=False)
        if compiled.returncode:
            raise UsageError(f"{' '.join(build)} failed:\n{compiled.stderr[-2000:]}")
        inputs, expected = pairs[:, : -_actions(folder)], pairs[:, -_actions(folder) :]
        ran = subprocess.run(
            [program, folder / "policy.bin", "-"],
            input=np.ascontiguousarray(inputs).tobytes(),
            capture_output=True,
            check=False,
        )
    if ran.returncode:
        raise UsageError(f"{folder / 'policy.bin'}: {ran.stderr.decode().strip()}")
    found = np.frombuffer(ran.stdout, "<f4").reshape(expected.shape)
    return float(np.abs(found - expected).max())


def _told(folder: Path) -> dict[str, object]:
    try:
        told: dict[str, object] = json.loads((folder / "policy.json").read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder / 'policy.json'} cannot be read: {error}") from None
    return told


def _require_same(folder: Path, meta: dict[str, object]) -> None:
    told = _told(folder)
    if told["task"] != meta["task"]:
        raise UsageError(
            f"{folder}: policy.json is of {told['task']}, and the weights are of {meta['task']}"
        )
    if told["sha256_of_weights"] != meta["sha256_of_weights"]:
        raise UsageError(f"{folder}: the weights are of another policy than policy.json")


def _actions(folder: Path) -> int:
    told = _told(folder)
    return int(str(told["action_size"])) * int(str(told["chunk"]))


def _pairs_in(path: Path, folder: Path) -> "np.ndarray[tuple[int, int], np.dtype[np.float32]]":
    """State, goal and action of each pair at the end of `policy.bin`."""
    told = _told(folder)
    row = int(str(told["state_size"])) + int(str(told["goal_size"])) + _actions(folder)
    content = path.read_bytes()
    count = int.from_bytes(content[48:52], "little")
    if len(content) < 64 + 4 * count * row:
        raise UsageError(f"{path} is cut short")
    numbers = np.frombuffer(content[-4 * count * row :], "<f4")
    return numbers.reshape(count, row)


CHECKS = {
    "onnx": Check("policy.onnx", _python("policy.onnx", "onnx_policy.py")),
    "numpy": Check("policy.safetensors", _python("policy.safetensors", "numpy_policy.py")),
    "c": Check("policy.bin", _c),
}


def check(folder: Path) -> float:
    """The largest difference of an exported policy's actions to those before, for the self-test.

    The code of the C runtime is compiled in a temporary folder. Raises UsageError for a file that
    is damaged, of another task, or gives other actions, and if the runtime or compiler is missing.
    """
    found = [each for each in CHECKS.values() if (folder / each.file).exists()]
    if not found:
        files = ", ".join(each.file for each in CHECKS.values())
        raise UsageError(f"{folder} holds no exported policy: none of {files}")
    return max(each.run(folder) for each in found)


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
