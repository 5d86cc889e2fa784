"""Runs the self-tests of exported policies, on the runtimes as they are in this package.

Nothing in the folder is executed: Python files and C sources there are only compared.
"""

import json
import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from torch_crl.deploy.c_file import header_text
from torch_crl.deploy.export import RUNTIME_FILES, RUNTIMES, Runtime, sha256, signed
from torch_crl.errors import UsageError
from torch_crl.system.extras import install
from torch_crl.system.files import DamagedFileError, exists, is_folder, read_bytes

_TOLERANCE = 1e-5
"""Largest difference of an action that the self-tests allow where the file does not name it."""
_WEIGHTS: dict[Runtime, str] = {
    "onnx": "policy.onnx",
    "numpy": "policy.safetensors",
    "c": "policy.bin",
}
_LONGEST_SECONDS = 300
_MOST_BYTES = 1 << 32


class Checked(NamedTuple):
    """What the check of a folder found."""

    difference: float
    """The largest of the actions to those of the policy before the export."""
    notes: list[str]
    """What was not checked."""


class _Told(NamedTuple):
    """What the checks read of policy.json."""

    runtime: Runtime
    tolerance: float
    all: dict[str, Any]

    @property
    def identity(self) -> tuple[str, str]:
        """Task and checksum of the weights."""
        return self.all["task"], self.all["sha256_of_weights"]


def check(folder: Path | str) -> Checked:
    """The self-test of an exported policy.

    Raises UsageError for a folder without one, for files that are damaged or do not belong
    together, for other actions, and if the runtime or a C compiler is missing.
    """
    folder = Path(folder)
    if not is_folder(folder):
        what = "is a file; give its folder" if exists(folder) else "does not exist"
        raise UsageError(f"{folder} {what}")
    told, of_files = _read(folder)
    for name, expected in of_files.items():
        if sha256(_content(folder / name)) != expected:
            raise UsageError(
                f"{folder / name} is damaged, or of another policy than policy.json; copy or "
                "export it again"
            )
    run: Callable[[Path, _Told], float] = {"onnx": _onnx, "numpy": _numpy, "c": _c}[told.runtime]
    difference = run(folder, told)
    if not difference <= told.tolerance:
        raise UsageError(f"{folder}: the self-test failed, actions differ by {difference:.2g}")
    name = RUNTIME_FILES[told.runtime]
    ours = RUNTIMES.joinpath(name).read_bytes()
    changed = not exists(folder / name) or _content(folder / name) != ours
    note = f"{folder / name} is not that of this version of torch_crl, and was not run"
    return Checked(difference, [note] if changed else [])


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path, most=_MOST_BYTES)
    except DamagedFileError as error:
        raise UsageError(str(error)) from None


def _read(folder: Path) -> tuple[_Told, dict[str, str]]:
    path = folder / "policy.json"
    if not exists(path):
        inside = sorted(found.parent for found in folder.glob("export/*/policy.json"))
        hint = f"; did you mean {inside[0]}?" if inside else ""
        raise UsageError(f"{folder} holds no exported policy: there is no policy.json in it{hint}")
    try:
        told: dict[str, Any] = json.loads(read_bytes(path))
        damaged = signed(told) != told
        read = _Told(told["runtime"], float(told.get("tolerance", _TOLERANCE)), told)
        of_files = {str(name): str(value) for name, value in told["files"].items()}
        known = read.runtime in RUNTIME_FILES and _WEIGHTS[read.runtime] in of_files
        known &= all(Path(name).name == name for name in of_files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is no description of an exported policy: {error!r}") from None
    if damaged or not known:
        raise UsageError(f"{path} was changed after the export; copy or export it again")
    return read, of_files


def _numpy(folder: Path, told: _Told) -> float:
    from torch_crl.deploy.runtimes import numpy_policy

    return _in_python(numpy_policy.Policy, folder, told)


def _onnx(folder: Path, told: _Told) -> float:
    try:
        from torch_crl.deploy.runtimes import onnx_policy
    except ImportError:
        raise UsageError(f"the check of ONNX needs its runtime: {install('export')}") from None
    return _in_python(onnx_policy.Policy, folder, told)


def _in_python(kind: Any, folder: Path, told: _Told) -> float:
    try:
        policy = kind(folder / _WEIGHTS[told.runtime])
        meta = policy.meta
        if (meta["task"], meta["sha256_of_weights"]) != told.identity:
            raise UsageError(f"{folder}: policy.json is of another policy than the weights")
        return float(policy.self_test())
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(str(error)) from None


def _c(folder: Path, told: _Told) -> float:
    if (cc := compiler()) is None:
        raise UsageError("the check of the C runtime needs a C compiler, such as gcc")
    try:
        header = header_text(told.all)
        sizes = [int(told.all[name]) for name in ("state_size", "goal_size", "action_size")]
        outputs = sizes[2] * int(told.all["chunk"])
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{folder / 'policy.json'} describes no policy: {error!r}") from None
    if _content(folder / "policy.h") != header.encode():
        raise UsageError(f"{folder / 'policy.h'} is not of this version; export again")
    content = _content(folder / "policy.bin")
    count = int.from_bytes(content[52:56], "little")
    row = sizes[0] + sizes[1] + outputs
    if len(content) < 128 + 4 * count * row or not count:
        raise UsageError(f"{folder / 'policy.bin'} is cut short")
    if content[64:96].hex() != told.identity[1]:
        raise UsageError(f"{folder}: policy.json is of another policy than the weights")
    pairs = np.frombuffer(content[-4 * count * row :], "<f4").reshape(count, row)
    inputs, expected = np.split(pairs, [row - outputs], axis=1)
    with tempfile.TemporaryDirectory() as made:
        program = Path(made) / "policy"
        (Path(made) / "policy.h").write_text(header)
        (Path(made) / "policy.c").write_bytes(RUNTIMES.joinpath("policy.c").read_bytes())
        build = [cc, "-O2", "-DPOLICY_MAIN", "policy.c", "-lm", "-o", "policy"]
        compiled = subprocess.run(build, cwd=made, capture_output=True, text=True, check=False)
        if compiled.returncode:
            raise UsageError(f"{' '.join(build)} failed:\n{compiled.stderr[-2000:]}")
        ran = subprocess.run(
            [program, (folder / "policy.bin").resolve(), "-"],
            input=np.ascontiguousarray(inputs).tobytes(),
            capture_output=True,
            timeout=_LONGEST_SECONDS,
            check=False,
        )
    if ran.returncode:
        told_by_it = ran.stderr.decode().strip() or f"the program ended with {ran.returncode}"
        raise UsageError(f"{folder / 'policy.bin'}: {told_by_it}")
    found = np.frombuffer(ran.stdout, "<f4")
    return float(np.abs(found.reshape(expected.shape) - expected).max()) if len(found) else math.nan


def compiler() -> str | None:
    """The C compiler of this machine."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
